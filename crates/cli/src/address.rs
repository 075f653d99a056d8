//! This machine's own address and name, as other machines and its pods see them.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

/// The address from which this machine reaches others; without a way out, its first that is not loopback.
pub(crate) fn primary() -> Option<Ipv4Addr> {
    routed().or_else(interface)
}

/// Asks the routing table: connecting a datagram socket sends nothing.
fn routed() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // A documentation address (RFC 5737), which no network of its own has.
    socket.connect("192.0.2.1:9").ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) if !address.is_loopback() && !address.is_unspecified() => Some(address),
        _ => None,
    }
}

fn interface() -> Option<Ipv4Addr> {
    let addresses = nix::ifaddrs::getifaddrs().ok()?;
    addresses
        .filter_map(|a| a.address)
        .filter_map(|a| a.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::ip))
        .find(|ip| !ip.is_loopback() && !ip.is_link_local())
}

/// The machine's name in the form a node's name must have.
pub(crate) fn node_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let clean: String = name
        .trim()
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .collect();
    let clean = clean.trim_matches(['-', '.']).to_owned();
    if clean.is_empty() { "node".to_owned() } else { clean }
}
