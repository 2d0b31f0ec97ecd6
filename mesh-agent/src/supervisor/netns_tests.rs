use super::*;

fn veth(index: u32, peer: u32) -> Link {
    Link {
        index,
        name: format!("eth{index}"),
        kind: Some("veth".to_owned()),
        loopback: false,
        peer: Some(peer),
        peer_elsewhere: true,
    }
}

fn loopback() -> Link {
    Link {
        kind: None,
        loopback: true,
        peer: None,
        peer_elsewhere: false,
        name: "lo".to_owned(),
        ..veth(1, 0)
    }
}

fn route(destination: Option<&str>, v6: bool, oif: u32) -> Route {
    Route {
        destination: destination.map(|d| d.parse().unwrap()),
        prefix_len: 0,
        v6,
        oif: Some(oif),
        table: 254,
        by_kernel: false,
    }
}

#[test]
fn a_family_needs_an_address_and_a_route_that_leads_out() {
    let links = [loopback(), veth(2, 9)];
    let v4: IpAddr = "10.0.0.2".parse().unwrap();
    let v6: IpAddr = "fd00::2".parse().unwrap();
    let link_local = route(Some("fe80::"), true, 2);
    let flags = |addresses: &[IpAddr], routes: &[Route]| family_flags(addresses, &links, routes);
    assert_eq!(
        flags(&[v4, v6], &[route(None, false, 2), link_local.clone()]),
        POD_HAS_V4
    );
    assert_eq!(
        flags(&[v4, v6], &[route(Some("fd00::"), true, 2)]),
        POD_HAS_V6
    );
    assert_eq!(flags(&[v4], &[route(None, true, 2)]), 0);
    assert_eq!(flags(&[v4], &[route(None, false, 1)]), 0);
    assert_eq!(
        flags(&[v4, v6], &[route(None, false, 2), route(None, true, 2)]),
        POD_HAS_V4 | POD_HAS_V6
    );
}
