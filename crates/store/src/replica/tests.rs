//! Several members in one thread, on real logs, over a network that loses nothing.

mod golden;

use std::collections::BTreeMap;
use std::path::Path;

use wire::etcdserverpb::Member;

use super::*;
use crate::log::Sizes;
use crate::node::{Seats, Start};

const FIRST: Mark = Mark { index: 1, term: 1 };

struct One {
    replica: Replica,
    said: Vec<Committed>,
    reads: Vec<u64>,
    lost: Vec<(u64, Refusal)>,
    wants_snapshot: bool,
}

struct Group {
    dir: tempfile::TempDir,
    all: BTreeMap<u64, One>,
    network: VecDeque<Outgoing>,
}

fn open(dir: &Path, id: u64, members: &Members, first: Mark) -> Replica {
    let sizes = Sizes::default();
    let (log, recovered) = Log::open(&SystemDisk, &dir.join(id.to_string()), sizes).unwrap();
    let start = Start {
        id,
        seats: members.seats(),
        vote: recovered.vote,
        before: first,
        entries: recovered.entries,
        applied: first.index,
        seed: id,
    };
    Replica::new((id, id << 32), Node::new(start).unwrap(), log, members.clone(), first.index)
}

fn one(replica: Replica) -> One {
    One { replica, said: Vec::new(), reads: Vec::new(), lost: Vec::new(), wants_snapshot: false }
}

fn member(id: u64, is_learner: bool) -> Member {
    let (name, peer_ur_ls) = (format!("m{id}"), vec![format!("http://m{id}")]);
    Member { id, name, is_learner, peer_ur_ls, ..Member::default() }
}

impl Group {
    fn new(count: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let members = Members::new((1..=count).map(|id| member(id, false)).collect());
        let all = (1..=count).map(|id| (id, one(open(dir.path(), id, &members, FIRST)))).collect();
        Self { dir, all, network: VecDeque::new() }
    }

    fn step(&mut self, id: u64, input: Input) {
        let Some(one) = self.all.get_mut(&id) else { return };
        let network = &mut self.network;
        let output = one.replica.step([input], &mut |message| network.push_back(message)).unwrap();
        for work in output.work {
            match work {
                Work::Apply(committed) => one.said.extend(committed),
                Work::Install(_) => one.said.clear(),
            }
        }
        one.reads.extend(output.reads);
        one.lost.extend(output.lost);
        one.wants_snapshot |= output.wants_snapshot;
    }

    fn settle(&mut self) {
        while let Some(Outgoing { to, bytes, snapshot }) = self.network.pop_front() {
            let input = match snapshot {
                // Of the first member's making, as it knows the members then.
                Some(mark) => Input::Arrived(mark, self.all[&1].replica.members().clone(), bytes),
                None => Input::Message(bytes),
            };
            self.step(to, input);
        }
    }

    fn ticks(&mut self, count: u64) {
        for _ in 0..count {
            let ids: Vec<u64> = self.all.keys().copied().collect();
            for id in ids {
                self.step(id, Input::Tick);
            }
            self.settle();
        }
    }

    fn leader(&mut self) -> u64 {
        for _ in 0..100 {
            self.ticks(1);
            if let Some((id, _)) = self.all.iter().find(|(_, one)| one.replica.node().leads()) {
                return *id;
            }
        }
        panic!("nobody leads");
    }

    /// What was committed on a member, and by which of its tickets.
    fn said(&self, id: u64) -> Vec<(Option<u64>, Bytes)> {
        let operation = |committed: &Committed| match &committed.what {
            Said::Operation(data) => Some((committed.ticket, data.clone())),
            _ => None,
        };
        self.all[&id].said.iter().filter_map(operation).collect()
    }
}

#[test]
fn a_followers_proposal_is_committed_everywhere_and_answered_by_the_follower() {
    let mut group = Group::new(3);
    let leader = group.leader();
    let follower = 1 + leader % 3;
    group.step(follower, Input::Propose(7, b"x".to_vec()));
    group.settle();
    group.ticks(2);
    for id in 1..=3 {
        let ticket = (id == follower).then_some(7);
        assert_eq!(group.said(id), [(ticket, Bytes::from_static(b"x"))], "member {id}");
    }
}

#[test]
fn a_read_waits_for_a_quorum_and_a_proposal_for_a_leader() {
    let mut group = Group::new(3);
    group.step(1, Input::Propose(5, b"early".to_vec()));
    let leader = group.leader();
    group.settle();
    group.ticks(2);
    assert_eq!(group.said(1), [(Some(5), Bytes::from_static(b"early"))]);
    for id in 1..=3 {
        group.step(id, Input::Read(9));
        group.settle();
        assert_eq!(group.all[&id].reads, [9], "member {id}");
    }
    // Alone of three, nobody can tell what the others acknowledged.
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    for id in others {
        group.all.remove(&id);
    }
    group.step(leader, Input::Read(10));
    group.step(leader, Input::Propose(11, b"late".to_vec()));
    group.ticks(PATIENCE_TICKS + 1);
    let lone = &group.all[&leader];
    assert_eq!(lone.reads, [9]);
    assert_eq!(lone.lost, [(10, Refusal::Timeout), (11, Refusal::Timeout)]);
}

#[test]
fn what_went_down_with_a_leader_is_given_up_when_the_next_one_begins() {
    let mut group = Group::new(3);
    let leader = group.leader();
    let follower = 1 + leader % 3;
    group.all.remove(&leader);
    group.step(follower, Input::Propose(7, b"lost".to_vec()));
    let began = group.all[&follower].replica.ticks;
    group.leader();
    group.ticks(2);
    let one = &group.all[&follower];
    assert_eq!(one.lost, [(7, Refusal::LeaderLost)]);
    assert!(one.replica.ticks - began < PATIENCE_TICKS, "that is no sooner than in the end");
    group.step(follower, Input::Propose(8, b"next".to_vec()));
    group.settle();
    group.ticks(2);
    assert_eq!(group.said(follower), [(Some(8), Bytes::from_static(b"next"))]);
}

#[test]
fn what_a_leader_decided_in_an_earlier_term_is_not_proposed_in_a_later_one() {
    let mut group = Group::new(3);
    let leader = group.leader();
    let term = group.all[&leader].replica.node().term();
    group.step(leader, Input::Lead(7, term, b"now".to_vec()));
    group.step(leader, Input::Lead(8, term - 1, b"then".to_vec()));
    group.settle();
    group.ticks(2);
    assert_eq!(group.said(leader), [(Some(7), Bytes::from_static(b"now"))]);
    assert_eq!(group.all[&leader].lost, [(8, Refusal::NotLeader)]);
}

#[test]
fn a_new_member_begins_with_a_snapshot_and_is_promoted_when_it_has_caught_up() {
    let mut group = Group::new(1);
    let add = |id, is_learner| Change::of([What::Add(member(id, is_learner))]);
    let promote = Change::of([What::Promote(2)]);
    assert_eq!(group.leader(), 1);
    for ticket in 0..5 {
        group.step(1, Input::Propose(ticket, vec![b'a']));
    }
    group.step(1, Input::Change(10, add(2, true)));
    group.step(1, Input::Change(11, promote.clone()));
    let lost = &group.all[&1].lost;
    assert_eq!(*lost, [(11, MemberError::LearnerNotReady.into())]);

    let joining = open(group.dir.path(), 2, &Members::default(), Mark::default());
    group.all.insert(2, one(joining));
    group.ticks(3);
    assert!(group.all[&1].wants_snapshot);
    let last = group.all[&1].said.last().map(|committed| committed.mark).unwrap();
    group.step(1, Input::Snapshot(last));
    group.ticks(3);
    group.step(1, Input::SnapshotSent(2, true));
    group.ticks(3);
    group.step(1, Input::Propose(12, b"b".to_vec()));
    group.ticks(3);
    assert_eq!(group.said(2), [(None, Bytes::from_static(b"b"))]);

    group.step(1, Input::Change(13, promote));
    group.ticks(3);
    assert_eq!(group.all[&1].replica.members().voters(), [1, 2]);
    group.step(1, Input::Transfer(2));
    group.ticks(3);
    assert!(group.all[&2].replica.node().leads());
}

#[test]
fn what_a_snapshot_took_the_place_of_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(&SystemDisk, dir.path(), Sizes::default()).unwrap();
    let entry = |index, term| Entry {
        term,
        index,
        kind: EntryKind::Operation,
        data: Bytes::from_static(b"x"),
    };
    (2..=9).for_each(|index| log.entry(&entry(index, 1)));
    let begin = Mark { index: 7, term: 3 };
    log.begin_again(begin);
    log.entry(&entry(8, 3));
    log.sync().unwrap();
    let (_, recovered) = Log::open(&SystemDisk, dir.path(), Sizes::default()).unwrap();
    assert_eq!(recovered.begin, begin);
    assert_eq!(recovered.entries, [entry(8, 3)]);
}
