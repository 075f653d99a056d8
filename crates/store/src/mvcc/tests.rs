//! The state against a naive model: a list of every change ever made.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use wire::etcdserverpb::compare::{CompareTarget, TargetUnion};
use wire::etcdserverpb::request_op::Request;
use wire::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
    PutRequest, RequestOp, TxnRequest,
};

use super::*;

fn key(n: u8) -> Bytes {
    Bytes::from(vec![b'a' + n])
}

fn put(n: u8, value: u8) -> PutRequest {
    PutRequest { key: key(n), value: vec![value].into(), ..Default::default() }
}

fn delete(from: u8, to: u8) -> DeleteRangeRequest {
    let range_end = if to > from { key(to) } else { Bytes::new() };
    DeleteRangeRequest { key: key(from), range_end, prev_kv: true }
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    Delete(u8, u8),
    /// If the first key has this version, put the second, else delete the third.
    Txn(u8, i64, u8, u8),
    Compact(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6u8, any::<u8>()).prop_map(|(k, v)| Step::Put(k, v)),
        2 => (0..6u8, 0..6u8).prop_map(|(a, b)| Step::Delete(a, b)),
        2 => (0..6u8, 0..3i64, 0..6u8, 0..6u8).prop_map(|(a, n, b, c)| Step::Txn(a, n, b, c)),
        1 => (0..40u8).prop_map(Step::Compact),
    ]
}

fn op(step: &Step) -> Op {
    match *step {
        Step::Put(k, v) => Op::Put(put(k, v)),
        Step::Delete(a, b) => Op::Delete(delete(a, b)),
        Step::Compact(n) => Op::Compact(CompactionRequest { revision: n.into(), physical: false }),
        Step::Txn(a, version, b, c) => {
            let one = |request| vec![RequestOp { request: Some(request) }];
            Op::Txn(TxnRequest {
                compare: vec![Compare {
                    target: CompareTarget::Version.into(),
                    key: key(a),
                    target_union: Some(TargetUnion::Version(version)),
                    ..Default::default()
                }],
                success: one(Request::RequestPut(put(b, 7))),
                failure: one(Request::RequestDeleteRange(delete(c, c))),
            })
        }
    }
}

type Pairs = BTreeMap<u8, (u8, i64, i64, i64)>;

/// Every revision's pairs in full: value, create and mod revision, version.
struct Model {
    revisions: Vec<Pairs>,
    compacted: i64,
}

impl Model {
    fn now(&self) -> Pairs {
        self.revisions.last().cloned().unwrap_or_default()
    }

    fn put(&mut self, k: u8, value: u8) {
        let mut pairs = self.now();
        let main = self.revisions.len() as i64 + 1;
        let (create, version) = pairs.get(&k).map_or((main, 1), |old| (old.1, old.3 + 1));
        pairs.insert(k, (value, create, main, version));
        self.revisions.push(pairs);
    }

    fn delete(&mut self, from: u8, to: u8) {
        let mut pairs = self.now();
        pairs.retain(|k, _| *k < from || *k >= to);
        if pairs != self.now() {
            self.revisions.push(pairs);
        }
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Put(k, v) => self.put(k, v),
            Step::Delete(a, b) => self.delete(a, if b > a { b } else { a + 1 }),
            Step::Txn(a, version, b, c) => {
                if self.now().get(&a).map_or(0, |p| p.3) == version {
                    self.put(b, 7);
                } else {
                    self.delete(c, c + 1);
                }
            }
            Step::Compact(n) => {
                let n = i64::from(n);
                if n > self.compacted && n <= self.revisions.len() as i64 {
                    self.compacted = n;
                }
            }
        }
    }
}

fn all_at(mvcc: &Mvcc, revision: i64) -> Result<Pairs, Error> {
    let everything = Bytes::from_static(&[0]);
    let request = RangeRequest {
        key: everything.clone(),
        range_end: everything,
        revision,
        ..Default::default()
    };
    let kvs = mvcc.range(&(), &request)?.kvs.into_iter();
    Ok(kvs
        .map(|kv| {
            (kv.key[0] - b'a', (kv.value[0], kv.create_revision, kv.mod_revision, kv.version))
        })
        .collect())
}

proptest! {
    #[test]
    fn every_readable_revision_is_what_the_model_says(
        steps in proptest::collection::vec(step(), 1..60)
    ) {
        let mut mvcc = Mvcc::default();
        let mut model = Model { revisions: vec![Pairs::new()], compacted: -1 };
        for step in &steps {
            // The log's bytes say the same as the operation.
            let op = Op::decode(op(step).encode().into()).unwrap();
            mvcc.apply(&op, &());
            model.apply(step);
            prop_assert_eq!(mvcc.revision(), model.revisions.len() as i64);
        }
        for (i, pairs) in model.revisions.iter().enumerate() {
            let revision = i as i64 + 1;
            let read = all_at(&mvcc, revision);
            if revision < model.compacted {
                prop_assert_eq!(read, Err(Error::Compacted));
            } else {
                prop_assert_eq!(&read.unwrap(), pairs);
            }
        }
        let future = mvcc.revision() + 1;
        prop_assert_eq!(all_at(&mvcc, future), Err(Error::FutureRevision));
    }

    #[test]
    fn a_state_loaded_from_its_records_is_the_same(
        steps in proptest::collection::vec(step(), 1..60)
    ) {
        let mut mvcc = Mvcc::default();
        for step in &steps {
            mvcc.apply(&op(step), &());
        }
        let mut loaded = Mvcc::begin(&mvcc.summary());
        mvcc.records(&(), |at, event| {
            let mut bytes = Vec::new();
            record::encode(event, &mut bytes);
            loaded.load(at, &record::decode(bytes.into()).unwrap());
            Ok(())
        }).unwrap();
        prop_assert_eq!(loaded.index(), mvcc.index());
        prop_assert_eq!(loaded.bytes(), mvcc.bytes());
        // Both forget the same when they are compacted later.
        let last = Op::Compact(CompactionRequest { revision: mvcc.revision(), physical: false });
        loaded.apply(&last, &());
        mvcc.apply(&last, &());
        prop_assert_eq!(loaded.index(), mvcc.index());
    }
}

#[test]
fn a_lease_takes_its_keys_along_and_only_those() {
    let mut mvcc = Mvcc::default();
    mvcc.apply(&Op::Grant(LeaseGrantRequest { id: 5, ttl: 9 }), &());
    for n in 0..3 {
        let request = PutRequest { lease: 5, ..put(n, n) };
        mvcc.apply(&Op::Put(request), &());
    }
    mvcc.apply(&Op::Put(put(1, 9)), &()); // not on the lease any more
    let before = mvcc.revision();
    let outcome = mvcc.apply(&Op::Revoke(LeaseRevokeRequest { id: 5 }), &());
    assert_eq!(outcome.changes.unwrap().events.len(), 2);
    assert_eq!(mvcc.revision(), before + 1);
    assert_eq!(all_at(&mvcc, 0).unwrap().keys().collect::<Vec<_>>(), [&1]);
}

#[test]
fn a_txn_that_fails_changes_nothing() {
    let mut mvcc = Mvcc::default();
    let nested = |p| RequestOp { request: Some(Request::RequestPut(p)) };
    let missing = PutRequest { ignore_value: true, value: Bytes::new(), ..put(1, 0) };
    let txn =
        TxnRequest { success: vec![nested(put(0, 1)), nested(missing)], ..Default::default() };
    let outcome = mvcc.apply(&Op::Txn(txn), &());
    assert_eq!(outcome.reply, Err(Error::KeyNotFound));
    assert_eq!((mvcc.revision(), mvcc.index().len()), (1, 0));
}

#[test]
fn a_key_may_be_written_once_per_txn_but_in_either_branch() {
    let p = |n| RequestOp { request: Some(Request::RequestPut(put(n, 0))) };
    let d = |a, b| RequestOp { request: Some(Request::RequestDeleteRange(delete(a, b))) };
    let t = |success, failure| RequestOp {
        request: Some(Request::RequestTxn(TxnRequest { success, failure, ..Default::default() })),
    };
    let check = |success| check::txn(&TxnRequest { success, ..Default::default() });
    assert_eq!(check(vec![p(0), p(0)]), Err(Error::DuplicateKey));
    assert_eq!(check(vec![p(1), d(0, 3)]), Err(Error::DuplicateKey));
    assert_eq!(check(vec![d(0, 3), d(0, 2)]), Ok(()));
    assert_eq!(check(vec![t(vec![p(0)], vec![p(0)])]), Ok(()));
    assert_eq!(check(vec![t(vec![p(0)], vec![]), p(0)]), Err(Error::DuplicateKey));
    assert_eq!(check(vec![t(vec![d(0, 2)], vec![]), p(1)]), Err(Error::DuplicateKey));
    assert_eq!(check((0..129).map(|_| d(0, 1)).collect()), Err(Error::TooManyOps));
}
