use super::*;

fn veth(index: u32, peer: u32) -> Link {
    Link {
        index,
        name: format!("eth{index}"),
        kind: Some(InfoKind::Veth),
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
        v6,
        oif: Some(oif),
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

#[test]
fn every_veth_gets_a_wall_and_the_rest_is_refused_or_harmless() {
    let node = [loopback(), veth(9, 2), veth(10, 3)];
    assert_eq!(
        walls(&[loopback(), veth(2, 9), veth(3, 10)], &node).unwrap(),
        [9, 10]
    );
    let fallback = Link {
        kind: Some(InfoKind::SitTun),
        peer_elsewhere: false,
        ..veth(4, 0)
    };
    assert_eq!(walls(&[veth(2, 9), fallback.clone()], &node).unwrap(), [9]);
    let moved_in = Link {
        peer_elsewhere: true,
        ..fallback
    };
    for stranger in [
        moved_in,
        Link {
            kind: Some(InfoKind::MacVlan),
            ..veth(4, 9)
        },
        Link {
            kind: None,
            ..veth(4, 9)
        },
        // The other end is in a third namespace, where that index is another device.
        veth(5, 9),
        veth(2, 77),
        Link {
            peer_elsewhere: false,
            ..veth(2, 9)
        },
    ] {
        let error = walls(&[veth(3, 10), stranger.clone()], &node).unwrap_err();
        assert!(matches!(error, NetnsError::Device { .. }), "{stranger:?}");
    }
    assert!(matches!(
        walls(&[loopback()], &node),
        Err(NetnsError::NoDevice)
    ));
}
