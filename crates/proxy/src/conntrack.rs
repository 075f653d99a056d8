//! Forgets UDP flows that lead to pods which are gone.
//!
//! The kernel decides where a flow goes when it begins, and a UDP client that never stops never begins anew. What is
//! stale is decided purely; the kernel's own list is read and shortened over netlink.

use std::net::Ipv4Addr;

use crate::model::{Front, Model, Protocol};
use crate::netlink;
use anyhow::Context as _;

/// A flow as the kernel remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Where the client sent to.
    pub to: (Ipv4Addr, u16),
    /// Who answers, which is someone else where the destination was replaced.
    pub answers: (Ipv4Addr, u16),
    /// How the kernel names the flow: an attribute that is sent back to remove it.
    name: Vec<u8>,
}

/// The fronts whose flows may have become stale between two models; `None` is a past that nobody knows.
#[must_use]
pub fn changed(old: Option<&Model>, new: &Model) -> Vec<Front> {
    let is_udp = |front: &Front| {
        matches!(front, Front::Address(_, Protocol::Udp, _) | Front::NodePort(Protocol::Udp, _))
    };
    let Some(old) = old else {
        return new.fronts.keys().filter(|front| is_udp(front)).copied().collect();
    };
    let before = old.fronts.keys().filter(|front| !new.fronts.contains_key(*front));
    let fronts = before.chain(new.fronts.keys()).filter(|front| is_udp(front));
    let targets = |model: &Model, front: &Front| {
        model.fronts.get(front).map(|b| b.targets.clone()).unwrap_or_default()
    };
    let stale = |front: &&Front| {
        let (before, after) = (targets(old, front), targets(new, front));
        // Someone left; or the first one came, and flows that nobody answered are in its way.
        before.iter().any(|t| !after.contains(t)) || (before.is_empty() && !after.is_empty())
    };
    fronts.filter(stale).copied().collect()
}

/// Whether a flow came to one of `fronts` and is answered by somebody who is not behind it.
#[must_use]
pub fn is_stale(flow: &Flow, fronts: &[Front], model: &Model) -> bool {
    fronts.iter().any(|front| {
        let here = match front {
            Front::Address(address, _, port) => flow.to == (*address, *port),
            Front::NodePort(_, port) => flow.to.1 == *port,
        };
        let targets = model.fronts.get(front).map(|b| b.targets.as_slice()).unwrap_or_default();
        here && !targets.iter().any(|t| (t.address, t.port) == flow.answers)
    })
}

const CTNETLINK: u16 = 1 << 8;
const GET: u16 = 1;
const DELETE: u16 = 2;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const DUMP: u16 = 0x300;
const HEADER_BYTES: usize = 16;
/// Family, version and resource id, which follow the header.
const FAMILY_BYTES: usize = 4;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;

/// Removes the UDP flows that `model` made stale, and says how many.
///
/// # Errors
/// When the kernel's list cannot be read.
pub fn forget(fronts: &[Front], model: &Model) -> anyhow::Result<usize> {
    if fronts.is_empty() {
        return Ok(0);
    }
    let mut stale = flows()?;
    stale.retain(|flow| is_stale(flow, fronts, model));
    for flow in &stale {
        let socket = netlink::ask(&message(DELETE, ACKNOWLEDGE, &flow.name), 1)?;
        // The answer is of no interest: a flow that has ended meanwhile is gone as well.
        socket.recv_from_full().context("forget a flow")?;
    }
    Ok(stale.len())
}

/// All UDP flows over IPv4.
fn flows() -> anyhow::Result<Vec<Flow>> {
    let socket = netlink::ask(&message(GET, DUMP, &[]), 1)?;
    let mut found = Vec::new();
    loop {
        let (answer, _) = socket.recv_from_full().context("read flows")?;
        let mut rest = answer.as_slice();
        while let Some(message) = netlink::next(&mut rest) {
            match message.kind {
                netlink::DONE => return Ok(found),
                netlink::ERROR => message.accepted().context("read flows")?,
                _ => found.extend(message.body.get(FAMILY_BYTES..).and_then(flow)),
            }
        }
    }
}

fn message(kind: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    const IPV4: u8 = 2;
    let length = u32::try_from(HEADER_BYTES + FAMILY_BYTES + attributes.len()).unwrap_or(0);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend_from_slice(&(CTNETLINK | kind).to_ne_bytes());
    message.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
    message.extend_from_slice(&[0; 8]); // sequence number and port
    message.extend_from_slice(&[IPV4, 0, 0, 0]);
    message.extend_from_slice(attributes);
    message
}

/// The attribute of this kind: as it is with its header, and what is in it.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<(&[u8], &[u8])> {
    const HEADER: usize = 4;
    const FLAGS: u16 = 0xc000;
    while let [a, b, c, d, ..] = rest {
        let length = usize::from(u16::from_ne_bytes([*a, *b]));
        let body = rest.get(HEADER..length)?;
        if u16::from_ne_bytes([*c, *d]) & !FLAGS == wanted {
            return Some((&rest[..length], body));
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// Reads a flow; `None` for what is not UDP.
fn flow(attributes: &[u8]) -> Option<Flow> {
    const ADDRESSES: u16 = 1;
    const PORTS: u16 = 2;
    const SOURCE: u16 = 1;
    const DESTINATION: u16 = 2;
    const NUMBER: u16 = 1;
    const SOURCE_PORT: u16 = 2;
    const DESTINATION_PORT: u16 = 3;
    let side = |tuple: &[u8], address: u16, port: u16| {
        let (_, addresses) = attribute(tuple, ADDRESSES)?;
        let (_, ports) = attribute(tuple, PORTS)?;
        let (_, number) = attribute(ports, NUMBER)?;
        let address: [u8; 4] = attribute(addresses, address)?.1.try_into().ok()?;
        let port: [u8; 2] = attribute(ports, port)?.1.try_into().ok()?;
        (number == [Protocol::Udp.number()])
            .then(|| (Ipv4Addr::from(address), u16::from_be_bytes(port)))
    };
    let (name, original) = attribute(attributes, TUPLE_ORIGINAL)?;
    let (_, reply) = attribute(attributes, TUPLE_REPLY)?;
    Some(Flow {
        to: side(original, DESTINATION, DESTINATION_PORT)?,
        answers: side(reply, SOURCE, SOURCE_PORT)?,
        name: name.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Backend, Target};

    const CLUSTER: Front = Front::Address(Ipv4Addr::new(10, 96, 0, 10), Protocol::Udp, 53);

    fn pod(last: u8) -> (Ipv4Addr, u16) {
        (Ipv4Addr::new(10, 244, 0, last), 5353)
    }

    fn model(pods: &[u8]) -> Model {
        let target = |last: &u8| Target { address: pod(*last).0, port: 5353 };
        let targets = pods.iter().map(target).collect();
        Model { fronts: [(CLUSTER, Backend { targets, ..Backend::default() })].into() }
    }

    #[test]
    fn flows_are_stale_when_their_pod_is_gone() {
        let front = [CLUSTER];
        assert_eq!(changed(Some(&model(&[5, 6])), &model(&[6])), front);
        assert_eq!(changed(Some(&model(&[])), &model(&[6])), front);
        assert_eq!(changed(Some(&model(&[5])), &Model::default()), front);
        assert_eq!(changed(None, &model(&[5])), front);
        assert!(changed(Some(&model(&[5])), &model(&[5, 6])).is_empty());

        let to = (Ipv4Addr::new(10, 96, 0, 10), 53);
        let flow = |to, answers| Flow { to, answers, name: Vec::new() };
        assert!(is_stale(&flow(to, pod(5)), &front, &model(&[6])));
        assert!(!is_stale(&flow(to, pod(6)), &front, &model(&[6])));
        assert!(!is_stale(&flow((to.0, 54), pod(5)), &front, &model(&[6])));
    }

    #[test]
    fn damaged_messages_are_no_flows() {
        assert_eq!(flow(&[]), None);
        assert_eq!(flow(&[255, 255, 1, 0, 0]), None);
        assert_eq!(flow(&[0, 0, 0, 0]), None);
    }
}
