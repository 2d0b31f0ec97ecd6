//! What a privileged app may try to get bytes past its worker. Each way sends the words
//! `in clear` and a nonce towards a host, and says how far the kernel let it.

use std::fs;
use std::io::{self, Error, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::frame::{self, Ends};
use crate::xdp;

const PACKET_QDISC_BYPASS: libc::c_int = 20;
const SOL_NODEMESH: libc::c_int = 0x4e4d;
const PATIENCE: Duration = Duration::from_secs(2);

/// The pod's device.
const DEVICE: &str = "eth0";

/// Tries one way: `own` is the pod's address, `to` the host's, `gateway` the MAC address of
/// the node's end of the pod's device.
fn dodge(
    way: &str,
    own: Ipv4Addr,
    to: SocketAddrV4,
    gateway: [u8; 6],
    nonce: &str,
) -> io::Result<()> {
    let data = format!("in clear {nonce}");
    let data = data.as_bytes();
    let ends = Ends { own, to, gateway };
    match way {
        "plain" => dial(to.into(), data, |_| Ok(())),
        "mark" => dial(to.into(), data, |socket| socket.set_mark(0x4e4d)),
        "private-option" => dial(to.into(), data, |socket| {
            let value = [0u8; 20];
            match option(socket.as_raw_fd(), SOL_NODEMESH, 1, &value) {
                Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(()),
                other => Err(Error::other(format!("the private option: {other:?}"))),
            }
        }),
        "bind-device" => dial(to.into(), data, |s| s.bind_device(Some(DEVICE.as_bytes()))),
        "bind-loopback" => dial(to.into(), data, |socket| bind(socket, Ipv4Addr::LOCALHOST)),
        "bind-loopback-2" => {
            let other = Ipv4Addr::new(127, 0, 0, 2);
            dial(to.into(), data, |socket| bind(socket, other))
        }
        "dial-worker" => dial((Ipv4Addr::LOCALHOST, 15001).into(), data, |_| Ok(())),
        "dial-worker-from-loopback" => dial((own, 15008).into(), data, |socket| {
            bind(socket, Ipv4Addr::LOCALHOST)
        }),
        "bind-reserved" => dial(to.into(), data, |socket| {
            socket.bind(&SockAddr::from(SocketAddrV4::new(own, 15008)))
        }),
        "udp" => UdpSocket::bind((own, 0))?.send_to(data, to).map(drop),
        "raw-syn" => raw(
            to,
            &frame::ipv4(&ends, &frame::tcp(&ends, frame::SYN, data)),
        ),
        "raw-data" => raw(
            to,
            &frame::ipv4(&ends, &frame::tcp(&ends, frame::DATA, data)),
        ),
        "packet" => packet(frame::plain(&ends, data), frame::IPV4, false),
        "packet-bypass" => packet(frame::plain(&ends, data), frame::IPV4, true),
        "packet-lying" => packet(frame::plain(&ends, data), frame::ARP, false),
        "packet-vlan" => packet(frame::tagged(&ends, data), frame::VLAN, false),
        "packet-vlan-bypass" => packet(frame::tagged(&ends, data), frame::VLAN, true),
        "xdp" => xdp::send(frame::plain(&ends, data)),
        other => Err(Error::other(format!("no such way: {other}"))),
    }
}

fn dial(
    to: SocketAddr,
    data: &[u8],
    prepare: impl FnOnce(&Socket) -> io::Result<()>,
) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    prepare(&socket)?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(data)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    match io::Read::read(&mut stream, &mut [0; 8])? {
        0 => Ok(()),
        _ => Err(Error::other("it was answered")),
    }
}

fn bind(socket: &Socket, address: Ipv4Addr) -> io::Result<()> {
    socket.bind(&SockAddr::from(SocketAddrV4::new(address, 0)))
}

fn option(fd: i32, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let size = libc::socklen_t::try_from(value.len()).map_err(Error::other)?;
    // SAFETY: the value is as long as said.
    match unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), size) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

fn raw(to: SocketAddrV4, packet: &[u8]) -> io::Result<()> {
    let protocol = Protocol::from(libc::IPPROTO_RAW);
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(protocol))?;
    socket.send_to(packet, &SockAddr::from(to)).map(drop)
}

pub(crate) fn device_index() -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex(DEVICE)?)
}

fn packet(bytes: io::Result<Vec<u8>>, claimed: u16, bypass: bool) -> io::Result<()> {
    let bytes = bytes?;
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let bypass = i32::from(bypass).to_ne_bytes();
    option(fd, libc::SOL_PACKET, PACKET_QDISC_BYPASS, &bypass)?;
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = u16::try_from(libc::AF_PACKET).map_err(Error::other)?;
    to.sll_protocol = claimed.to_be();
    to.sll_ifindex = i32::try_from(device_index()?).map_err(Error::other)?;
    let size = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(Error::other)?;
    // SAFETY: the buffer and the address are as long as said.
    let sent = unsafe {
        let address = (&raw const to).cast();
        let (data, len) = (bytes.as_ptr().cast(), bytes.len());
        libc::sendto(socket.as_raw_fd(), data, len, 0, address, size)
    };
    match usize::try_from(sent) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

/// A MAC address as `ip link` shows it.
fn parse_mac(text: &str) -> io::Result<[u8; 6]> {
    let octets: Result<Vec<u8>, _> = text.split(':').map(|o| u8::from_str_radix(o, 16)).collect();
    let octets = octets.map_err(Error::other)?;
    let wrong = |_| Error::other(format!("no MAC address: {text}"));
    octets.try_into().map_err(wrong)
}

/// The device's own MAC address.
pub(crate) fn own_mac() -> io::Result<[u8; 6]> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    let address = interfaces
        .filter(|i| i.interface_name == DEVICE)
        .find_map(|i| i.address?.as_link_addr()?.addr());
    address.ok_or_else(|| Error::other(format!("{DEVICE} has no MAC address")))
}

/// [`dodge`] with its words as the command line has them; joins a cgroup first, by its folder.
pub(crate) fn run(words: &[&str]) -> io::Result<()> {
    let [cgroup, way, own, to, gateway, nonce] = words else {
        return Err(Error::other(crate::USAGE));
    };
    if !cgroup.is_empty() {
        fs::write(format!("{cgroup}/cgroup.procs"), "0")?;
    }
    let own = own.parse().map_err(Error::other)?;
    let to = to.parse().map_err(Error::other)?;
    dodge(way, own, to, parse_mac(gateway)?, nonce)
}
