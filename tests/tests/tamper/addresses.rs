//! Addresses and routes that a pod gives itself.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use mesh_lab::{Lab, Netns, Pod, wait};

use crate::{
    CLIENT, FREE, NEIGHBOUR, WEB, as_root, nonce, plan, serve, target, wait_found, with_udp,
};

const UDP_PORT: u16 = 9;

fn send(from: &Netns, source: IpAddr, to: SocketAddr, text: &str) {
    let socket = from.run(|| UdpSocket::bind((source, 0))).unwrap();
    socket.send_to(text.as_bytes(), to).unwrap();
}

fn refused(lab: &Lab, pod: &Pod) -> u64 {
    let (agent, host) = (lab.agent(pod.node()), lab.node(pod.node()));
    agent.refused(host, pod, "wall_source").unwrap()
}

#[test]
fn another_pods_address_is_of_no_use() {
    let lab = Lab::with_mesh(with_udp(plan())).unwrap();
    let (client, free, neighbour) = (lab.pod(CLIENT), lab.pod(FREE), lab.pod(NEIGHBOUR));
    let outside = lab.outside();
    let to: [SocketAddr; 2] = [
        SocketAddr::new(outside.v4().into(), UDP_PORT),
        SocketAddr::new(outside.v6().into(), UDP_PORT),
    ];
    let capture = lab.capture(outside).unwrap();
    let mut sent = Vec::new();
    for (address, to) in neighbour.addresses().into_iter().zip(to) {
        for pod in [client, free] {
            let options = if address.is_ipv4() { "" } else { " nodad" };
            as_root(pod, &format!("ip addr add {address} dev eth0{options}")).unwrap();
            let own = pod.addresses();
            let own = own.iter().find(|a| a.is_ipv4() == address.is_ipv4());
            let (honest, lying) = (nonce(), nonce());
            send(&pod.netns, *own.unwrap(), to, &honest);
            let before = refused(&lab, client);
            send(&pod.netns, address, to, &lying);
            if pod.key() == CLIENT {
                wait::until_true("the wall to count it", wait::PATIENCE, || {
                    Ok(refused(&lab, client) > before)
                })
                .unwrap();
            }
            sent.push((pod.key(), address, honest, lying));
        }
        wait_found(&lab, client, "address", "contained", &address.to_string());
    }
    // What was let through is in the recording once the last of it is.
    std::thread::sleep(Duration::from_millis(100));
    let recording = capture.stop().unwrap();
    for (pod, address, honest, lying) in sent {
        assert!(recording.contains(honest.as_bytes()), "{pod}: as itself");
        let passes = recording.contains(lying.as_bytes());
        assert_eq!(passes, pod == FREE, "{pod} as {address}");
    }
    // An address on `lo` makes another pod's traffic local, not readable.
    let _server = serve(lab.pod(WEB), crate::PORT);
    let web = lab.pod(WEB).v4();
    as_root(client, &format!("ip addr add {web}/32 dev lo")).unwrap();
    wait_found(&lab, client, "address", "contained", &web.to_string());
    assert!(!mesh_lab::call::tcp(&client.netns, target(lab.pod(WEB))).served());
    assert!(mesh_lab::call::tcp(&neighbour.netns, target(lab.pod(WEB))).served());
}

#[test]
fn routes_are_told_of_and_lead_nowhere_else() {
    let lab = Lab::with_mesh(plan()).unwrap();
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let _server = serve(web, crate::PORT);
    let capture = lab.capture(lab.node(0)).unwrap();
    as_root(
        client,
        &format!(
            "ip route add {}/32 via 169.254.1.1 dev eth0 onlink src 127.0.0.1",
            web.v4()
        ),
    )
    .unwrap_or_default();
    as_root(
        client,
        "ip route add 198.51.100.0/24 via 169.254.1.1 dev eth0",
    )
    .unwrap();
    wait_found(&lab, client, "route", "contained", "198.51.100.0/24");
    as_root(client, "ip route del 198.51.100.0/24").unwrap();
    wait_found(&lab, client, "route", "contained", "gone: 198.51.100.0/24");
    let _served = mesh_lab::call::tcp(&client.netns, target(web));
    let recording = capture.stop().unwrap();
    assert!(!recording.contains(b"accept="), "in clear");
}
