use super::*;

fn veth(index: u32, peer: u32) -> Link {
    Link {
        index,
        name: format!("eth{index}"),
        kind: Some(VETH.to_owned()),
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

fn of_kind(kind: &str, peer_elsewhere: bool) -> Link {
    Link {
        kind: Some(kind.to_owned()),
        peer_elsewhere,
        ..veth(4, 2)
    }
}

#[test]
fn every_veth_to_the_node_gets_a_wall() {
    let node = [loopback(), veth(9, 2), veth(10, 3)];
    let devices = sort(&[loopback(), veth(2, 9), veth(3, 10)], &node);
    assert_eq!(devices.walls, [9, 10]);
    assert_eq!(devices.bare, []);
    assert_eq!(sort(&[loopback()], &node), Devices::default());
}

#[test]
fn what_stands_on_the_pods_own_devices_needs_none() {
    let node = [loopback(), veth(9, 2)];
    let inside = |index, peer| Link {
        peer_elsewhere: false,
        ..veth(index, peer)
    };
    let pod = [
        veth(2, 9),
        of_kind("sit", false),
        of_kind("macvlan", false),
        of_kind("tun", false),
        of_kind("team", false),
        inside(5, 6),
        inside(6, 5),
    ];
    let devices = sort(&pod, &node);
    assert_eq!((devices.walls, devices.bare), (vec![9], Vec::new()));
}

#[test]
fn what_leads_past_the_nodes_end_of_a_veth_is_bare() {
    let node = [loopback(), veth(9, 2), veth(10, 3)];
    for stranger in [
        of_kind("sit", true),
        of_kind("macvlan", true),
        of_kind("ipvlan", true),
        of_kind("netkit", true),
        of_kind("wireguard", false),
        of_kind("new in Linux 7", false),
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
        let devices = sort(&[veth(3, 10), stranger.clone()], &node);
        assert_eq!(devices.walls, [10], "{stranger:?}");
        assert_eq!(devices.bare.len(), 1, "{stranger:?}");
        assert_eq!(devices.bare[0].index, stranger.index);
    }
}

#[test]
fn a_devices_name_can_not_forge_a_line() {
    let link = Link {
        name: "a\nb c".to_owned(),
        ..of_kind("macvlan", true)
    };
    let devices = sort(&[link], &[]);
    assert_eq!(devices.bare[0].what, "a?b?c (of kind macvlan)");
}
