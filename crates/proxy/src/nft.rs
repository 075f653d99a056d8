//! The kernel's packet rules, through nftnl: one table, replaced as a whole in one transaction.
//!
//! The only file that names nftnl, and the only one with `unsafe`: nftnl wraps neither maps nor `numgen`, `jhash` and
//! `fib`, so those are built with its C functions. Every such call gets pointers that live until it returns.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_void};
use std::net::Ipv4Addr;
use std::ptr::NonNull;
use std::time::Duration;

use anyhow::{Context as _, bail};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nftnl::expr::Expression;
use nftnl::{Batch, Chain, ChainType, Hook, MsgType, NlMsg, Policy, ProtoFamily, Rule, Table};
use nftnl_sys as sys;

use crate::model::{Backend, Front, Model, Protocol, Target};

const TABLE: &CStr = c"ironclad";
const SERVICES: &CStr = c"services";
const NODE_PORTS: &CStr = c"node-ports";
/// Set on packets whose source is to become the node's.
const MARK: u32 = 0x4000;
/// What the kernel may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

// Registers of four bytes; see nftables' `enum nft_registers`.
const R0: u32 = 8;
const R1: u32 = 9;
const R2: u32 = 10;
const VERDICT: u32 = 0;

const JUMP: i32 = -3;

/// The data type "verdict" of a map.
const TYPE_VERDICT: u32 = 0xffff_ff00;
const MAP: u32 = 8;

/// An expression by the name the kernel has for it and its attributes.
struct Expr {
    name: &'static CStr,
    numbers: Vec<(u32, u32)>,
    bytes: Vec<(u32, Vec<u8>)>,
    text: Option<(u32, CString)>,
}

impl Expression for Expr {
    fn to_expr(&self, _: &Rule) -> NonNull<sys::nftnl_expr> {
        // SAFETY: the name ends in NUL; nftnl copies names, numbers and data, so nothing is kept past the calls.
        unsafe {
            let expr = NonNull::new(sys::nftnl_expr_alloc(self.name.as_ptr()))
                .expect("nftnl allocates expressions it knows by name");
            for (attribute, number) in &self.numbers {
                sys::nftnl_expr_set_u32(expr.as_ptr(), attr(*attribute), *number);
            }
            for (attribute, bytes) in &self.bytes {
                let length = u32::try_from(bytes.len()).unwrap_or(0);
                let data = bytes.as_ptr().cast::<c_void>();
                sys::nftnl_expr_set(expr.as_ptr(), attr(*attribute), data, length);
            }
            if let Some((attribute, text)) = &self.text {
                sys::nftnl_expr_set_str(expr.as_ptr(), attr(*attribute), text.as_ptr());
            }
            expr
        }
    }
}

fn attr(number: u32) -> u16 {
    // nftnl numbers attributes from 0 to a dozen.
    u16::try_from(number).unwrap_or(u16::MAX)
}

fn expr(name: &'static CStr, numbers: &[(u32, u32)]) -> Expr {
    Expr { name, numbers: numbers.to_vec(), bytes: Vec::new(), text: None }
}

/// Loads bytes of the network (1) or transport (2) header.
fn payload(base: u32, offset: u32, length: u32, register: u32) -> Expr {
    expr(
        c"payload",
        &[
            (sys::NFTNL_EXPR_PAYLOAD_BASE, base),
            (sys::NFTNL_EXPR_PAYLOAD_OFFSET, offset),
            (sys::NFTNL_EXPR_PAYLOAD_LEN, length),
            (sys::NFTNL_EXPR_PAYLOAD_DREG, register),
        ],
    )
}

const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

fn source(register: u32) -> Expr {
    payload(NETWORK, 12, 4, register)
}

fn destination(register: u32) -> Expr {
    payload(NETWORK, 16, 4, register)
}

fn destination_port(register: u32) -> Expr {
    payload(TRANSPORT, 2, 2, register)
}

/// Loads the transport protocol (`meta l4proto`).
fn protocol(register: u32) -> Expr {
    const L4PROTO: u32 = 16;
    expr(c"meta", &[(sys::NFTNL_EXPR_META_KEY, L4PROTO), (sys::NFTNL_EXPR_META_DREG, register)])
}

fn mark(register: u32, set: bool) -> Expr {
    const META_MARK: u32 = 3;
    let side = if set { sys::NFTNL_EXPR_META_SREG } else { sys::NFTNL_EXPR_META_DREG };
    expr(c"meta", &[(sys::NFTNL_EXPR_META_KEY, META_MARK), (side, register)])
}

fn immediate(bytes: &[u8], register: u32) -> Expr {
    Expr {
        bytes: vec![(sys::NFTNL_EXPR_IMM_DATA, bytes.to_vec())],
        ..expr(c"immediate", &[(sys::NFTNL_EXPR_IMM_DREG, register)])
    }
}

/// Passes when the register holds these bytes (or, with `not`, others).
fn compare(register: u32, bytes: &[u8], not: bool) -> Expr {
    Expr {
        bytes: vec![(sys::NFTNL_EXPR_CMP_DATA, bytes.to_vec())],
        ..expr(
            c"cmp",
            &[(sys::NFTNL_EXPR_CMP_SREG, register), (sys::NFTNL_EXPR_CMP_OP, u32::from(not))],
        )
    }
}

fn mask(register: u32, bits: [u8; 4]) -> Expr {
    Expr {
        bytes: vec![
            (sys::NFTNL_EXPR_BITWISE_MASK, bits.to_vec()),
            (sys::NFTNL_EXPR_BITWISE_XOR, vec![0; 4]),
        ],
        ..expr(
            c"bitwise",
            &[
                (sys::NFTNL_EXPR_BITWISE_SREG, register),
                (sys::NFTNL_EXPR_BITWISE_DREG, register),
                (sys::NFTNL_EXPR_BITWISE_LEN, 4),
            ],
        )
    }
}

/// Looks the key from `register` on up in a verdict map, and does what it says.
fn look_up(map: &CStr, register: u32) -> Expr {
    Expr {
        text: Some((sys::NFTNL_EXPR_LOOKUP_SET, map.to_owned())),
        ..expr(
            c"lookup",
            &[(sys::NFTNL_EXPR_LOOKUP_SREG, register), (sys::NFTNL_EXPR_LOOKUP_DREG, VERDICT)],
        )
    }
}

/// A random number below `modulus`.
fn random(modulus: u32, register: u32) -> Expr {
    const RANDOM: u32 = 1;
    expr(
        c"numgen",
        &[
            (sys::NFTNL_EXPR_NG_DREG, register),
            (sys::NFTNL_EXPR_NG_MODULUS, modulus),
            (sys::NFTNL_EXPR_NG_TYPE, RANDOM),
        ],
    )
}

/// A number below `modulus` that is always the same for the same client.
fn hash(modulus: u32, from: u32, register: u32) -> Expr {
    expr(
        c"hash",
        &[
            (sys::NFTNL_EXPR_HASH_SREG, from),
            (sys::NFTNL_EXPR_HASH_DREG, register),
            (sys::NFTNL_EXPR_HASH_LEN, 4),
            (sys::NFTNL_EXPR_HASH_MODULUS, modulus),
            (sys::NFTNL_EXPR_HASH_SEED, 0x0069_726f),
        ],
    )
}

/// Whether the destination is one of the machine's own addresses.
fn to_this_machine() -> [Expr; 2] {
    const ADDRESS_TYPE: u32 = 3;
    const DESTINATION: u32 = 2;
    const LOCAL: u32 = 2;
    let fib = expr(
        c"fib",
        &[
            (sys::NFTNL_EXPR_FIB_RESULT, ADDRESS_TYPE),
            (sys::NFTNL_EXPR_FIB_DREG, R0),
            (sys::NFTNL_EXPR_FIB_FLAGS, DESTINATION),
        ],
    );
    [fib, compare(R0, &LOCAL.to_ne_bytes(), false)]
}

fn new_destination() -> Expr {
    const DNAT: u32 = 1;
    const IPV4: u32 = 2;
    expr(
        c"nat",
        &[
            (sys::NFTNL_EXPR_NAT_TYPE, DNAT),
            (sys::NFTNL_EXPR_NAT_FAMILY, IPV4),
            (sys::NFTNL_EXPR_NAT_REG_ADDR_MIN, R0),
            (sys::NFTNL_EXPR_NAT_REG_PROTO_MIN, R1),
        ],
    )
}

/// Answers that nobody listens: a reset for TCP, an ICMP message for the rest.
fn refuse(tcp: bool) -> Expr {
    const UNREACHABLE: u32 = 0;
    const RESET: u32 = 1;
    const PORT: u32 = 3;
    let kind = if tcp { RESET } else { UNREACHABLE };
    expr(c"reject", &[(sys::NFTNL_EXPR_REJECT_TYPE, kind), (sys::NFTNL_EXPR_REJECT_CODE, PORT)])
}

/// A verdict map and its elements: key to the chain that is jumped to.
struct VerdictMap {
    name: &'static CStr,
    key_length: u32,
    id: u32,
    elements: Vec<(Vec<u8>, CString)>,
    /// Whether the elements are written, or the map itself.
    fill: bool,
}

impl VerdictMap {
    fn raw(&self) -> *mut sys::nftnl_set {
        // SAFETY: all names end in NUL and are copied, as are keys; the set owns the elements added to it.
        unsafe {
            let set = sys::nftnl_set_alloc();
            assert!(!set.is_null(), "out of memory");
            let number = |attribute: u32, value: u32| {
                sys::nftnl_set_set_u32(set, attr(attribute), value);
            };
            sys::nftnl_set_set_str(set, attr(sys::NFTNL_SET_TABLE), TABLE.as_ptr());
            sys::nftnl_set_set_str(set, attr(sys::NFTNL_SET_NAME), self.name.as_ptr());
            number(sys::NFTNL_SET_FAMILY, ProtoFamily::Ipv4 as u32);
            number(sys::NFTNL_SET_ID, self.id);
            number(sys::NFTNL_SET_FLAGS, MAP);
            // Only tools that print the key look at its type.
            number(sys::NFTNL_SET_KEY_TYPE, 0);
            number(sys::NFTNL_SET_KEY_LEN, self.key_length);
            number(sys::NFTNL_SET_DATA_TYPE, TYPE_VERDICT);
            number(sys::NFTNL_SET_DATA_LEN, 16);
            if self.fill {
                for (key, chain) in &self.elements {
                    let element = sys::nftnl_set_elem_alloc();
                    assert!(!element.is_null(), "out of memory");
                    let data = key.as_ptr().cast::<c_void>();
                    sys::nftnl_set_elem_set(
                        element,
                        attr(sys::NFTNL_SET_ELEM_KEY),
                        data,
                        self.key_length,
                    );
                    sys::nftnl_set_elem_set_u32(
                        element,
                        attr(sys::NFTNL_SET_ELEM_VERDICT),
                        JUMP.cast_unsigned(),
                    );
                    sys::nftnl_set_elem_set_str(
                        element,
                        attr(sys::NFTNL_SET_ELEM_CHAIN),
                        chain.as_ptr(),
                    );
                    sys::nftnl_set_elem_add(set, element);
                }
            }
            set
        }
    }
}

// SAFETY: `write` fills the buffer by nftnl's own functions, which stay within a message's maximum size; callers
// keep the number of elements of one message below what fits.
unsafe impl NlMsg for VerdictMap {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, _: MsgType) {
        const NEW_SET: u16 = 9;
        const NEW_ELEMENTS: u16 = 12;
        let kind = if self.fill { NEW_ELEMENTS } else { NEW_SET };
        let flags = u16::try_from(libc::NLM_F_CREATE | libc::NLM_F_ACK).unwrap_or(0);
        let set = self.raw();
        // SAFETY: the buffer is the batch's, of the maximum size of a message; the set lives until it is freed here.
        unsafe {
            let header = sys::nftnl_nlmsg_build_hdr(
                buffer.cast(),
                kind,
                ProtoFamily::Ipv4 as u16,
                flags,
                sequence,
            );
            if self.fill {
                sys::nftnl_set_elems_nlmsg_build_payload(header, set);
            } else {
                sys::nftnl_set_nlmsg_build_payload(header, set);
            }
            sys::nftnl_set_free(set);
        }
    }
}

/// Elements of one message: what a page of the batch holds with room to spare.
const ELEMENTS_PER_MESSAGE: usize = 200;

fn add_map(batch: &mut Batch, map: VerdictMap) {
    let (name, key_length, id) = (map.name, map.key_length, map.id);
    batch.add(&VerdictMap { fill: false, elements: Vec::new(), ..map }, MsgType::Add);
    for chunk in map.elements.chunks(ELEMENTS_PER_MESSAGE) {
        let part = VerdictMap { name, key_length, id, elements: chunk.to_vec(), fill: true };
        batch.add(&part, MsgType::Add);
    }
}

/// The part of the network this node keeps rules for.
#[derive(Debug, Clone, Copy)]
pub struct PodNetwork {
    /// Base of the cluster's pod range.
    pub base: Ipv4Addr,
    /// Bits of its prefix.
    pub prefix: u8,
}

impl PodNetwork {
    fn bits(self) -> [u8; 4] {
        (u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)).to_be_bytes()
    }
}

fn add_rule(batch: &mut Batch, chain: &Chain<'_>, expressions: impl IntoIterator<Item = Expr>) {
    let mut rule = Rule::new(chain);
    for expression in expressions {
        rule.add_expr(&expression);
    }
    batch.add(&rule, MsgType::Add);
}

/// A key as the map has it: each part fills whole registers.
fn key(front: &Front) -> Vec<u8> {
    let part = |protocol: u8, port: u16| {
        let port = port.to_be_bytes();
        [protocol, 0, 0, 0, port[0], port[1], 0, 0]
    };
    match front {
        Front::Address(address, protocol, port) => {
            let mut key = address.octets().to_vec();
            key.extend_from_slice(&part(protocol.number(), *port));
            key
        }
        Front::NodePort(protocol, port) => part(protocol.number(), *port).to_vec(),
    }
}

fn chain_name(front: &Front) -> String {
    match front {
        Front::Address(address, protocol, port) => {
            format!("svc-{address}-{}-{port}", protocol.number())
        }
        Front::NodePort(protocol, port) => format!("port-{}-{port}", protocol.number()),
    }
}

/// Replaces all our rules by those of `model`, in one transaction.
///
/// # Errors
/// When the kernel refuses, with the errno it gave.
pub fn apply(model: &Model, pods: PodNetwork) -> anyhow::Result<()> {
    let mut batch = Batch::new();
    let table = Table::new(TABLE, ProtoFamily::Ipv4);
    // Adding first makes the deletion succeed where there was none.
    batch.add(&table, MsgType::Add);
    batch.add(&table, MsgType::Del);
    batch.add(&table, MsgType::Add);
    let mut services = Vec::new();
    let mut node_ports = Vec::new();
    let mut unserved = Vec::new();
    for (front, backend) in &model.fronts {
        let name = CString::new(chain_name(front)).context("chain name")?;
        if backend.targets.is_empty() {
            unserved.push((key(front), *front));
            continue;
        }
        add_service(&mut batch, &table, &name, backend);
        match front {
            Front::Address(..) => services.push((key(front), name)),
            Front::NodePort(..) => node_ports.push((key(front), name)),
        }
    }
    let map =
        |name, key_length, id, elements| VerdictMap { name, key_length, id, elements, fill: false };
    add_map(&mut batch, map(SERVICES, 12, 1, services));
    add_map(&mut batch, map(NODE_PORTS, 8, 2, node_ports));
    add_hooks(&mut batch, &table);
    add_masquerade(&mut batch, &table, pods);
    add_refusals(&mut batch, &table, &unserved);
    send(&batch.finalize())
}

/// The chain of one front: one rule for each target, chosen by lot or by the client's address.
fn add_service(batch: &mut Batch, table: &Table, name: &CStr, backend: &Backend) {
    let chain = Chain::new(name, table);
    batch.add(&chain, MsgType::Add);
    if backend.masquerade {
        let set = [immediate(&MARK.to_ne_bytes(), R0), mark(R0, true)];
        add_rule(batch, &chain, set);
    }
    for Target { address, .. } in &backend.targets {
        // A pod that reaches itself through its Service must see the answer come from there.
        let own = [
            source(R0),
            compare(R0, &address.octets(), false),
            immediate(&MARK.to_ne_bytes(), R1),
            mark(R1, true),
        ];
        if backend.targets.len() == 1 {
            add_rule(batch, &chain, own);
        }
    }
    let count = u32::try_from(backend.targets.len()).unwrap_or(u32::MAX);
    for (index, target) in (0_u32..).zip(&backend.targets) {
        let mut rule = Vec::new();
        if backend.affinity {
            rule.extend([
                source(R0),
                hash(count, R0, R1),
                compare(R1, &index.to_ne_bytes(), false),
            ]);
        } else if index + 1 < count {
            // One in as many as are left, so that each gets the same share.
            rule.extend([random(count - index, R0), compare(R0, &0_u32.to_ne_bytes(), false)]);
        }
        rule.push(immediate(&target.address.octets(), R0));
        rule.push(immediate(&target.port.to_be_bytes(), R1));
        rule.push(new_destination());
        add_rule(batch, &chain, rule);
    }
}

/// Where packets meet the maps: on arrival, and when this machine itself sends them.
fn add_hooks(batch: &mut Batch, table: &Table) {
    const DESTINATION_NAT: i32 = -100;
    for (name, hook) in [(c"prerouting", Hook::PreRouting), (c"output", Hook::Out)] {
        let mut chain = Chain::new(name, table);
        chain.set_type(ChainType::Nat);
        chain.set_hook(hook, DESTINATION_NAT);
        chain.set_policy(Policy::Accept);
        batch.add(&chain, MsgType::Add);
        let services = [destination(R0), protocol(R1), destination_port(R2), look_up(SERVICES, R0)];
        add_rule(batch, &chain, services);
        let ports = [protocol(R0), destination_port(R1), look_up(NODE_PORTS, R0)];
        add_rule(batch, &chain, to_this_machine().into_iter().chain(ports));
    }
}

/// Gives the node's address to marked packets, and to those that pods send out of the cluster.
fn add_masquerade(batch: &mut Batch, table: &Table, pods: PodNetwork) {
    const SOURCE_NAT: i32 = 100;
    let mut chain = Chain::new(c"postrouting", table);
    chain.set_type(ChainType::Nat);
    chain.set_hook(Hook::PostRouting, SOURCE_NAT);
    chain.set_policy(Policy::Accept);
    batch.add(&chain, MsgType::Add);
    let masquerade = || expr(c"masq", &[]);
    let marked = [
        mark(R0, false),
        mask(R0, MARK.to_ne_bytes()),
        compare(R0, &0_u32.to_ne_bytes(), true),
        masquerade(),
    ];
    add_rule(batch, &chain, marked);
    let inside = |load: fn(u32) -> Expr, not: bool| {
        [load(R0), mask(R0, pods.bits()), compare(R0, &pods.base.octets(), not)]
    };
    let mut leaving: Vec<Expr> = Vec::new();
    leaving.extend(inside(source, false));
    leaving.extend(inside(destination, true));
    leaving.push(masquerade());
    add_rule(batch, &chain, leaving);
}

/// Refuses connections to Services that nobody serves.
fn add_refusals(batch: &mut Batch, table: &Table, unserved: &[(Vec<u8>, Front)]) {
    const FILTER: i32 = 0;
    let name = c"refuse";
    let refusals = Chain::new(name, table);
    batch.add(&refusals, MsgType::Add);
    let tcp = [protocol(R0), compare(R0, &[Protocol::Tcp.number()], false), refuse(true)];
    add_rule(batch, &refusals, tcp);
    add_rule(batch, &refusals, [refuse(false)]);
    let of = |address: bool| -> Vec<(Vec<u8>, CString)> {
        let wanted = unserved.iter().filter(|(_, f)| matches!(f, Front::Address(..)) == address);
        wanted.map(|(key, _)| (key.clone(), name.to_owned())).collect()
    };
    let map =
        |name, key_length, id, elements| VerdictMap { name, key_length, id, elements, fill: false };
    let (services, ports) = (c"unserved", c"unserved-ports");
    add_map(batch, map(services, 12, 3, of(true)));
    add_map(batch, map(ports, 8, 4, of(false)));
    for (name, hook) in [
        (c"filter-forward", Hook::Forward),
        (c"filter-output", Hook::Out),
        (c"filter-input", Hook::In),
    ] {
        let mut chain = Chain::new(name, table);
        chain.set_hook(hook, FILTER);
        chain.set_policy(Policy::Accept);
        batch.add(&chain, MsgType::Add);
        let rule = [destination(R0), protocol(R1), destination_port(R2), look_up(services, R0)];
        add_rule(batch, &chain, rule);
        let rule = [protocol(R0), destination_port(R1), look_up(ports, R0)];
        add_rule(batch, &chain, to_this_machine().into_iter().chain(rule));
    }
}

/// Removes all our rules.
///
/// # Errors
/// When the kernel refuses.
pub fn cleanup() -> anyhow::Result<()> {
    let mut batch = Batch::new();
    let table = Table::new(TABLE, ProtoFamily::Ipv4);
    batch.add(&table, MsgType::Add);
    batch.add(&table, MsgType::Del);
    send(&batch.finalize())
}

/// Sends a batch and waits until every message of it is acknowledged.
fn send(batch: &nftnl::FinalizedBatch) -> anyhow::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER).context("open netlink")?;
    socket.bind_auto().context("bind netlink")?;
    let mut whole = Vec::new();
    for page in batch {
        whole.extend_from_slice(page);
    }
    // SAFETY: plain integers for the two options; the descriptor is open as long as the socket.
    unsafe {
        use std::os::fd::AsRawFd as _;
        let size = libc::c_int::try_from(whole.len() + (1 << 20)).unwrap_or(libc::c_int::MAX);
        for option in [libc::SO_SNDBUFFORCE, libc::SO_RCVBUFFORCE] {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const size).cast(),
                libc::socklen_t::try_from(size_of_val(&size)).unwrap_or(4),
            );
        }
        let timeout = libc::timeval {
            tv_sec: libc::time_t::try_from(ANSWER_TIMEOUT.as_secs()).unwrap_or(5),
            tv_usec: 0,
        };
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const timeout).cast(),
            libc::socklen_t::try_from(size_of_val(&timeout)).unwrap_or(16),
        );
    }
    socket.send_to(&whole, &SocketAddr::new(0, 0), 0).context("send rules")?;
    let mut left = batch.sequence_numbers().len();
    while left > 0 {
        let (answer, _) = socket.recv_from_full().context("no answer from nftables")?;
        left = left.saturating_sub(acknowledged(&answer)?);
    }
    Ok(())
}

/// How many messages an answer acknowledges.
fn acknowledged(mut answer: &[u8]) -> anyhow::Result<usize> {
    const HEADER_BYTES: usize = 16;
    const ERROR: u16 = 2;
    let number = |bytes: &[u8], at: usize| -> Option<u32> {
        Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    };
    let mut count = 0;
    while let Some(length) = number(answer, 0).filter(|_| answer.len() >= HEADER_BYTES) {
        let length = usize::try_from(length)?.max(HEADER_BYTES);
        let kind = u16::from_ne_bytes([answer[4], answer[5]]);
        if kind == ERROR {
            let code = number(answer, HEADER_BYTES).map_or(0, u32::cast_signed);
            if code != 0 {
                let message = number(answer, 8).unwrap_or(0);
                let error = std::io::Error::from_raw_os_error(-code);
                bail!("nftables refused message {message} of the batch: {error}");
            }
            count += 1;
        }
        answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(count)
}
