//! A pure step around the raft core: inputs go in, what must be written, sent and applied comes
//! out. The only file that names raft's types; knows neither disk, time nor sockets.

use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry as RaftEntry, EntryType, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, RawNode, StateRole, Storage, StorageError};

use crate::log::{Entry, EntryKind, Vote};

/// Ticks without a leader after which a member stands for election, before spreading.
const ELECTION_TICKS: usize = 10;
const HEARTBEAT_TICKS: usize = 1;

/// Where a member starts from.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// Its own id.
    pub id: u64,
    /// The voters of the cluster.
    pub voters: Vec<u64>,
    /// Its last vote.
    pub vote: Vote,
    /// The entry that its snapshot ends with: index and term.
    pub snapshot: (u64, u64),
    /// The entries behind it.
    pub entries: Vec<Entry>,
    /// The last entry that its state has.
    pub applied: u64,
    /// Ticks to be added to the election timeout, drawn by the caller: seeds must replay.
    pub election_spread: usize,
}

/// What a step asks for. Entries and vote must be durable before [`Node::written`] is called.
#[derive(Debug, Default)]
pub struct Effects {
    /// To be written to the log.
    pub entries: Vec<Entry>,
    /// To be written to the log.
    pub vote: Option<Vote>,
    /// To be applied, in order.
    pub committed: Vec<Entry>,
}

/// What went wrong inside the raft core.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// This member does not lead; the proposal was dropped.
    #[error("etcdserver: not leader")]
    NotLeader,
    /// The core refused.
    #[error("raft: {0}")]
    Raft(#[from] raft::Error),
}

/// One member's view of the replicated log.
pub struct Node {
    raw: RawNode<Memory>,
    ready: Option<raft::Ready>,
    election_spread: usize,
}

impl Node {
    /// Takes up where the member left off. A member alone leads at once.
    ///
    /// # Errors
    /// When the core refuses the start, which is a mistake of ours.
    pub fn new(start: Start) -> Result<Self, NodeError> {
        let alone = start.voters == [start.id];
        let config = raft::Config {
            id: start.id,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied: start.applied,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 256,
            check_quorum: true,
            pre_vote: true,
            ..Default::default()
        };
        let election_spread = start.election_spread % ELECTION_TICKS;
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, Memory::new(start), &logger)?;
        let mut node = Self { raw, ready: None, election_spread };
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

    /// Offers an entry to the cluster and says which term and place it will have if it is
    /// committed.
    ///
    /// # Errors
    /// When this member does not lead.
    pub fn propose(&mut self, data: Vec<u8>) -> Result<(u64, u64), NodeError> {
        if !self.leads() {
            return Err(NodeError::NotLeader);
        }
        self.raw.propose(Vec::new(), data)?;
        Ok((self.raw.raft.term, self.raw.raft.raft_log.last_index()))
    }

    /// What must be done next, if anything. After writing it, call [`Node::written`].
    pub fn step(&mut self) -> Option<Effects> {
        if self.ready.is_some() || !self.raw.has_ready() {
            return None;
        }
        let mut ready = self.raw.ready();
        let entries = ready.take_entries();
        let effects = Effects {
            entries: entries.iter().map(from_raft).collect(),
            vote: ready.hs().map(vote),
            committed: ready.take_committed_entries().iter().map(from_raft).collect(),
        };
        let store = self.raw.mut_store();
        store.append(entries);
        if let Some(hs) = ready.hs() {
            store.hard = hs.clone();
        }
        self.ready = Some(ready);
        Some(effects)
    }

    /// The last step's entries and vote are durable. Returns what is committed by that.
    pub fn written(&mut self) -> Vec<Entry> {
        let Some(ready) = self.ready.take() else { return Vec::new() };
        let mut light = self.raw.advance_append(ready);
        if let Some(commit) = light.commit_index() {
            self.raw.mut_store().hard.commit = commit;
        }
        let committed: Vec<Entry> = light.take_committed_entries().iter().map(from_raft).collect();
        self.raw.advance_apply();
        self.spread();
        committed
    }

    /// Drops entries up to `index` from memory; the caller's snapshot has them.
    pub fn compact(&mut self, index: u64) {
        self.raw.mut_store().compact(index);
    }

    /// Whether this member leads.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Who leads, as far as this member knows; 0 is nobody.
    #[must_use]
    pub fn leader(&self) -> u64 {
        self.raw.raft.leader_id
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

    /// The core draws its election timeout from a generator of its own: replace it by ours.
    fn spread(&mut self) {
        let wanted = ELECTION_TICKS + self.election_spread;
        if self.raw.raft.randomized_election_timeout() != wanted {
            self.raw.raft.set_randomized_election_timeout(wanted);
        }
    }
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
    voters: Vec<u64>,
    /// The entry before the first one kept: index and term.
    before: (u64, u64),
    entries: VecDeque<RaftEntry>,
}

impl Memory {
    fn new(start: Start) -> Self {
        let mut hard = HardState {
            term: start.vote.term,
            vote: start.vote.vote,
            commit: start.vote.commit.max(start.snapshot.0).max(start.applied),
            ..Default::default()
        };
        let entries: VecDeque<RaftEntry> = start
            .entries
            .into_iter()
            .filter(|entry| entry.index > start.snapshot.0)
            .map(to_raft)
            .collect();
        let last = entries.back().map_or(start.snapshot, |e| (e.index, e.term));
        hard.commit = hard.commit.min(last.0);
        hard.term = hard.term.max(last.1);
        Self { hard, voters: start.voters, before: start.snapshot, entries }
    }

    fn append(&mut self, entries: Vec<RaftEntry>) {
        for entry in entries {
            while self.entries.back().is_some_and(|last| last.index >= entry.index) {
                self.entries.pop_back();
            }
            self.entries.push_back(entry);
        }
    }

    fn compact(&mut self, index: u64) {
        while self.entries.front().is_some_and(|first| first.index <= index) {
            if let Some(first) = self.entries.pop_front() {
                self.before = (first.index, first.term);
            }
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
}

impl Storage for Memory {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let members = ConfState { voters: self.voters.clone(), ..Default::default() };
        Ok(RaftState { hard_state: self.hard.clone(), conf_state: members })
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

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone(start: Start) -> Node {
        Node::new(Start { id: 1, voters: vec![1], ..start }).unwrap()
    }

    fn settle(node: &mut Node) -> (Vec<Entry>, Vec<Entry>) {
        let (mut written, mut committed) = (Vec::new(), Vec::new());
        while let Some(effects) = node.step() {
            written.extend(effects.entries);
            committed.extend(effects.committed);
            committed.extend(node.written());
        }
        (written, committed)
    }

    #[test]
    fn a_member_alone_leads_at_once_and_commits_what_it_wrote() {
        let mut node = alone(Start::default());
        settle(&mut node);
        assert!(node.leads());
        let at = node.propose(b"x".to_vec()).unwrap();
        let (written, committed) = settle(&mut node);
        assert_eq!(written, committed);
        assert_eq!(at, (committed[0].term, committed[0].index));
        assert_eq!(committed[0].data, "x");
    }

    #[test]
    fn nothing_is_committed_before_it_is_written() {
        let mut node = alone(Start::default());
        settle(&mut node);
        node.propose(b"x".to_vec()).unwrap();
        let effects = node.step().unwrap();
        assert!(effects.committed.is_empty());
        assert_eq!(node.written().len(), 1);
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
