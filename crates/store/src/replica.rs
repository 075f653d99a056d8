//! One member's replicated log without threads, sockets or a clock: the raft core over its write-ahead log.
//!
//! Inputs go in, the log is written and synced, and what follows comes out. The engine runs it on a thread with real peers,
//! the simulation runs a whole cluster of them in one.
//!
//! An entry says who proposed it and by which ticket, so that a follower's proposal is answered by the follower itself, when
//! it applies the entry; its client then reads what it wrote.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf as _, Bytes};
use daemon::{Disk, SystemDisk};
use prost::Message as _;

use crate::auth::AuthError;
use crate::log::{Entry, EntryKind, Log, LogError};
use crate::members::{Change, MemberError, Members, Step, What};
use crate::mvcc::Error;
use crate::node::{self, ELECTION_TICKS, Node, NodeError, Outgoing, Seat};
use crate::snapshot::Mark;

/// How long a tick is.
pub const TICK_MS: u64 = 100;
/// Ticks after which nobody waits any more: etcd's five seconds and two elections.
const PATIENCE_TICKS: u64 = 70;
/// Ticks after which an unanswered read is asked again.
const READ_TICKS: u64 = 2;
/// Proposals that may wait for a leader.
const PARKED_MAX: usize = 4096;
/// Entries kept for members that are a little behind, and bytes of them.
pub const KEPT_ENTRIES: usize = 10_000;
const KEPT_BYTES: usize = 64 << 20;
/// A learner is in sync when it has so many of a hundred of the leader's entries.
const IN_SYNC_PERCENT: u64 = 90;

const ENVELOPE_BYTES: usize = 17;
const OPERATION: u8 = 0;
/// A change of members of one step, as format 2 of the log has it, and of any number.
const STEP: u8 = 1;
const MEMBERS: u8 = 2;

/// What happens to a member.
#[derive(Debug)]
pub enum Input {
    /// [`TICK_MS`] have passed.
    Tick,
    /// Another member's message.
    Message(Bytes),
    /// A snapshot file has arrived from another member and is durable: its mark, its members, and the message that says so.
    Arrived(Mark, Members, Bytes),
    /// An operation to replicate.
    Propose(u64, Vec<u8>),
    /// An operation that only the leader of a term may propose, now or never: it was decided on what that leader knew.
    Lead(u64, u64, Vec<u8>),
    /// A change of members to replicate; taken by leaders only.
    Change(u64, Change),
    /// A read that must see all that was acknowledged before.
    Read(u64),
    /// Leadership shall go to another member.
    Transfer(u64),
    /// Leadership shall go to whoever is best prepared for it.
    HandOver,
    /// A member could not be reached.
    Unreachable(u64),
    /// A snapshot has arrived at a member, or has not.
    SnapshotSent(u64, bool),
    /// A snapshot file was made.
    Snapshot(Mark),
    /// Log entries up to here are in two snapshots.
    Release(Mark),
}

/// Why a request has no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The state refused it.
    #[error(transparent)]
    State(#[from] Error),
    /// The members cannot change so.
    #[error(transparent)]
    Members(#[from] MemberError),
    /// The caller may not, or users cannot change so.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// It was not committed in time; it may still be.
    #[error("etcdserver: request timed out")]
    Timeout,
    /// Whoever led when it was offered does no longer, and a later leader's first entry came without it. It may still
    /// be committed, if it is on its way.
    #[error("etcdserver: request timed out, possibly due to previous leader failure")]
    LeaderLost,
    /// Too many wait.
    #[error("etcdserver: too many requests")]
    TooMany,
    /// Only the leader takes it.
    #[error("etcdserver: not leader")]
    NotLeader,
    /// The member is going down.
    #[error("etcdserver: server stopped")]
    Stopped,
}

impl Refusal {
    /// Whether it is the state's answer, so that it was decided.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::State(_) | Self::Members(_) | Self::Auth(_))
    }
}

/// A committed entry.
#[derive(Debug, Clone)]
pub struct Committed {
    /// Its place and term.
    pub mark: Mark,
    /// Who waits for it here.
    pub ticket: Option<u64>,
    /// What it says.
    pub what: Said,
}

/// What an entry says.
#[derive(Debug, Clone)]
pub enum Said {
    /// Nothing: a leader's first entry, or the core's own.
    Nothing,
    /// An operation on the state.
    Operation(Bytes),
    /// The members from here on, or why they stay as they are.
    Members(Result<Members, MemberError>),
}

/// What is to be done, in order.
#[derive(Debug)]
pub enum Work {
    /// Apply these.
    Apply(Vec<Committed>),
    /// Begin again from the snapshot file of this mark.
    Install(Mark),
}

/// What comes out of a step.
#[derive(Debug, Default)]
pub struct Output {
    /// To be done, in order.
    pub work: Vec<Work>,
    /// Reads that may be answered when the work is done.
    pub reads: Vec<u64>,
    /// Tickets that come to nothing.
    pub lost: Vec<(u64, Refusal)>,
    /// A member needs a newer snapshot than there is.
    pub wants_snapshot: bool,
    /// Bytes logged.
    pub logged_bytes: usize,
}

/// What went wrong for good: the member cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The core refused what it must take.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A committed entry cannot be read.
    #[error("entry {0} cannot be read")]
    Entry(u64),
    /// What a committed entry needs of the state on disk cannot be read.
    #[error("the state on disk lost a value that entry {0} needs; restart to fill it again")]
    Archive(u64),
    /// The core begins again from a snapshot that has not come.
    #[error("no snapshot of entry {0} has arrived")]
    NoSnapshot(u64),
}

/// Reads on their way: one question to the leader is out at a time, and all that come meanwhile share the next.
#[derive(Debug, Default)]
struct Reads {
    /// The question that is out, the tick at which it was asked, and the leader and term then.
    asked: Option<(u64, u64, (u64, u64))>,
    asking: Vec<u64>,
    next: Vec<u64>,
    questions: u64,
    /// Answered, but not committed here yet.
    placed: VecDeque<(u64, Vec<u64>)>,
}

/// One member's replicated log.
pub struct Replica<D: Disk = SystemDisk> {
    id: u64,
    node: Node,
    log: Log<D>,
    members: Members,
    vote: (u64, u64),
    ticks: u64,
    /// Tickets out, with the tick at which they are given up.
    waiting: BTreeMap<u64, u64>,
    deadlines: VecDeque<(u64, u64)>,
    parked: VecDeque<(u64, Parked)>,
    /// Tickets that were offered to a leader, with the term.
    offered: VecDeque<(u64, u64)>,
    reads: Reads,
    /// The last committed entry that was given out.
    given: u64,
    /// No change of seats is committed behind this entry.
    seated: u64,
    /// When a member was last heard of.
    heard: BTreeMap<u64, u64>,
    /// The last snapshot that came, until it is installed.
    arrived: Option<(Mark, Members)>,
}

#[derive(Debug)]
enum Parked {
    Operation(Vec<u8>),
    Change(Change),
}

impl<D: Disk> Replica<D> {
    /// A member's log with the core that has begun from it. `members` and `applied` are those of its state.
    /// `incarnation` is another number after each start, so that an answer to an earlier one is not taken for one of ours.
    #[must_use]
    pub fn new(
        (id, incarnation): (u64, u64),
        node: Node,
        log: Log<D>,
        members: Members,
        applied: u64,
    ) -> Self {
        Self {
            id,
            node,
            log,
            members,
            vote: (0, 0),
            ticks: 0,
            waiting: BTreeMap::new(),
            deadlines: VecDeque::new(),
            parked: VecDeque::new(),
            offered: VecDeque::new(),
            reads: Reads { questions: incarnation, ..Reads::default() },
            given: applied,
            seated: applied,
            heard: BTreeMap::new(),
            arrived: None,
        }
    }

    /// The raft core, to ask who leads.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The members as the log has them, which the state may not have applied yet.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Whether this member was removed from the cluster.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.members.removed.contains(&self.id)
    }

    /// Whether the disk is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.log.is_full()
    }

    /// Whether anything depends on ticks: others, or somebody who waits.
    #[must_use]
    pub fn needs_ticks(&self) -> bool {
        !self.node.is_alone() || !self.waiting.is_empty()
    }

    /// Takes what happened, writes and syncs what must be durable, and says what follows. Messages are given to `send`
    /// as soon as they may go.
    ///
    /// # Errors
    /// When the member cannot go on; nothing more may be acknowledged then.
    pub fn step(
        &mut self,
        inputs: impl IntoIterator<Item = Input>,
        send: &mut dyn FnMut(Outgoing),
    ) -> Result<Output, ReplicaError> {
        let mut output = Output::default();
        for input in inputs {
            self.take(input, &mut output)?;
        }
        self.unpark(&mut output);
        self.ask_reads();
        while let Some(effects) = self.node.step() {
            effects.messages.into_iter().for_each(&mut *send);
            if let Some(mark) = effects.install {
                let arrived = self.arrived.take().filter(|(arrived, _)| *arrived == mark);
                let (_, members) = arrived.ok_or(ReplicaError::NoSnapshot(mark.index))?;
                self.members = members;
                self.log.begin_again(mark);
            }
            for entry in &effects.entries {
                self.log.entry(entry);
                output.logged_bytes += entry.data.len() + 40;
            }
            // The commit index alone need not be durable: a restart finds it again.
            if let Some(new) = effects.vote.filter(|v| (v.term, v.vote) != self.vote) {
                self.log.vote(new);
                self.vote = (new.term, new.vote);
            }
            self.log.sync()?;
            if let Some(mark) = effects.install {
                (self.given, self.seated) = (mark.index, mark.index);
                output.work.push(Work::Install(mark));
            }
            let after = self.node.written();
            let committed: Vec<Entry> =
                effects.committed.into_iter().chain(after.committed).collect();
            self.keep_seats(&committed)?;
            after.messages.into_iter().for_each(&mut *send);
            self.give(committed, &mut output)?;
            self.node.done();
            self.place_reads(&effects.reads);
            self.unpark(&mut output);
            self.ask_reads();
        }
        while self.reads.placed.front().is_some_and(|(index, _)| *index <= self.given) {
            for ticket in
                self.reads.placed.pop_front().map(|(_, tickets)| tickets).into_iter().flatten()
            {
                if self.waiting.remove(&ticket).is_some() {
                    output.reads.push(ticket);
                }
            }
        }
        let waiting = &self.waiting;
        while self.deadlines.front().is_some_and(|(_, ticket)| !waiting.contains_key(ticket)) {
            self.deadlines.pop_front();
        }
        output.wants_snapshot = self.node.wants_snapshot();
        self.trim();
        Ok(output)
    }

    /// Makes durable that changes of seats are committed, before anybody hears that we know it: members that were let go end
    /// then, and could not help us decide it once more.
    fn keep_seats(&mut self, committed: &[Entry]) -> Result<(), LogError> {
        let seats = committed.iter().rfind(|entry| entry.kind != EntryKind::Operation);
        if let Some(last) = seats {
            self.seated = last.index;
            self.log.committed(last.index);
            self.log.sync()?;
        }
        Ok(())
    }

    fn take(&mut self, input: Input, output: &mut Output) -> Result<(), ReplicaError> {
        match input {
            Input::Tick => {
                self.ticks += 1;
                self.node.tick();
                self.give_up(output);
                self.let_go();
            }
            Input::Message(bytes) => self.receive(&bytes),
            Input::Arrived(mark, members, bytes) => {
                self.arrived = Some((mark, members));
                self.receive(&bytes);
            }
            Input::Propose(ticket, data) => {
                self.wait(ticket);
                self.park(ticket, Parked::Operation(data), output);
            }
            Input::Lead(ticket, term, data) => {
                let data = envelope(self.id, ticket, OPERATION, &data);
                let leads = self.node.leads() && self.node.term() == term;
                if leads && self.node.propose(data).is_ok() {
                    self.wait(ticket);
                    self.offered.push_back((term, ticket));
                } else {
                    output.lost.push((ticket, Refusal::NotLeader));
                }
            }
            Input::Change(ticket, change) => match self.check(&change) {
                Ok(()) => {
                    self.wait(ticket);
                    self.park(ticket, Parked::Change(change), output);
                }
                Err(refusal) => output.lost.push((ticket, refusal)),
            },
            Input::Read(ticket) => {
                self.wait(ticket);
                self.reads.next.push(ticket);
            }
            Input::Transfer(to) => self.node.transfer(to),
            Input::HandOver => {
                if let Some(heir) = self.heir() {
                    self.node.transfer(heir);
                }
            }
            Input::Unreachable(id) => self.node.unreachable(id),
            Input::SnapshotSent(id, arrived) => self.node.snapshot_sent(id, arrived),
            Input::Snapshot(mark) => self.node.offer(mark),
            Input::Release(mark) => self.log.release(mark.index)?,
        }
        Ok(())
    }

    fn receive(&mut self, bytes: &Bytes) {
        // A message may be lost, so one that cannot be used may be too.
        match self.node.receive(bytes) {
            Ok(from) => drop(self.heard.insert(from, self.ticks)),
            Err(error) => tracing::debug!(%error, "a member's message is of no use"),
        }
    }

    fn wait(&mut self, ticket: u64) {
        let until = self.ticks + PATIENCE_TICKS;
        self.waiting.insert(ticket, until);
        self.deadlines.push_back((until, ticket));
    }

    fn give_up(&mut self, output: &mut Output) {
        while self.deadlines.front().is_some_and(|(until, _)| *until <= self.ticks) {
            let Some((_, ticket)) = self.deadlines.pop_front() else { break };
            if self.waiting.remove(&ticket).is_some() {
                output.lost.push((ticket, Refusal::Timeout));
            }
        }
        let waiting = &self.waiting;
        self.parked.retain(|(ticket, _)| waiting.contains_key(ticket));
    }

    fn park(&mut self, ticket: u64, parked: Parked, output: &mut Output) {
        if self.parked.len() >= PARKED_MAX {
            self.waiting.remove(&ticket);
            output.lost.push((ticket, Refusal::TooMany));
            return;
        }
        self.parked.push_back((ticket, parked));
        if self.parked.len() == 1 {
            self.unpark(output);
        }
    }

    /// Offers what waits for a leader, in order, until it is refused again.
    fn unpark(&mut self, output: &mut Output) {
        while let Some((ticket, parked)) = self.parked.pop_front() {
            let offered = match &parked {
                Parked::Operation(data) => {
                    self.node.propose(envelope(self.id, ticket, OPERATION, data))
                }
                Parked::Change(change) => match self.check(change) {
                    Ok(()) => self.offer_change(ticket, change),
                    Err(refusal) => {
                        self.waiting.remove(&ticket);
                        output.lost.push((ticket, refusal));
                        continue;
                    }
                },
            };
            if offered.is_err() {
                self.parked.push_front((ticket, parked));
                return;
            }
            self.offered.push_back((self.node.term(), ticket));
        }
    }

    fn offer_change(&mut self, ticket: u64, change: &Change) -> Result<(), NodeError> {
        let data = envelope(self.id, ticket, MEMBERS, &change.encode_to_vec());
        match self.members.changed_seats(change)[..] {
            [] => self.node.propose(data),
            ref seats => self.node.propose_seats(seats, data),
        }
    }

    /// Ends what a joint change has begun, one step at a tick, if this member leads: a leader that leaves hands over, and
    /// those that leave are let go when most of those that stay know for good that they may decide alone.
    fn let_go(&mut self) {
        let Some(first) = self.members.leaving.first().copied() else { return };
        if self.members.is_joint() || !self.node.leads() {
            return;
        }
        if self.members.leaving.contains(&self.id) {
            if let Some(heir) = self.heir() {
                self.node.transfer(heir);
            }
            return;
        }
        let voters = self.members.voters();
        let know = voters.iter().filter(|id| self.node.known_committed(**id) >= self.seated);
        if know.count() >= quorum(voters.len()) {
            let change = Change::of([What::Remove(first)]).encode_to_vec();
            // Nobody waits for it. If it cannot be now, the next tick tries again.
            let _later =
                self.node.propose_seats(&[Seat::Gone(first)], envelope(0, 0, MEMBERS, &change));
        }
    }

    /// Whether a member was heard of within an election's time.
    #[must_use]
    pub fn is_active(&self, id: u64) -> bool {
        let lately = |at: &u64| self.ticks < at + ELECTION_TICKS as u64;
        id == self.id || self.heard.get(&id).is_some_and(lately)
    }

    /// Whether a change would leave a cluster that can decide; etcd's rules.
    fn check(&self, change: &Change) -> Result<(), Refusal> {
        let mut after = self.members.clone();
        after.apply(change)?;
        if change.all().all(|what| matches!(what, What::Publish(_))) {
            return Ok(());
        }
        if !self.node.leads() {
            return Err(Refusal::NotLeader);
        }
        let in_sync =
            |id: &u64| self.node.matched(*id) * 100 >= self.node.matched(self.id) * IN_SYNC_PERCENT;
        let mut promoted = change.all().filter_map(|what| match what {
            What::Promote(id) => Some(id),
            _ => None,
        });
        if !promoted.all(in_sync) {
            return Err(MemberError::LearnerNotReady.into());
        }
        let (voters, left) = (self.members.voters(), after.voters());
        let one = change.steps.len() == 1;
        let adds = left.iter().any(|id| self.members.get(*id).is_none());
        let removes: Vec<&u64> = voters.iter().filter(|id| !left.contains(id)).collect();
        if !adds && removes.is_empty() {
            return Ok(());
        }
        let started = |id: &&u64| self.members.get(**id).is_some_and(|m| !m.name.is_empty());
        let running = left.iter().filter(started).count();
        // etcd lets a second member in beside one that is alone, though neither can do without the other then.
        let second = one && adds && voters.len() == 1 && running == 1;
        if !second && running < quorum(left.len()) {
            return Err(MemberError::NotEnoughStarted.into());
        }
        let active = left.iter().filter(|id| self.is_active(**id)).count();
        let healthy = match removes[..] {
            // A new voter needs all others, but who cannot be reached may be removed if that leaves no fewer.
            _ if one && adds => voters.iter().all(|id| self.is_active(*id)),
            [gone] if one && !self.is_active(*gone) => true,
            _ => active >= quorum(left.len()),
        };
        if healthy { Ok(()) } else { Err(MemberError::Unhealthy.into()) }
    }

    /// The voter that has most of the log, if this member leads.
    fn heir(&self) -> Option<u64> {
        let node = &self.node;
        let others = self.members.voters().into_iter();
        let ready = others.filter(|id| *id != self.id && node.leads() && self.is_active(*id));
        ready.max_by_key(|id| node.matched(*id))
    }

    /// Gives committed entries out, with who waits for them.
    fn give(&mut self, entries: Vec<Entry>, output: &mut Output) -> Result<(), ReplicaError> {
        let mut committed = Vec::new();
        for entry in entries {
            let mark = Mark { index: entry.index, term: entry.term };
            let (ticket, what) = self.read_entry(entry)?;
            let ticket = ticket.filter(|ticket| self.waiting.remove(ticket).is_some());
            self.given = mark.index;
            committed.push(Committed { mark, ticket, what });
        }
        if let Some(last) = committed.last() {
            self.lose_before(last.mark.term, output);
            output.work.push(Work::Apply(committed));
        }
        Ok(())
    }

    /// A leader's first entry comes after all that is left of earlier leaders, so nobody has to wait for them any longer.
    fn lose_before(&mut self, term: u64, output: &mut Output) {
        while let Some((offered, ticket)) = self.offered.front().copied() {
            let waits = self.waiting.contains_key(&ticket);
            if waits && offered >= term {
                return;
            }
            self.offered.pop_front();
            if waits {
                self.waiting.remove(&ticket);
                output.lost.push((ticket, Refusal::LeaderLost));
            }
        }
    }

    fn read_entry(&mut self, entry: Entry) -> Result<(Option<u64>, Said), ReplicaError> {
        let index = entry.index;
        let mut data = match entry.kind {
            EntryKind::Operation => entry.data.clone(),
            EntryKind::Member | EntryKind::Members => node::change_data(&entry)?,
        };
        let seats = entry.kind != EntryKind::Operation;
        if data.is_empty() {
            if !seats {
                return Ok((None, Said::Nothing));
            }
            self.node.apply_seats(&entry)?;
            self.members.leave_joint();
            return Ok((None, Said::Members(Ok(self.members.clone()))));
        }
        if data.len() < ENVELOPE_BYTES {
            return Err(ReplicaError::Entry(index));
        }
        let (origin, ticket, kind) = (data.get_u64_le(), data.get_u64_le(), data.get_u8());
        let ticket = (origin == self.id).then_some(ticket);
        let what = match kind {
            OPERATION => Said::Operation(data),
            STEP | MEMBERS => {
                let change = if kind == STEP {
                    Step::decode(data).map(|step| Change { steps: vec![step] })
                } else {
                    Change::decode(data)
                };
                let change = change.map_err(|_| ReplicaError::Entry(index))?;
                let changed = self.members.apply(&change);
                if seats && changed.is_ok() {
                    self.node.apply_seats(&entry)?;
                }
                Said::Members(changed.map(|()| self.members.clone()))
            }
            _ => return Err(ReplicaError::Entry(index)),
        };
        Ok((ticket, what))
    }

    fn ask_reads(&mut self) {
        let (reads, node) = (&mut self.reads, &mut self.node);
        let leader = (node.leader(), node.term());
        let lost = |&(_, at, asked): &(u64, u64, (u64, u64))| {
            // On its way, or with a leader that is none any more.
            self.ticks >= at + READ_TICKS || asked != leader
        };
        if reads.asked.as_ref().is_some_and(lost) {
            reads.asked = None;
        }
        if reads.asked.is_none() && node.answers_reads() {
            reads.asking.append(&mut reads.next);
            let waiting = &self.waiting;
            reads.asking.retain(|ticket| waiting.contains_key(ticket));
            if !reads.asking.is_empty() {
                reads.questions = reads.questions.wrapping_add(1);
                reads.asked = Some((reads.questions, self.ticks, leader));
                node.read(reads.questions);
            }
        }
    }

    fn place_reads(&mut self, answers: &[(u64, u64)]) {
        for &(question, index) in answers {
            // An answer to an older question is too old for those that joined the newer one.
            if self.reads.asked.is_some_and(|(asked, ..)| asked == question) {
                self.reads.asked = None;
                self.reads.placed.push_back((index, std::mem::take(&mut self.reads.asking)));
            }
        }
    }

    /// Forgets entries that everybody has, or that a snapshot serves better.
    fn trim(&mut self) {
        if self.node.is_alone() {
            self.node.compact(self.given);
            return;
        }
        let (entries, bytes) = self.node.kept();
        let surplus = entries.saturating_sub(KEPT_ENTRIES);
        if surplus > KEPT_ENTRIES / 10 {
            self.node.compact(self.given.saturating_sub(KEPT_ENTRIES as u64));
        } else if bytes > KEPT_BYTES {
            self.node.compact(self.given.saturating_sub(entries as u64 / 2));
        }
    }
}

fn quorum(of: usize) -> usize {
    of / 2 + 1
}

/// An entry's data: who proposed it, by which ticket, what it is.
fn envelope(origin: u64, ticket: u64, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut data = Vec::with_capacity(ENVELOPE_BYTES + body.len());
    data.extend_from_slice(&origin.to_le_bytes());
    data.extend_from_slice(&ticket.to_le_bytes());
    data.push(kind);
    data.extend_from_slice(body);
    data
}

#[cfg(test)]
mod tests;
