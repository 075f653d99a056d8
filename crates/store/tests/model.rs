//! The state machine against a model that keeps a whole copy of all keys for every revision.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;
use store::applied::Round;
use store::members::Members;
use store::mvcc::{Archive, Changes, Error, LARGE_BYTES, Mvcc, Op, Reply};
use store::state::State;
use wire::etcdserverpb::request_op::Request;
use wire::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest,
    RangeRequest, RequestOp, TxnRequest,
};
use wire::mvccpb::KeyValue;

type Keys = BTreeMap<Bytes, KeyValue>;

/// All keys at all revisions; the last is the present.
struct Model {
    at: Vec<Keys>,
    compacted: i64,
    leases: BTreeSet<i64>,
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8, i64),
    Delete(u8, u8),
    /// Puts and deletes of distinct keys in one transaction.
    Txn(Vec<(u8, bool)>),
    Compact(i64),
    Grant(i64),
    Revoke(i64),
}

fn key(n: u8) -> Bytes {
    Bytes::copy_from_slice(&[b'a' + n % 6])
}

/// Every other value is a large one, which memory may do without.
fn value(v: u8) -> Bytes {
    Bytes::from(vec![v; if v.is_multiple_of(2) { 1 } else { LARGE_BYTES + usize::from(v) }])
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..6u8, any::<u8>(), 0..3i64).prop_map(|(k, v, l)| Step::Put(k, v, l)),
        2 => (0..6u8, 0..7u8).prop_map(|(from, to)| Step::Delete(from, to)),
        2 => prop::collection::vec((0..6u8, any::<bool>()), 0..4).prop_map(Step::Txn),
        1 => (0..6i64).prop_map(Step::Compact),
        1 => (1..3i64).prop_map(Step::Grant),
        1 => (1..3i64).prop_map(Step::Revoke),
    ];
    prop::collection::vec(step, 1..60)
}

impl Model {
    fn new() -> Self {
        // Revisions 0 and 1 are empty: the first write makes revision 2.
        Self { at: vec![Keys::new(), Keys::new()], compacted: -1, leases: BTreeSet::new() }
    }

    fn revision(&self) -> i64 {
        self.at.len() as i64 - 1
    }

    fn put(&self, keys: &mut Keys, key: &Bytes, value: Bytes, lease: i64) {
        let main = self.revision() + 1;
        let old = keys.get(key);
        let kv = KeyValue {
            key: key.clone(),
            create_revision: old.map_or(main, |kv| kv.create_revision),
            mod_revision: main,
            version: old.map_or(1, |kv| kv.version + 1),
            value,
            lease,
        };
        keys.insert(key.clone(), kv);
    }

    /// What the step does, and what it does to the model; none if it must be refused.
    fn step(&mut self, step: &Step) -> (Op, Result<(), Error>) {
        let mut keys = self.at[self.at.len() - 1].clone();
        let before = keys.clone();
        let (op, verdict) = match step {
            Step::Put(k, v, lease) => {
                let (key, value) = (key(*k), value(*v));
                let known = *lease == 0 || self.leases.contains(lease);
                if known {
                    self.put(&mut keys, &key, value.clone(), *lease);
                }
                let put = PutRequest { key, value, lease: *lease, ..Default::default() };
                (Op::Put(put), if known { Ok(()) } else { Err(Error::LeaseNotFound) })
            }
            Step::Delete(from, to) => {
                let (key, range_end) = (key(*from), Bytes::copy_from_slice(&[b'a' + to]));
                keys.retain(|k, _| *k < key || *k >= range_end);
                (Op::Delete(DeleteRangeRequest { key, range_end, prev_kv: false }), Ok(()))
            }
            Step::Txn(ops) => (Op::Txn(self.txn(&mut keys, ops)), Ok(())),
            Step::Compact(back) => return self.compact(self.revision() - back + 1),
            Step::Grant(id) => {
                let fresh = self.leases.insert(*id);
                let verdict = if fresh { Ok(()) } else { Err(Error::LeaseExists) };
                (Op::Grant(LeaseGrantRequest { id: *id, ttl: 60 }), verdict)
            }
            Step::Revoke(id) => {
                let known = self.leases.remove(id);
                keys.retain(|_, kv| !known || kv.lease != *id);
                let verdict = if known { Ok(()) } else { Err(Error::LeaseNotFound) };
                (Op::Revoke(LeaseRevokeRequest { id: *id }), verdict)
            }
        };
        if keys != before {
            self.at.push(keys);
        }
        (op, verdict)
    }

    fn txn(&self, keys: &mut Keys, ops: &[(u8, bool)]) -> TxnRequest {
        let mut seen = BTreeSet::new();
        let mut success = Vec::new();
        for (k, put) in ops {
            let key = key(*k);
            if !seen.insert(key.clone()) {
                continue;
            }
            let request = if *put {
                self.put(keys, &key, Bytes::from_static(b"t"), 0);
                let value = Bytes::from_static(b"t");
                Request::RequestPut(PutRequest { key, value, ..Default::default() })
            } else {
                keys.remove(&key);
                Request::RequestDeleteRange(DeleteRangeRequest { key, ..Default::default() })
            };
            success.push(RequestOp { request: Some(request) });
        }
        TxnRequest { success, ..Default::default() }
    }

    fn compact(&mut self, revision: i64) -> (Op, Result<(), Error>) {
        let verdict = if revision <= self.compacted {
            Err(Error::Compacted)
        } else if revision > self.revision() {
            Err(Error::FutureRevision)
        } else {
            self.compacted = revision;
            Ok(())
        };
        (Op::Compact(CompactionRequest { revision, physical: false }), verdict)
    }

    /// The events of the last revision, by key.
    fn events(&self) -> BTreeMap<Bytes, Option<KeyValue>> {
        let (new, old) = (&self.at[self.at.len() - 1], &self.at[self.at.len() - 2]);
        let put = new.iter().filter(|(k, kv)| old.get(*k) != Some(kv));
        let mut events: BTreeMap<_, _> = put.map(|(k, kv)| (k.clone(), Some(kv.clone()))).collect();
        let gone = old.keys().filter(|k| !new.contains_key(*k));
        events.extend(gone.map(|k| (k.clone(), None)));
        events
    }
}

/// Every revision reads as the model says, or is refused as compacted.
fn same(mvcc: &Mvcc, archive: &dyn Archive, model: &Model) -> Result<(), TestCaseError> {
    prop_assert_eq!(mvcc.revision(), model.revision());
    for revision in 1..=model.revision() + 1 {
        let all = Bytes::from_static(&[0]);
        let request =
            RangeRequest { key: all.clone(), range_end: all, revision, ..Default::default() };
        let answer = mvcc.range(archive, &request).map(|answer| answer.kvs);
        let wanted = match model.at.get(revision as usize) {
            None => Err(Error::FutureRevision),
            Some(_) if revision < model.compacted => Err(Error::Compacted),
            Some(keys) => Ok(keys.values().cloned().collect::<Vec<_>>()),
        };
        prop_assert_eq!(answer, wanted, "at revision {}", revision);
    }
    Ok(())
}

/// The events of a revision, by key.
fn heard(changes: &Changes) -> BTreeMap<Bytes, Option<KeyValue>> {
    let event = |e: &wire::mvccpb::Event| {
        let kv = e.kv.clone().unwrap_or_default();
        (kv.key.clone(), (e.r#type == 0).then_some(kv))
    };
    changes.events.iter().map(event).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn every_revision_reads_as_the_model_says(steps in steps()) {
        let (mut mvcc, mut model) = (Mvcc::default(), Model::new());
        for step in &steps {
            let before = model.revision();
            let (op, wanted) = model.step(step);
            let op = Op::decode(op.encode().into()).expect("own encoding");
            let outcome = mvcc.apply(&op, &());
            prop_assert_eq!(outcome.reply.as_ref().map(|_: &Reply| ()), wanted.as_ref().map(|_| ()));
            let wrote = model.revision() > before;
            prop_assert_eq!(outcome.changes.as_ref().map(heard), wrote.then(|| model.events()));
            same(&mvcc, &(), &model)?;
        }
    }

    #[test]
    fn what_is_cold_reads_as_the_model_says(steps in steps()) {
        let dir = tempfile::tempdir().expect("a directory");
        let state = State::open(dir.path(), "boot").expect("a new state");
        let (mut mvcc, mut model) = (Mvcc::default(), Model::new());
        for step in &steps {
            let before = model.revision();
            let outcome = mvcc.apply(&model.step(step).0, &state);
            let round = Round {
                revision: mvcc.revision(),
                compacted: mvcc.compacted(),
                changes: outcome.changes.clone().into_iter().collect(),
                removed: outcome.removed,
                members: Some(Members::default()),
                ..Round::default()
            };
            state.write(&round).expect("a round written");
            if model.revision() > before {
                let kept = state.changes(model.revision(), i64::MAX, 1).expect("a disk that works");
                prop_assert_eq!(heard(&kept[0]), model.events());
            }
            mvcc.cool_all();
            same(&mvcc, &state, &model)?;
        }
        let loaded = state.load().expect("a state").map(|applied| applied.mvcc);
        same(&loaded.unwrap_or_default(), &state, &model)?;
    }

    #[test]
    fn a_state_loaded_from_its_records_is_the_same(steps in steps()) {
        let (mut mvcc, mut model) = (Mvcc::default(), Model::new());
        for step in &steps {
            mvcc.apply(&model.step(step).0, &());
        }
        let mut loaded = Mvcc::begin(&mvcc.summary());
        let read = mvcc.records(&(), |at, event| {
            loaded.load(at, event);
            Ok(())
        });
        prop_assert!(read.is_ok());
        same(&loaded, &(), &model)?;
        prop_assert_eq!(loaded.index(), mvcc.index());
        prop_assert_eq!(loaded.leases(), mvcc.leases());
        // The same compaction must leave the same behind.
        let last = Op::Compact(CompactionRequest { revision: mvcc.revision(), physical: true });
        mvcc.apply(&last, &());
        loaded.apply(&last, &());
        prop_assert_eq!(loaded.index(), mvcc.index());
        prop_assert_eq!(loaded.bytes(), mvcc.bytes());
    }
}
