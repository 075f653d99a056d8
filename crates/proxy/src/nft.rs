//! The kernel's packet rules, through nftnl: one table, made anew at the start and then changed, each time in one
//! transaction.
//!
//! The only file that names nftnl, and the only one with `unsafe`: nftnl wraps neither maps nor `numgen`, `jhash` and
//! `fib`, so those are built with its C functions. Every such call gets pointers that live until it returns.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_void};
use std::ptr::NonNull;

use anyhow::Context as _;
use nftnl::expr::Expression;
use nftnl::{Batch, Chain, ChainType, Hook, MsgType, NlMsg, Policy, ProtoFamily, Rule, Table};
use nftnl_sys as sys;

use crate::model::{Front, PodNetwork, Protocol, Target};
use crate::netlink;
use crate::ruleset::{self, Op, Ruleset, Verdict};

const TABLE: &CStr = c"ironclad";
const REFUSE: &CStr = c"refuse";
/// Set on packets whose source is to become the node's.
const MARK: u32 = 0x4000;

// Registers of four bytes; see nftables' `enum nft_registers`.
const R0: u32 = 8;
const R1: u32 = 9;
const R2: u32 = 10;
const VERDICT: u32 = 0;
const JUMP: i32 = -3;

/// A type of keys or values: the number that tools print it by, and its length in the kernel.
#[derive(Debug, Clone, Copy)]
struct Type(u32, u32);

const INTEGER: Type = Type(4, 4);
const ADDRESS: Type = Type(7, 4);
/// Types in one key are numbered by six bits each: address 7, protocol 12, port 13.
const ADDRESS_PROTOCOL_PORT: Type = Type(7 << 12 | 12 << 6 | 13, 12);
const PROTOCOL_PORT: Type = Type(12 << 6 | 13, 8);
const ADDRESS_PORT: Type = Type(7 << 6 | 13, 8);
const ADDRESS_ADDRESS: Type = Type(7 << 6 | 7, 8);
const VERDICTS: Type = Type(0xffff_ff00, 16);

/// Flags of a set.
const ANONYMOUS: u32 = 1;
const CONSTANT: u32 = 2;
const MAP: u32 = 8;
const TIMEOUT: u32 = 16;
const DYNAMIC: u32 = 32;

/// Clients remembered in one set; more are sent to pods as well, but not remembered.
const CLIENTS_MAX: u32 = 65_536;

/// An expression by the name the kernel has for it and its attributes.
struct Expr {
    name: &'static CStr,
    numbers: Vec<(u32, u32)>,
    bytes: Vec<(u32, Vec<u8>)>,
    text: Option<(u32, CString)>,
    wide: Option<(u32, u64)>,
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
            if let Some((attribute, number)) = self.wide {
                sys::nftnl_expr_set_u64(expr.as_ptr(), attr(attribute), number);
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
    Expr { name, numbers: numbers.to_vec(), bytes: Vec::new(), text: None, wide: None }
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

/// Looks up the key in the registers from `register` on; passes when it is in the set. A map's value goes to `to`.
fn look_up(set: &Set, register: u32, to: Option<u32>) -> Expr {
    let mut numbers =
        vec![(sys::NFTNL_EXPR_LOOKUP_SREG, register), (sys::NFTNL_EXPR_LOOKUP_SET_ID, set.id)];
    numbers.extend(to.map(|to| (sys::NFTNL_EXPR_LOOKUP_DREG, to)));
    Expr { text: Some((sys::NFTNL_EXPR_LOOKUP_SET, set.name.clone())), ..expr(c"lookup", &numbers) }
}

/// Remembers the client in a set, from now on for its time.
fn remember(set: &Set, register: u32) -> Expr {
    const UPDATE: u32 = 1;
    let numbers = [
        (sys::NFTNL_EXPR_DYNSET_SREG_KEY, register),
        (sys::NFTNL_EXPR_DYNSET_OP, UPDATE),
        (sys::NFTNL_EXPR_DYNSET_SET_ID, set.id),
    ];
    Expr {
        text: Some((sys::NFTNL_EXPR_DYNSET_SET_NAME, set.name.clone())),
        wide: Some((sys::NFTNL_EXPR_DYNSET_TIMEOUT, u64::from(set.timeout_s) * 1000)),
        ..expr(c"dynset", &numbers)
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

/// What is found under a key.
#[derive(Clone)]
enum Value {
    None,
    Jump(CString),
    Bytes(Vec<u8>),
}

/// A set, or a map where it has values.
#[derive(Clone)]
struct Set {
    name: CString,
    /// Stands for the name where the kernel has yet to give one.
    id: u32,
    flags: u32,
    key: Type,
    value: Option<Type>,
    timeout_s: u32,
}

/// What a message does with a set.
enum Part<'a> {
    New,
    Remove,
    Put(&'a [(Vec<u8>, Value)]),
    Take(&'a [(Vec<u8>, Value)]),
}

struct SetMessage<'a>(&'a Set, Part<'a>);

impl Set {
    fn fixed(name: &CStr, id: u32, key: Type, value: Option<Type>) -> Self {
        let flags = if value.is_some() { MAP } else { 0 };
        Self { name: name.to_owned(), id, flags, key, value, timeout_s: 0 }
    }

    /// Where fronts are looked up: addresses or the node's ports, those that are served or those that are not.
    fn fronts(addresses: bool, served: bool) -> Self {
        let (name, id) = match (addresses, served) {
            (true, true) => (c"services", 1),
            (false, true) => (c"node-ports", 2),
            (true, false) => (c"unserved", 3),
            (false, false) => (c"unserved-ports", 4),
        };
        let key = if addresses { ADDRESS_PROTOCOL_PORT } else { PROTOCOL_PORT };
        Self::fixed(name, id, key, Some(VERDICTS))
    }

    fn of(front: &Front, verdict: &Verdict) -> Self {
        let served = matches!(verdict, Verdict::Chain(_));
        Self::fronts(matches!(front, Front::Address(..)), served)
    }

    fn loops() -> Self {
        Self::fixed(c"loops", 5, ADDRESS_ADDRESS, None)
    }

    fn clients(name: &str, timeout_s: u32, id: u32) -> anyhow::Result<Self> {
        let name = CString::new(name).context("name of a set")?;
        Ok(Self { name, id, flags: TIMEOUT | DYNAMIC, key: ADDRESS, value: None, timeout_s })
    }

    /// From a number to a target; made for one rule and gone with it.
    fn targets(id: u32) -> Self {
        let flags = ANONYMOUS | CONSTANT | MAP;
        let (key, value) = (INTEGER, Some(ADDRESS_PORT));
        Self { name: c"__map%d".to_owned(), id, flags, key, value, timeout_s: 0 }
    }

    fn raw(&self, part: &Part<'_>) -> *mut sys::nftnl_set {
        // SAFETY: all names end in NUL and are copied.
        unsafe {
            let set = sys::nftnl_set_alloc();
            assert!(!set.is_null(), "out of memory");
            let number = |attribute: u32, value: u32| {
                sys::nftnl_set_set_u32(set, attr(attribute), value);
            };
            sys::nftnl_set_set_str(set, attr(sys::NFTNL_SET_TABLE), TABLE.as_ptr());
            sys::nftnl_set_set_str(set, attr(sys::NFTNL_SET_NAME), self.name.as_ptr());
            number(sys::NFTNL_SET_FAMILY, ProtoFamily::Ipv4 as u32);
            if matches!(part, Part::Remove) {
                return set;
            }
            number(sys::NFTNL_SET_ID, self.id);
            number(sys::NFTNL_SET_FLAGS, self.flags);
            number(sys::NFTNL_SET_KEY_TYPE, self.key.0);
            number(sys::NFTNL_SET_KEY_LEN, self.key.1);
            if let Some(value) = self.value {
                number(sys::NFTNL_SET_DATA_TYPE, value.0);
                number(sys::NFTNL_SET_DATA_LEN, value.1);
            }
            if self.timeout_s > 0 {
                number(sys::NFTNL_SET_DESC_SIZE, CLIENTS_MAX);
                let timeout_ms = u64::from(self.timeout_s) * 1000;
                sys::nftnl_set_set_u64(set, attr(sys::NFTNL_SET_TIMEOUT), timeout_ms);
            }
            if let Part::Put(elements) | Part::Take(elements) = part {
                for (key, value) in *elements {
                    // What is taken out is known by its key alone.
                    let value = if matches!(part, Part::Put(_)) { value } else { &Value::None };
                    sys::nftnl_set_elem_add(set, raw_element(key, value));
                }
            }
            set
        }
    }
}

fn raw_element(key: &[u8], value: &Value) -> *mut sys::nftnl_set_elem {
    // SAFETY: nftnl copies keys, values and names; the element passes to the set that it is added to.
    unsafe {
        let element = sys::nftnl_set_elem_alloc();
        assert!(!element.is_null(), "out of memory");
        let bytes = |attribute: u32, bytes: &[u8]| {
            let length = u32::try_from(bytes.len()).unwrap_or(0);
            let data = bytes.as_ptr().cast::<c_void>();
            sys::nftnl_set_elem_set(element, attr(attribute), data, length);
        };
        bytes(sys::NFTNL_SET_ELEM_KEY, key);
        match value {
            Value::None => {}
            Value::Bytes(value) => bytes(sys::NFTNL_SET_ELEM_DATA, value),
            Value::Jump(chain) => {
                let verdict = attr(sys::NFTNL_SET_ELEM_VERDICT);
                sys::nftnl_set_elem_set_u32(element, verdict, JUMP.cast_unsigned());
                let name = attr(sys::NFTNL_SET_ELEM_CHAIN);
                sys::nftnl_set_elem_set_str(element, name, chain.as_ptr());
            }
        }
        element
    }
}

// SAFETY: `write` fills the buffer by nftnl's own functions, which stay within a message's maximum size; callers
// keep the number of elements of one message below what fits.
unsafe impl NlMsg for SetMessage<'_> {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, _: MsgType) {
        let Self(set, part) = self;
        let (kind, flags) = match part {
            Part::New => (9, libc::NLM_F_CREATE),
            Part::Remove => (11, 0),
            Part::Put(_) => (12, libc::NLM_F_CREATE),
            Part::Take(_) => (14, 0),
        };
        let flags = u16::try_from(flags | libc::NLM_F_ACK).unwrap_or(0);
        let raw = set.raw(part);
        // SAFETY: the buffer is the batch's, of the maximum size of a message; the set lives until it is freed here.
        unsafe {
            let family = ProtoFamily::Ipv4 as u16;
            let header = sys::nftnl_nlmsg_build_hdr(buffer.cast(), kind, family, flags, sequence);
            if matches!(part, Part::New | Part::Remove) {
                sys::nftnl_set_nlmsg_build_payload(header, raw);
            } else {
                sys::nftnl_set_elems_nlmsg_build_payload(header, raw);
            }
            sys::nftnl_set_free(raw);
        }
    }
}

/// Elements of one message: what a page of the batch holds with room to spare.
const ELEMENTS_PER_MESSAGE: usize = 200;

fn add_rule(batch: &mut Batch, chain: &Chain<'_>, expressions: impl IntoIterator<Item = Expr>) {
    let mut rule = Rule::new(chain);
    for expression in expressions {
        rule.add_expr(&expression);
    }
    batch.add(&rule, MsgType::Add);
}

/// A key as the map has it: each part fills whole registers.
fn key(front: &Front) -> Vec<u8> {
    let part = |protocol: Protocol, port: u16| {
        let [high, low] = port.to_be_bytes();
        [protocol.number(), 0, 0, 0, high, low, 0, 0]
    };
    match front {
        Front::Address(address, protocol, port) => {
            [&address.octets()[..], &part(*protocol, *port)].concat()
        }
        Front::NodePort(protocol, port) => part(*protocol, *port).to_vec(),
    }
}

/// One transaction in the making.
struct Writer<'a> {
    batch: Batch,
    table: &'a Table,
    pods: PodNetwork,
    /// Ids of sets made in this transaction.
    next_id: u32,
}

/// Replaces all our rules by `rules`, in one transaction.
///
/// # Errors
/// When the kernel refuses, with the errno it gave.
pub fn rebuild(rules: &Ruleset, pods: PodNetwork) -> anyhow::Result<()> {
    let table = Table::new(TABLE, ProtoFamily::Ipv4);
    let mut writer = Writer::new(&table, pods);
    // Adding first makes the deletion succeed where there was none.
    writer.batch.add(&table, MsgType::Add);
    writer.batch.add(&table, MsgType::Del);
    writer.batch.add(&table, MsgType::Add);
    let both = [true, false];
    let fronts = both.iter().flat_map(|addresses| both.map(|s| Set::fronts(*addresses, s)));
    for set in fronts.chain([Set::loops()]) {
        writer.set(&set, Part::New);
    }
    add_hooks(&mut writer.batch, &table);
    add_masquerade(&mut writer.batch, &table, pods);
    add_refusals(&mut writer.batch, &table);
    for op in &ruleset::diff(&Ruleset::default(), rules) {
        writer.write(op)?;
    }
    send(&writer.batch.finalize())
}

/// Changes our rules, in one transaction.
///
/// # Errors
/// When the kernel refuses, with the errno it gave; nothing is changed then.
pub fn apply(ops: &[Op], pods: PodNetwork) -> anyhow::Result<()> {
    if ops.is_empty() {
        return Ok(());
    }
    let table = Table::new(TABLE, ProtoFamily::Ipv4);
    let mut writer = Writer::new(&table, pods);
    for op in ops {
        writer.write(op)?;
    }
    send(&writer.batch.finalize())
}

impl<'a> Writer<'a> {
    fn new(table: &'a Table, pods: PodNetwork) -> Self {
        Self { batch: Batch::new(), table, pods, next_id: 100 }
    }

    fn id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id
    }

    fn set(&mut self, set: &Set, part: Part<'_>) {
        self.batch.add(&SetMessage(set, part), MsgType::Add);
    }

    fn write(&mut self, op: &Op) -> anyhow::Result<()> {
        let named = |name: &str| CString::new(name).context("name of a chain");
        match op {
            Op::AddSet(name, timeout_s) => {
                let set = Set::clients(name, *timeout_s, self.id())?;
                self.set(&set, Part::New);
            }
            Op::RemoveSet(name) => self.set(&Set::clients(name, 0, 0)?, Part::Remove),
            Op::AddChain(name) => {
                self.batch.add(&Chain::new(named(name)?.as_c_str(), self.table), MsgType::Add);
            }
            Op::RemoveChain(name) => {
                self.batch.add(&Chain::new(named(name)?.as_c_str(), self.table), MsgType::Del);
            }
            Op::Empty(name) => {
                // Deleting a rule without saying which means all of the chain.
                let chain = Chain::new(named(name)?.as_c_str(), self.table);
                self.batch.add(&Rule::new(&chain), MsgType::Del);
            }
            Op::Fill(name, steps) => {
                let chain = Chain::new(named(name)?.as_c_str(), self.table);
                for step in steps {
                    self.step(&chain, step)?;
                }
            }
            Op::AddVerdict(front, verdict) => {
                let chain = match verdict {
                    Verdict::Chain(name) => named(name)?,
                    Verdict::Refuse => REFUSE.to_owned(),
                };
                let element = [(key(front), Value::Jump(chain))];
                self.set(&Set::of(front, verdict), Part::Put(&element));
            }
            Op::RemoveVerdict(front, verdict) => {
                let element = [(key(front), Value::None)];
                self.set(&Set::of(front, verdict), Part::Take(&element));
            }
            Op::AddLoop(pod) => {
                self.set(&Set::loops(), Part::Put(&[(pod.octets().repeat(2), Value::None)]));
            }
            Op::RemoveLoop(pod) => {
                self.set(&Set::loops(), Part::Take(&[(pod.octets().repeat(2), Value::None)]));
            }
        }
        Ok(())
    }

    fn step(&mut self, chain: &Chain<'_>, step: &ruleset::Rule) -> anyhow::Result<()> {
        let set_mark = || [immediate(&MARK.to_ne_bytes(), R0), mark(R0, true)];
        let mut rule: Vec<Expr> = Vec::new();
        match step {
            ruleset::Rule::Mark => rule.extend(set_mark()),
            ruleset::Rule::MarkOutsiders => {
                let (bits, base) = (self.pods.bits(), self.pods.base.octets());
                rule.extend([source(R0), mask(R0, bits), compare(R0, &base, true)]);
                rule.extend(set_mark());
            }
            ruleset::Rule::Again { set, timeout_s, target } => {
                let set = Set::clients(set, *timeout_s, 0)?;
                rule.extend([source(R0), look_up(&set, R0, None), remember(&set, R0)]);
                rule.extend(send_to(target));
            }
            ruleset::Rule::Begin { set, timeout_s, one_in, target } => {
                if *one_in > 1 {
                    let zero = 0_u32.to_ne_bytes();
                    rule.extend([random(*one_in, R0), compare(R0, &zero, false)]);
                }
                let set = Set::clients(set, *timeout_s, 0)?;
                rule.extend([source(R0), remember(&set, R0)]);
                rule.extend(send_to(target));
            }
            ruleset::Rule::Any(targets) => {
                if let [target] = targets.as_slice() {
                    rule.extend(send_to(target));
                } else {
                    let set = self.targets(targets);
                    let count = u32::try_from(targets.len()).unwrap_or(u32::MAX);
                    rule.extend([random(count, R0), look_up(&set, R0, Some(R0))]);
                    rule.push(new_destination());
                }
            }
        }
        add_rule(&mut self.batch, chain, rule);
        Ok(())
    }

    /// A map from 0, 1, ... to the targets.
    fn targets(&mut self, targets: &[Target]) -> Set {
        let set = Set::targets(self.id());
        self.set(&set, Part::New);
        let element = |(index, target): (u32, &Target)| {
            let mut value = target.address.octets().to_vec();
            value.extend_from_slice(&target.port.to_be_bytes());
            value.extend_from_slice(&[0, 0]);
            (index.to_ne_bytes().to_vec(), Value::Bytes(value))
        };
        let elements: Vec<_> = (0_u32..).zip(targets).map(element).collect();
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.set(&set, Part::Put(chunk));
        }
        set
    }
}

fn send_to(target: &Target) -> [Expr; 3] {
    let address = immediate(&target.address.octets(), R0);
    [address, immediate(&target.port.to_be_bytes(), R1), new_destination()]
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
        add_look_ups(batch, &chain, true);
    }
}

/// The rules that look a packet's destination up, as an address and as a port of this machine.
fn add_look_ups(batch: &mut Batch, chain: &Chain<'_>, served: bool) {
    let look_up = |addresses: bool| look_up(&Set::fronts(addresses, served), R0, Some(VERDICT));
    let address = [destination(R0), protocol(R1), destination_port(R2), look_up(true)];
    add_rule(batch, chain, address);
    let port = [protocol(R0), destination_port(R1), look_up(false)];
    add_rule(batch, chain, to_this_machine().into_iter().chain(port));
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
    // A pod that reaches itself through its Service must see the answer come from there.
    let own = [source(R0), destination(R1), look_up(&Set::loops(), R0, None), masquerade()];
    add_rule(batch, &chain, own);
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
fn add_refusals(batch: &mut Batch, table: &Table) {
    const FILTER: i32 = 0;
    let refusals = Chain::new(REFUSE, table);
    batch.add(&refusals, MsgType::Add);
    let tcp = [protocol(R0), compare(R0, &[Protocol::Tcp.number()], false), refuse(true)];
    add_rule(batch, &refusals, tcp);
    add_rule(batch, &refusals, [refuse(false)]);
    for (name, hook) in [
        (c"filter-forward", Hook::Forward),
        (c"filter-output", Hook::Out),
        (c"filter-input", Hook::In),
    ] {
        let mut chain = Chain::new(name, table);
        chain.set_hook(hook, FILTER);
        chain.set_policy(Policy::Accept);
        batch.add(&chain, MsgType::Add);
        add_look_ups(batch, &chain, false);
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
    let mut whole = Vec::new();
    for page in batch {
        whole.extend_from_slice(page);
    }
    let count = batch.sequence_numbers().len();
    netlink::acknowledged(&netlink::ask(&whole, count)?, count)
}
