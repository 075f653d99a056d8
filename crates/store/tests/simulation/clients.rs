//! What clients do and remember: puts, reads, swaps, leases, compactions, all of it on few keys.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use store::mvcc::{Op, Reply};
use testkit::history::{Answer, Call, Operation, Stamp};
use testkit::sim::Rng;
use wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use wire::etcdserverpb::request_op::Request as Part;
use wire::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest,
    RangeResponse, RequestOp, TxnRequest,
};

use super::member::{Heard, Request};

const KEYS: [&str; 3] = ["a", "b", "c"];
/// Keys that live with a lease begin so.
const LEASED: &str = "lease-";
/// The fastest clock of a member against the true one.
pub const RATE_PERCENT_MAX: u64 = 110;

/// What a client is doing.
#[derive(Debug, Clone)]
pub enum Deed {
    /// Read, write, remove or swap one key.
    One(&'static str, Call),
    /// Read all keys at once.
    All,
    /// Write two keys in one transaction.
    Both(u64, u64),
    /// Begin a lease.
    Grant(i64, i64),
    /// Write a key that dies with a lease.
    Attach(i64),
    /// Renew it.
    KeepAlive(i64),
    /// Forget history but for so many revisions.
    Compact(i64),
}

/// One lease as its owner knows it.
#[derive(Debug, Clone, Default)]
pub struct Lease {
    /// Its life in seconds.
    pub ttl_s: i64,
    /// When the last call was made that gave it its full life for sure; none if it is not known
    /// to be granted.
    pub renewed: Option<Duration>,
    /// Its key was written.
    pub attached: bool,
    /// When it ended.
    pub ended: Option<Duration>,
}

/// Everything that was seen.
#[derive(Debug, Default)]
pub struct Memory {
    instant: u64,
    value: u64,
    /// By key.
    pub operations: BTreeMap<&'static str, Vec<Operation>>,
    /// Answers with their revisions.
    pub stamps: Vec<Stamp>,
    /// Reads of all keys.
    pub ranges: Vec<RangeResponse>,
    /// By id.
    pub leases: BTreeMap<i64, Lease>,
    /// The newest revision that a client knows.
    pub revision: i64,
    /// When the last write was acknowledged.
    pub last_write: Duration,
    /// The last value seen, for swaps.
    seen: BTreeMap<&'static str, Option<u64>>,
}

/// A call without an answer yet.
#[derive(Debug, Clone)]
pub struct Pending {
    /// Its ticket.
    pub ticket: u64,
    deed: Deed,
    called: u64,
    at: Duration,
}

impl Memory {
    fn instant(&mut self) -> u64 {
        self.instant += 1;
        self.instant
    }

    fn fresh(&mut self) -> u64 {
        self.value += 1;
        self.value
    }

    /// What a client does next; `busy` is false near the end, when leases must be left alone.
    pub fn choose(&mut self, rng: &mut Rng, busy: bool) -> Deed {
        let key = KEYS[rng.place(KEYS.len())];
        let living: Vec<i64> =
            self.leases.iter().filter(|(_, l)| l.renewed.is_some()).map(|(id, _)| *id).collect();
        let lease = rng.pick(&living).copied();
        match (rng.within(0..100), lease) {
            (0..30, _) => Deed::One(key, Call::Get),
            (30..53, _) => Deed::One(key, Call::Put(self.fresh())),
            (53..55, _) => Deed::Compact(0),
            (55..60, _) => Deed::One(key, Call::Delete),
            (60..70, _) => {
                let from = self.seen.get(key).copied().flatten();
                Deed::One(key, Call::Swap(from, self.fresh()))
            }
            (70..75, _) => Deed::Both(self.fresh(), self.fresh()),
            (75..80, _) => Deed::Compact(i64::try_from(rng.within(0..4)).unwrap_or(0)),
            (80..85, _) if busy && living.len() < 4 => {
                let ttl_s = i64::try_from(rng.within(2..4)).unwrap_or(2);
                Deed::Grant(i64::try_from(self.fresh()).unwrap_or(1), ttl_s)
            }
            (85..90, Some(id)) if busy => Deed::Attach(id),
            (90.., Some(id)) if busy => Deed::KeepAlive(id),
            _ => Deed::All,
        }
    }

    /// The call of a deed.
    pub fn call(&mut self, ticket: u64, deed: Deed, at: Duration) -> (Pending, Request) {
        let request = match &deed {
            Deed::One(key, Call::Get) => Request::Range(one(key)),
            Deed::One(key, Call::Put(value)) => Request::Change(Op::Put(put(key, *value))),
            Deed::One(key, Call::Delete) => {
                let key = Bytes::from_static(key.as_bytes());
                Request::Change(Op::Delete(DeleteRangeRequest { key, ..Default::default() }))
            }
            Deed::One(key, Call::Swap(from, to)) => Request::Change(Op::Txn(swap(key, *from, *to))),
            Deed::All => Request::Range(RangeRequest {
                key: "a".into(),
                range_end: "d".into(),
                ..Default::default()
            }),
            Deed::Both(one, two) => {
                let parts = [put("a", *one), put("b", *two)].map(Part::RequestPut);
                let success = parts.map(|part| RequestOp { request: Some(part) }).into();
                Request::Change(Op::Txn(TxnRequest { success, ..Default::default() }))
            }
            Deed::Grant(id, ttl_s) => {
                self.leases.insert(*id, Lease { ttl_s: *ttl_s, ..Lease::default() });
                Request::Change(Op::Grant(LeaseGrantRequest { id: *id, ttl: *ttl_s }))
            }
            Deed::Attach(id) => {
                let key = format!("{LEASED}{id}").into();
                let put = PutRequest { key, lease: *id, ..Default::default() };
                Request::Change(Op::Put(put))
            }
            Deed::KeepAlive(id) => Request::KeepAlive(*id),
            Deed::Compact(kept) => {
                let revision = (self.revision - kept).max(1);
                Request::Change(Op::Compact(CompactionRequest { revision, physical: false }))
            }
        };
        let called = self.instant();
        (Pending { ticket, deed, called, at }, request)
    }

    /// The answer to a call; none if it did not come in time.
    pub fn hear(&mut self, pending: &Pending, heard: Option<Heard>, now: Duration) {
        if matches!(heard, Some(Heard::Refused)) {
            return;
        }
        let answered = self.instant();
        if let Some(Heard::Changed(Ok(reply))) = &heard
            && let Some((revision, wrote)) = written(reply)
        {
            if wrote {
                self.last_write = now;
            }
            self.stamp(pending, answered, revision, wrote);
        }
        if let Some(Heard::Range(Ok(range))) = &heard {
            let revision = range.header.as_ref().map_or(0, |header| header.revision);
            self.stamp(pending, answered, revision, false);
        }
        match (&pending.deed, heard) {
            (Deed::One(key, call), heard) => {
                let answer = heard.and_then(|heard| answer(*call, &heard));
                if let Some(Answer::Found(found)) = answer {
                    self.seen.insert(key, found);
                }
                self.remember(key, pending, *call, answer.map(|answer| (answered, answer)));
            }
            (Deed::Both(one, two), heard) => {
                let answer = heard.map(|_| (answered, Answer::Done));
                self.remember("a", pending, Call::Put(*one), answer);
                self.remember("b", pending, Call::Put(*two), answer);
            }
            (Deed::All, Some(Heard::Range(Ok(range)))) => self.ranges.push(range),
            (Deed::Grant(id, _), Some(Heard::Changed(Ok(_))))
            | (Deed::KeepAlive(id), Some(Heard::Alive(true))) => {
                let lease = self.leases.entry(*id).or_default();
                lease.renewed = lease.renewed.max(Some(pending.at));
            }
            (Deed::Attach(id), Some(Heard::Changed(Ok(_)))) => {
                self.leases.entry(*id).or_default().attached = true;
            }
            _ => {}
        }
    }

    fn remember(
        &mut self,
        key: &'static str,
        pending: &Pending,
        call: Call,
        answered: Option<(u64, Answer)>,
    ) {
        let operation = Operation { called: pending.called, call, answered };
        self.operations.entry(key).or_default().push(operation);
    }

    fn stamp(&mut self, pending: &Pending, answered: u64, revision: i64, wrote: bool) {
        self.revision = self.revision.max(revision);
        self.stamps.push(Stamp { called: pending.called, answered, revision, wrote });
    }
}

impl Lease {
    /// Before this moment it must not end.
    pub fn safe_until(&self) -> Option<Duration> {
        let life = Duration::from_secs(u64::try_from(self.ttl_s).unwrap_or(0));
        let shortest = life * 100 / u32::try_from(RATE_PERCENT_MAX).unwrap_or(100);
        self.renewed.map(|renewed| renewed + shortest)
    }
}

fn one(key: &str) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

fn text(value: u64) -> Bytes {
    value.to_string().into()
}

/// The number that a value says.
pub fn value(bytes: &Bytes) -> Option<u64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

fn put(key: &str, value: u64) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: text(value), ..Default::default() }
}

fn swap(key: &str, from: Option<u64>, to: u64) -> TxnRequest {
    let (target, union) = match from {
        Some(from) => (CompareTarget::Value, TargetUnion::Value(text(from))),
        None => (CompareTarget::Create, TargetUnion::CreateRevision(0)),
    };
    let compare = Compare {
        result: CompareResult::Equal.into(),
        target: target.into(),
        key: key.to_owned().into(),
        target_union: Some(union),
        ..Default::default()
    };
    let success = vec![RequestOp { request: Some(Part::RequestPut(put(key, to))) }];
    TxnRequest { compare: vec![compare], success, ..Default::default() }
}

/// The revision of a reply, and whether the operation made it.
fn written(reply: &Reply) -> Option<(i64, bool)> {
    let (header, wrote) = match reply {
        Reply::Put(put) => (&put.header, true),
        Reply::Delete(delete) => (&delete.header, delete.deleted > 0),
        Reply::Txn(txn) => (&txn.header, txn.succeeded),
        _ => return None,
    };
    Some((header.as_ref()?.revision, wrote))
}

fn answer(call: Call, heard: &Heard) -> Option<Answer> {
    match (call, heard) {
        (Call::Get, Heard::Range(Ok(range))) => {
            Some(Answer::Found(range.kvs.first().and_then(|kv| value(&kv.value))))
        }
        (Call::Swap(..), Heard::Changed(Ok(Reply::Txn(txn)))) => {
            Some(Answer::Swapped(txn.succeeded))
        }
        (_, Heard::Changed(Ok(_))) => Some(Answer::Done),
        _ => None,
    }
}
