//! A pure step around the raft core: inputs go in, what must be written, sent and applied comes
//! out. The only file that names raft's types; knows neither disk, time nor sockets.

use std::cell::Cell;
use std::collections::VecDeque;

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
    Entry as RaftEntry, EntryType, HardState, Message, MessageType, Snapshot,
};
use raft::{
    GetEntriesContext, INVALID_ID, RaftState, RawNode, SnapshotStatus, StateRole, Storage,
    StorageError,
};

use crate::log::{Entry, EntryKind, Vote};
use crate::snapshot::Mark;

/// Ticks without a leader after which a member stands for election, before spreading.
pub const ELECTION_TICKS: usize = 10;
const HEARTBEAT_TICKS: usize = 1;
/// Bytes of entries in one message, and messages on their way to one member.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;
const IN_FLIGHT_MAX: usize = 256;
/// Bytes of entries that a leader takes on before the first of them is committed.
const UNCOMMITTED_BYTES_MAX: u64 = 256 << 20;

/// Where a member starts from.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// Its own id.
    pub id: u64,
    /// Who votes and who listens.
    pub seats: Seats,
    /// Its last vote.
    pub vote: Vote,
    /// The entry before the first one that is kept.
    pub before: Mark,
    /// The entries behind it.
    pub entries: Vec<Entry>,
    /// The last entry that its state has.
    pub applied: u64,
    /// What its election timeouts are drawn from: seeds must replay.
    pub seed: u64,
}

/// Who votes and who listens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seats {
    /// The voters of the cluster.
    pub voters: Vec<u64>,
    /// The voters before a joint change that is not through; both majorities must agree.
    pub outgoing: Vec<u64>,
    /// Members that listen only.
    pub learners: Vec<u64>,
    /// Those of `outgoing` that will listen only.
    pub learners_next: Vec<u64>,
}

/// A change of who votes and who listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seat {
    /// Votes from now on.
    Voter(u64),
    /// Listens from now on.
    Learner(u64),
    /// Belongs no more.
    Gone(u64),
}

/// A message for another member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Whom it is for.
    pub to: u64,
    /// The message.
    pub bytes: Bytes,
    /// The snapshot that must arrive before it.
    pub snapshot: Option<Mark>,
}

/// What a step asks for. Entries, vote and snapshot must be durable before [`Node::written`] is
/// called; the messages may go before.
#[derive(Debug, Default)]
pub struct Effects {
    /// May be sent at once.
    pub messages: Vec<Outgoing>,
    /// A snapshot to begin again from; all entries known so far are void.
    pub install: Option<Mark>,
    /// To be written to the log.
    pub entries: Vec<Entry>,
    /// To be written to the log.
    pub vote: Option<Vote>,
    /// To be applied, in order.
    pub committed: Vec<Entry>,
    /// Reads that may be answered once the entry is applied: what [`Node::read`] was given, the entry's place.
    pub reads: Vec<(u64, u64)>,
}

/// What follows from a step that is durable.
#[derive(Debug, Default)]
pub struct After {
    /// May be sent now.
    pub messages: Vec<Outgoing>,
    /// To be applied, in order.
    pub committed: Vec<Entry>,
}

/// What went wrong inside the raft core.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// There is no leader that takes proposals now.
    #[error("etcdserver: no leader")]
    Dropped,
    /// The core refused.
    #[error("raft: {0}")]
    Raft(raft::Error),
    /// Bytes that are not of the core.
    #[error("raft: {0}")]
    Encoding(#[from] protobuf::ProtobufError),
}

impl From<raft::Error> for NodeError {
    fn from(error: raft::Error) -> Self {
        match error {
            raft::Error::ProposalDropped => Self::Dropped,
            other => Self::Raft(other),
        }
    }
}

/// One member's view of the replicated log.
pub struct Node {
    raw: RawNode<Memory>,
    ready: Option<raft::Ready>,
    seed: u64,
}

impl Node {
    /// Takes up where the member left off. A member alone leads at once.
    ///
    /// # Errors
    /// When the core refuses the start, which is a mistake of ours.
    pub fn new(start: Start) -> Result<Self, NodeError> {
        let alone = start.seats.voters == [start.id] && start.seats.outgoing.is_empty();
        let config = raft::Config {
            id: start.id,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied: start.applied,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: IN_FLIGHT_MAX,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
            check_quorum: true,
            pre_vote: true,
            ..Default::default()
        };
        let seed = start.seed;
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, Memory::new(start), &logger)?;
        let mut node = Self { raw, ready: None, seed };
        node.spread();
        if alone {
            node.raw.campaign()?;
        }
        Ok(node)
    }

    /// Time passes.
    pub fn tick(&mut self) {
        self.raw.tick();
        self.spread();
    }

    /// A message from another member; returns from whom.
    ///
    /// # Errors
    /// When it cannot be read, or comes from nobody known: it is lost then, which is allowed.
    pub fn receive(&mut self, bytes: &Bytes) -> Result<u64, NodeError> {
        let message = Message::parse_from_carllerche_bytes(bytes)?;
        let from = message.from;
        self.raw.step(message)?;
        self.spread();
        Ok(from)
    }

    /// Offers an entry to the cluster, through the leader if that is another member.
    ///
    /// # Errors
    /// When there is no leader, or it takes nothing now; the entry is dropped.
    pub fn propose(&mut self, data: Vec<u8>) -> Result<(), NodeError> {
        Ok(self.raw.propose(Vec::new(), data)?)
    }

    /// Offers a change of the seats, with what [`change_data`] gives back from its entry. One at a time. One of several seats
    /// is joint, and the leader ends that by an entry of its own.
    ///
    /// # Errors
    /// When this member does not lead, or another change is not through.
    pub fn propose_seats(&mut self, seats: &[Seat], data: Vec<u8>) -> Result<(), NodeError> {
        let raft = &self.raw.raft;
        let is_joint = !raft.prs().conf().to_conf_state().voters_outgoing.is_empty();
        if !self.leads() || raft.has_pending_conf() || is_joint {
            return Err(NodeError::Dropped);
        }
        let changes: Vec<ConfChangeSingle> = seats.iter().map(single).collect();
        let change = ConfChangeV2 {
            transition: ConfChangeTransition::Auto,
            changes: changes.into(),
            context: data.into(),
            ..Default::default()
        };
        Ok(self.raw.propose_conf_change(Vec::new(), change)?)
    }

    /// Takes a committed change of the seats into account.
    ///
    /// # Errors
    /// When it contradicts the seats, which the proposer has checked.
    pub fn apply_seats(&mut self, entry: &Entry) -> Result<(), NodeError> {
        let change = ConfChangeV2::parse_from_carllerche_bytes(&entry.data)?;
        let seats = self.raw.apply_conf_change(&change)?;
        self.raw.mut_store().seats.push_back((entry.index, seats));
        Ok(())
    }

    /// Asks for the place up to which a read must wait to see all that was acknowledged before.
    pub fn read(&mut self, id: u64) {
        // Leaders tell questions apart by these bytes alone.
        self.raw.read_index([self.raw.raft.id, id].map(u64::to_le_bytes).concat());
    }

    /// Hands leadership to another member, if it is up to date.
    pub fn transfer(&mut self, to: u64) {
        self.raw.transfer_leader(to);
    }

    /// A member could not be reached.
    pub fn unreachable(&mut self, id: u64) {
        self.raw.report_unreachable(id);
    }

    /// A snapshot has arrived at a member, or has not.
    pub fn snapshot_sent(&mut self, id: u64, arrived: bool) {
        let status = if arrived { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw.report_snapshot(id, status);
        if !arrived {
            // Perhaps its file is gone: have another made.
            self.raw.mut_store().offer = None;
        }
    }

    /// A snapshot file is there for members that need one.
    pub fn offer(&mut self, mark: Mark) {
        self.raw.mut_store().offer = Some(mark);
    }

    /// Whether a member needs a snapshot newer than what was offered. Asked once.
    #[must_use]
    pub fn wants_snapshot(&mut self) -> bool {
        self.raw.store().wanted.take()
    }

    /// What must be done next, if anything. After writing it, call [`Node::written`].
    pub fn step(&mut self) -> Option<Effects> {
        if self.ready.is_some() || !self.raw.has_ready() {
            return None;
        }
        let mut ready = self.raw.ready();
        let entries = ready.take_entries();
        let mut effects = Effects {
            messages: outgoing(ready.take_messages()),
            install: None,
            entries: entries.iter().map(from_raft).collect(),
            vote: ready.hs().map(vote),
            committed: ready.take_committed_entries().iter().map(from_raft).collect(),
            reads: ready.take_read_states().iter().map(read).collect(),
        };
        let store = self.raw.mut_store();
        let snapshot = ready.snapshot().get_metadata();
        if snapshot.index > 0 {
            effects.install = Some(Mark { index: snapshot.index, term: snapshot.term });
            store.begin_again(snapshot.index, snapshot.term, snapshot.get_conf_state().clone());
        }
        store.append(entries);
        if let Some(hs) = ready.hs() {
            store.hard = hs.clone();
        }
        self.ready = Some(ready);
        Some(effects)
    }

    /// The last step is durable. Changes of seats in what it and this return must be applied before
    /// [`Node::done`].
    pub fn written(&mut self) -> After {
        let Some(mut ready) = self.ready.take() else { return After::default() };
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader && raft.prs().get(raft.id).is_none() {
            // A leader that let itself go while it wrote: the core would look for its own progress.
            raft.become_follower(raft.term, raft::INVALID_ID);
        }
        let mut messages = outgoing(ready.take_persisted_messages());
        let mut light = self.raw.advance_append(ready);
        if let Some(commit) = light.commit_index() {
            self.raw.mut_store().hard.commit = commit;
        }
        messages.extend(outgoing(light.take_messages()));
        let committed = light.take_committed_entries().iter().map(from_raft).collect();
        After { messages, committed }
    }

    /// All that was committed so far is on its way to the state.
    pub fn done(&mut self) {
        self.raw.advance_apply();
        self.spread();
    }

    /// Drops entries up to `index` from memory, which nobody needs any more.
    pub fn compact(&mut self, index: u64) {
        self.raw.mut_store().compact(index);
    }

    /// How many entries are in memory, and their bytes.
    #[must_use]
    pub fn kept(&self) -> (usize, usize) {
        let store = self.raw.store();
        (store.entries.len(), store.bytes)
    }

    /// Whether this member leads.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Whether this member is the only one.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        let progress = self.raw.raft.prs();
        progress.is_singleton() && progress.iter().count() == 1 && self.leads()
    }

    /// Who leads, as far as this member knows; 0 is nobody.
    #[must_use]
    pub fn leader(&self) -> u64 {
        self.raw.raft.leader_id
    }

    /// Whether a question for a read's place would be answered: a leader knows it once it has committed in its term.
    #[must_use]
    pub fn answers_reads(&self) -> bool {
        let raft = &self.raw.raft;
        if self.leads() { raft.commit_to_current_term() } else { raft.leader_id != INVALID_ID }
    }

    /// How many of the leader's entries a member is known to have; leaders only.
    #[must_use]
    pub fn matched(&self, id: u64) -> u64 {
        self.raw.raft.prs().get(id).map_or(0, |progress| progress.matched)
    }

    /// Up to which entry a member is known to know what is committed; leaders only.
    #[must_use]
    pub fn known_committed(&self, id: u64) -> u64 {
        self.raw.raft.prs().get(id).map_or(0, |progress| progress.committed_index)
    }

    /// The current term.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    /// The last entry known to be committed.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    /// The core draws its election timeout from a generator of its own: replace it by ours, another in each term.
    fn spread(&mut self) {
        let drawn = mix(self.seed ^ mix(self.raw.raft.term)) % ELECTION_TICKS as u64;
        let wanted = ELECTION_TICKS + usize::try_from(drawn).unwrap_or(0);
        if self.raw.raft.randomized_election_timeout() != wanted {
            self.raw.raft.set_randomized_election_timeout(wanted);
        }
    }
}

/// What the proposer of a change of seats gave with it; nothing in the core's own.
///
/// # Errors
/// When the entry cannot be read.
pub fn change_data(entry: &Entry) -> Result<Bytes, NodeError> {
    Ok(ConfChangeV2::parse_from_carllerche_bytes(&entry.data)?.context)
}

/// The snapshot that a message says has come before it, if any.
///
/// # Errors
/// When the message cannot be read.
pub fn snapshot_of(message: &Bytes) -> Result<Option<Mark>, NodeError> {
    let message = Message::parse_from_carllerche_bytes(message)?;
    Ok(snapshot_mark(&message))
}

fn snapshot_mark(message: &Message) -> Option<Mark> {
    let metadata = message.get_snapshot().get_metadata();
    let carries = message.get_msg_type() == MessageType::MsgSnapshot;
    carries.then_some(Mark { index: metadata.index, term: metadata.term })
}

/// A well-mixed number (splitmix64).
fn mix(n: u64) -> u64 {
    let mut n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

fn single(seat: &Seat) -> ConfChangeSingle {
    let (change_type, node_id) = match *seat {
        Seat::Voter(id) => (ConfChangeType::AddNode, id),
        Seat::Learner(id) => (ConfChangeType::AddLearnerNode, id),
        Seat::Gone(id) => (ConfChangeType::RemoveNode, id),
    };
    ConfChangeSingle { change_type, node_id, ..Default::default() }
}

fn outgoing(messages: Vec<Message>) -> Vec<Outgoing> {
    let encode = |message: Message| {
        let snapshot = snapshot_mark(&message);
        // Only a message without its required parts cannot be written, and these have none.
        let bytes = message.write_to_bytes().unwrap_or_default();
        Outgoing { to: message.to, bytes: bytes.into(), snapshot }
    };
    messages.into_iter().filter(|message| message.to != INVALID_ID).map(encode).collect()
}

fn read(state: &raft::ReadState) -> (u64, u64) {
    let mut id = [0; 8];
    id.iter_mut().zip(state.request_ctx.iter().skip(8)).for_each(|(to, from)| *to = *from);
    (u64::from_le_bytes(id), state.index)
}

fn vote(hs: &HardState) -> Vote {
    Vote { term: hs.term, vote: hs.vote, commit: hs.commit }
}

fn from_raft(entry: &RaftEntry) -> Entry {
    let kind = match entry.entry_type {
        EntryType::EntryNormal => EntryKind::Operation,
        EntryType::EntryConfChange => EntryKind::Member,
        EntryType::EntryConfChangeV2 => EntryKind::Members,
    };
    Entry { term: entry.term, index: entry.index, kind, data: entry.data.clone() }
}

fn to_raft(entry: Entry) -> RaftEntry {
    let entry_type = match entry.kind {
        EntryKind::Operation => EntryType::EntryNormal,
        EntryKind::Member => EntryType::EntryConfChange,
        EntryKind::Members => EntryType::EntryConfChangeV2,
    };
    RaftEntry {
        entry_type,
        term: entry.term,
        index: entry.index,
        data: entry.data,
        ..Default::default()
    }
}

/// The tail of the log as the core reads it back.
struct Memory {
    hard: HardState,
    /// The seats from an entry on, oldest first; the first are those of the oldest entry kept.
    seats: VecDeque<(u64, ConfState)>,
    /// The entry before the first one kept: index and term.
    before: (u64, u64),
    entries: VecDeque<RaftEntry>,
    bytes: usize,
    /// The newest snapshot that can be sent, and whether a newer one was asked for.
    offer: Option<Mark>,
    wanted: Cell<bool>,
}

impl Memory {
    fn new(start: Start) -> Self {
        let Mark { index: first, term: first_term } = start.before;
        let mut hard = HardState {
            term: start.vote.term,
            vote: start.vote.vote,
            commit: start.vote.commit.max(first).max(start.applied),
            ..Default::default()
        };
        let entries: VecDeque<RaftEntry> =
            start.entries.into_iter().filter(|entry| entry.index > first).map(to_raft).collect();
        let last = entries.back().map_or((first, first_term), |e| (e.index, e.term));
        hard.commit = hard.commit.min(last.0);
        hard.term = hard.term.max(last.1);
        let Seats { voters, outgoing, learners, learners_next } = start.seats;
        let seats = ConfState {
            auto_leave: !outgoing.is_empty(),
            voters,
            voters_outgoing: outgoing,
            learners,
            learners_next,
            ..Default::default()
        };
        let bytes = entries.iter().map(|entry| entry.data.len()).sum();
        Self {
            hard,
            seats: [(start.applied, seats)].into(),
            before: (first, first_term),
            entries,
            bytes,
            offer: None,
            wanted: Cell::new(false),
        }
    }

    fn begin_again(&mut self, index: u64, term: u64, seats: ConfState) {
        self.entries.clear();
        self.bytes = 0;
        self.before = (index, term);
        self.seats = [(index, seats)].into();
        self.offer = None;
        self.hard.commit = self.hard.commit.max(index);
    }

    fn append(&mut self, entries: Vec<RaftEntry>) {
        for entry in entries {
            while self.entries.back().is_some_and(|last| last.index >= entry.index) {
                self.bytes -= self.entries.pop_back().map_or(0, |last| last.data.len());
            }
            self.bytes += entry.data.len();
            self.entries.push_back(entry);
        }
    }

    fn compact(&mut self, index: u64) {
        while self.entries.front().is_some_and(|first| first.index <= index) {
            if let Some(first) = self.entries.pop_front() {
                self.bytes -= first.data.len();
                self.before = (first.index, first.term);
            }
        }
        while self.seats.get(1).is_some_and(|(from, _)| *from <= self.before.0) {
            self.seats.pop_front();
        }
    }

    fn last(&self) -> u64 {
        self.before.0 + self.entries.len() as u64
    }

    fn position(&self, index: u64) -> raft::Result<usize> {
        let behind = index.checked_sub(self.before.0 + 1);
        let behind = behind.ok_or(raft::Error::Store(StorageError::Compacted))?;
        usize::try_from(behind).map_err(|_| raft::Error::Store(StorageError::Unavailable))
    }

    /// The seats as they were behind an entry, if that is known.
    fn seats_at(&self, index: u64) -> Option<ConfState> {
        self.seats.iter().rev().find(|(from, _)| *from <= index).map(|(_, seats)| seats.clone())
    }
}

impl Storage for Memory {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let seats = self.seats.back().map(|(_, seats)| seats.clone()).unwrap_or_default();
        Ok(RaftState { hard_state: self.hard.clone(), conf_state: seats })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<RaftEntry>> {
        let (from, to) = (self.position(low)?, self.position(high)?);
        if to > self.entries.len() {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let mut entries: Vec<RaftEntry> = self.entries.range(from..to).cloned().collect();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.before.0 {
            return Ok(self.before.1);
        }
        let entry = self.entries.get(self.position(index)?);
        entry.map(|e| e.term).ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.before.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// Where a member behind the entries kept has to begin. The content travels beside the message.
    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let fits = |mark: &Mark| mark.index >= request_index && mark.index >= self.before.0;
        let found =
            self.offer.filter(fits).and_then(|mark| Some((mark, self.seats_at(mark.index)?)));
        // A member takes no snapshot that does not know it.
        let known = |seats: &ConfState| {
            [&seats.voters, &seats.learners, &seats.voters_outgoing].iter().any(|s| s.contains(&to))
        };
        let Some((mark, seats)) = found.filter(|(_, seats)| known(seats)) else {
            self.wanted.set(true);
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        };
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (mark.index, mark.term);
        metadata.set_conf_state(seats);
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone(start: Start) -> Node {
        let seats = Seats { voters: vec![1], ..Seats::default() };
        Node::new(Start { id: 1, seats, ..start }).unwrap()
    }

    fn settle(node: &mut Node) -> (Vec<Entry>, Vec<Entry>) {
        let (mut written, mut committed) = (Vec::new(), Vec::new());
        while let Some(effects) = node.step() {
            written.extend(effects.entries);
            committed.extend(effects.committed);
            committed.extend(node.written().committed);
            node.done();
        }
        (written, committed)
    }

    #[test]
    fn a_member_alone_leads_at_once_and_commits_what_it_wrote() {
        let mut node = alone(Start::default());
        settle(&mut node);
        assert!(node.leads());
        node.propose(b"x".to_vec()).unwrap();
        let (written, committed) = settle(&mut node);
        assert_eq!(written, committed);
        assert_eq!(committed[0].data, "x");
    }

    #[test]
    fn nothing_is_committed_before_it_is_written() {
        let mut node = alone(Start::default());
        settle(&mut node);
        node.propose(b"x".to_vec()).unwrap();
        let effects = node.step().unwrap();
        assert!(effects.committed.is_empty());
        assert_eq!(node.written().committed.len(), 1);
    }

    #[test]
    fn a_restarted_member_commits_the_rest_of_its_log() {
        let mut node = alone(Start::default());
        let (mut log, _) = settle(&mut node);
        for n in 0..3u8 {
            node.propose(vec![n]).unwrap();
        }
        log.extend(settle(&mut node).0);
        let vote = Vote { term: node.term(), vote: 1, commit: 2 };
        let mut node = alone(Start { entries: log, vote, applied: 2, ..Start::default() });
        let (_, committed) = settle(&mut node);
        let data: Vec<&[u8]> = committed.iter().map(|e| e.data.as_ref()).collect();
        assert_eq!(data, [&[1u8][..], &[2], &[]]);
        assert!(node.leads());
    }
}
