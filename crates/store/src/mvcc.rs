//! The replicated state: every key at every revision that is not compacted, and the leases.
//!
//! Pure: the same operations in the same order give the same state on every member. Knows neither
//! time nor disk; old values that memory does not keep come from an [`Archive`].

pub mod check;
pub mod error;
mod hash;
pub mod index;
pub mod lease;
pub mod op;
pub mod range;
pub mod record;
pub mod span;
mod txn;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use wire::etcdserverpb::alarm_request::AlarmAction;
use wire::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, CompactionResponse, DeleteRangeResponse,
    LeaseGrantResponse, LeaseRevokeResponse, PutResponse, RangeRequest, RangeResponse,
    ResponseHeader, TxnRequest, TxnResponse,
};
use wire::mvccpb::Event;

pub use error::Error;
pub use hash::hash;
pub use index::{Index, LARGE_BYTES, Revision, Version};
pub use lease::Leases;
pub use op::Op;
pub use range::Found;
pub use span::Span;

use range::View;
use txn::Write;

/// Bytes of changes that stay in memory for watchers that are a little behind.
const RECENT_BYTES_MAX: usize = 16 << 20;
/// What one change costs beside its key and values.
const EVENT_BYTES: usize = 256;

/// Cold values by revision.
pub trait Archive: Send + Sync {
    /// The values written at revisions, each of which has so many bytes; nothing for one that is lost.
    fn values(&self, wanted: &[(Revision, u32)]) -> Vec<Option<Bytes>>;
    /// One of them.
    fn value(&self, at: Revision, size: u32) -> Option<Bytes> {
        self.values(&[(at, size)]).pop().flatten()
    }
    /// The changes at revisions `from..=to`, at most about `bytes_max`, whole revisions, oldest
    /// first. The previous pairs are not filled in.
    ///
    /// # Errors
    /// `Corrupt` when the disk does not give them: what is missing must not look like nothing.
    fn changes(&self, from: i64, to: i64, bytes_max: usize) -> Result<Vec<Changes>, Error>;
}

/// Nothing is ever cold where all values stay in memory.
impl Archive for () {
    fn values(&self, wanted: &[(Revision, u32)]) -> Vec<Option<Bytes>> {
        vec![None; wanted.len()]
    }

    fn changes(&self, _from: i64, _to: i64, _bytes_max: usize) -> Result<Vec<Changes>, Error> {
        Ok(Vec::new())
    }
}

/// Everything that one revision changed, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Changes {
    /// The revision.
    pub main: i64,
    /// Its changes; the position is the sub revision.
    pub events: Arc<[Event]>,
}

impl Changes {
    /// Whether a pair that was replaced is not there, since its value was cold.
    #[must_use]
    pub fn lack_prev(&self) -> bool {
        // A deletion and any version but the first replace one.
        let first = |kv: &wire::mvccpb::KeyValue| kv.version == 1;
        self.events.iter().any(|e| e.prev_kv.is_none() && !e.kv.as_ref().is_some_and(first))
    }
}

/// The answer to an operation.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// To a put.
    Put(PutResponse),
    /// To a delete.
    Delete(DeleteRangeResponse),
    /// To a transaction.
    Txn(TxnResponse),
    /// To a compaction.
    Compact(CompactionResponse),
    /// To the grant of a lease.
    Grant(LeaseGrantResponse),
    /// To the end of a lease.
    Revoke(LeaseRevokeResponse),
    /// To a change of alarms.
    Alarm(AlarmResponse),
    /// To a change of members.
    Members,
    /// To a change of users and roles.
    Auth,
    /// To a session that begins: its token.
    Token(String),
}

/// What an operation did.
#[derive(Debug)]
pub struct Outcome {
    /// What the client hears.
    pub reply: Result<Reply, Error>,
    /// What watchers hear and the archive keeps.
    pub changes: Option<Changes>,
    /// What the archive may forget.
    pub removed: Vec<Revision>,
}

/// The whole state.
#[derive(Debug, Clone)]
pub struct Mvcc {
    index: Index,
    leases: Leases,
    alarms: BTreeSet<(u64, i32)>,
    revision: i64,
    compacted: i64,
    /// Keys by the revision at which one of their versions went out of sight, oldest first.
    stale: VecDeque<(i64, Bytes)>,
    recent: VecDeque<Changes>,
    recent_bytes: usize,
    live_bytes: usize,
}

impl Default for Mvcc {
    fn default() -> Self {
        Self {
            index: Index::default(),
            leases: Leases::default(),
            alarms: BTreeSet::new(),
            revision: 1,
            compacted: -1,
            stale: VecDeque::new(),
            recent: VecDeque::new(),
            recent_bytes: 0,
            live_bytes: 0,
        }
    }
}

impl Mvcc {
    /// The newest revision.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The revision below which history is forgotten; -1 if it never was.
    #[must_use]
    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    /// The leases.
    #[must_use]
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// The keys.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Bytes of all keys and values at all revisions, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.live_bytes
    }

    /// The alarms that are raised, by member.
    pub fn alarms(&self) -> impl Iterator<Item = (u64, AlarmType)> {
        let known = |kind: i32| AlarmType::try_from(kind).unwrap_or(AlarmType::None);
        self.alarms.iter().map(move |(member, kind)| (*member, known(*kind)))
    }

    /// Whether a member is out of space, so that nothing may grow.
    #[must_use]
    pub fn no_space(&self) -> bool {
        self.alarms.iter().any(|(_, kind)| *kind == i32::from(AlarmType::Nospace))
    }

    /// Applies one operation.
    pub fn apply(&mut self, op: &Op, archive: &dyn Archive) -> Outcome {
        let mut removed = Vec::new();
        let mut write = Write::new(self, archive);
        let reply = match op {
            Op::Put(request) => write.put(request).map(Reply::Put),
            Op::Delete(request) => write.delete(request).map(Reply::Delete),
            Op::Txn(request) => write.txn(request).map(Reply::Txn),
            other => {
                let changes = match other {
                    Op::Revoke(request) => return self.revoke(request.id, archive),
                    Op::Compact(request) => self.compact(request.revision).map(|gone| {
                        removed = gone;
                        Reply::Compact(CompactionResponse { header: Some(self.header()) })
                    }),
                    Op::Grant(request) => self.grant(request.id, request.ttl),
                    Op::Alarm(request) => Ok(self.alarm(request)),
                    Op::Put(_) | Op::Delete(_) | Op::Txn(_) | Op::Auth(_) => Err(Error::Corrupt),
                };
                return Outcome { reply: changes, changes: None, removed };
            }
        };
        let events = write.finish();
        Outcome { reply, changes: self.remember(events), removed }
    }

    /// Answers a range request.
    ///
    /// # Errors
    /// When the revision is compacted or in the future.
    pub fn range(
        &self,
        archive: &dyn Archive,
        request: &RangeRequest,
    ) -> Result<RangeResponse, Error> {
        let mut response = self.find(request)?.finish(archive)?;
        response.header = Some(self.header());
        Ok(response)
    }

    /// Finds what a range request asks for, without the values that are cold.
    ///
    /// # Errors
    /// When the revision is compacted or in the future.
    pub fn find(&self, request: &RangeRequest) -> Result<Found, Error> {
        let view = View { current: self.revision, compacted: self.compacted };
        range::find(&self.index, view, request)
    }

    /// Answers a transaction that only reads.
    ///
    /// # Errors
    /// As its ranges.
    pub fn read(&self, archive: &dyn Archive, request: &TxnRequest) -> Result<TxnResponse, Error> {
        txn::read(self, archive, request)
    }

    /// A header with the revision; who and where is filled in by the services.
    #[must_use]
    pub fn header(&self) -> ResponseHeader {
        ResponseHeader { revision: self.revision, ..Default::default() }
    }

    /// Changes from memory at revisions from `from` on, if memory goes back that far.
    #[must_use]
    pub fn recent(&self, from: i64, bytes_max: usize) -> Option<Vec<Changes>> {
        if from > self.revision {
            return Some(Vec::new());
        }
        if self.recent.front().is_none_or(|first| first.main > from) {
            return None;
        }
        let start = self.recent.partition_point(|changes| changes.main < from);
        let mut bytes = 0;
        let fits = |changes: &&Changes| {
            let before = bytes;
            bytes += size(changes);
            before < bytes_max
        };
        Some(self.recent.range(start..).take_while(fits).cloned().collect())
    }

    /// The oldest revision that memory has the changes of.
    #[must_use]
    pub fn recent_from(&self) -> Option<i64> {
        self.recent.front().map(|changes| changes.main)
    }

    /// The pair that a change at `at` replaced, if it was alive and is not compacted.
    #[must_use]
    pub fn before(
        &self,
        archive: &dyn Archive,
        key: &Bytes,
        at: Revision,
    ) -> Option<wire::mvccpb::KeyValue> {
        let version = self.index.history(key)?.before(at)?;
        if version.is_tombstone() {
            return None;
        }
        let value = range::value(version, archive).ok()?;
        Some(wire::mvccpb::KeyValue { value, ..version.bare(key) })
    }

    /// Lets values go that are old or large, as far as they are beyond memory's share and the archive has them: up to
    /// revision `archived`.
    pub fn cool(&mut self, archived: i64) {
        while self.recent_bytes > RECENT_BYTES_MAX {
            let Some(first) = self.recent.front().filter(|c| c.main <= archived) else { return };
            self.recent_bytes -= size(first);
            let Some(changes) = self.recent.pop_front() else { return };
            for (sub, event) in changes.events.iter().enumerate() {
                let Some(kv) = &event.kv else { continue };
                let at = Revision { main: changes.main, sub: u32::try_from(sub).unwrap_or(0) };
                self.index.cool(&kv.key, at);
            }
        }
    }

    /// Lets all values go that are old or large: the archive has everything.
    pub fn cool_all(&mut self) {
        self.index.cool_all();
    }

    /// Adds the newest version of a key, whose older versions are stale from now on.
    fn push(&mut self, key: &Bytes, version: Version) {
        let main = version.at.main;
        self.live_bytes += weigh(key, &version);
        let first = self.index.push(key, version);
        if !first {
            self.stale.push_back((main, key.clone()));
        }
    }

    fn remember(&mut self, events: Vec<Event>) -> Option<Changes> {
        if events.is_empty() {
            return None;
        }
        let changes = Changes { main: self.revision, events: events.into() };
        self.recent_bytes += size(&changes);
        self.recent.push_back(changes.clone());
        Some(changes)
    }

    fn compact(&mut self, revision: i64) -> Result<Vec<Revision>, Error> {
        if revision <= self.compacted {
            return Err(Error::Compacted);
        }
        if revision > self.revision {
            return Err(Error::FutureRevision);
        }
        self.compacted = revision;
        let mut removed = Vec::new();
        let mut again = Vec::new();
        while self.stale.front().is_some_and(|(main, _)| *main <= revision) {
            let Some((main, key)) = self.stale.pop_front() else { break };
            for version in self.index.trim(&key, revision) {
                self.live_bytes = self.live_bytes.saturating_sub(weigh(&key, &version));
                removed.push(version.at);
            }
            if main == revision {
                again.push((main, key)); // a tombstone of this very revision may be left
            }
        }
        for item in again.into_iter().rev() {
            self.stale.push_front(item);
        }
        while self.recent.front().is_some_and(|first| first.main < revision) {
            if let Some(first) = self.recent.pop_front() {
                self.recent_bytes -= size(&first);
            }
        }
        Ok(removed)
    }

    /// Forgets all history and goes on at a later revision, so that whoever saw this store before
    /// it was restored cannot take new revisions for ones it knows.
    pub fn raise(&mut self, by: i64) {
        self.revision = self.revision.saturating_add(by.max(0));
        self.alarms.clear();
        // Refused only where it is done already.
        let _removed = self.compact(self.revision);
    }

    fn grant(&mut self, id: i64, ttl_s: i64) -> Result<Reply, Error> {
        let ttl = self.leases.grant(id, ttl_s)?;
        let header = Some(self.header());
        Ok(Reply::Grant(LeaseGrantResponse { header, id, ttl, error: String::new() }))
    }

    fn revoke(&mut self, id: i64, archive: &dyn Archive) -> Outcome {
        let lease = match self.leases.revoke(id) {
            Ok(lease) => lease,
            Err(error) => {
                return Outcome { reply: Err(error), changes: None, removed: Vec::new() };
            }
        };
        let mut write = Write::new(self, archive);
        write.bury_keys(lease.keys.iter());
        let events = write.finish();
        let changes = self.remember(events);
        let reply = Reply::Revoke(LeaseRevokeResponse { header: Some(self.header()) });
        Outcome { reply: Ok(reply), changes, removed: Vec::new() }
    }

    fn alarm(&mut self, request: &AlarmRequest) -> Reply {
        let member = |(member_id, alarm): (u64, i32)| AlarmMember { member_id, alarm };
        let one = (request.member_id, request.alarm);
        let alarms = match request.action() {
            AlarmAction::Get => self.alarms.iter().copied().map(member).collect(),
            AlarmAction::Activate => {
                self.alarms.insert(one);
                vec![member(one)]
            }
            AlarmAction::Deactivate => {
                let matches = |&(id, kind): &(u64, i32)| {
                    (request.member_id == 0 || request.member_id == id)
                        && (request.alarm == 0 || request.alarm == kind)
                };
                let (gone, left) = self.alarms.iter().partition(|alarm| matches(alarm));
                let gone: BTreeSet<(u64, i32)> = gone;
                self.alarms = left;
                gone.into_iter().map(member).collect()
            }
        };
        Reply::Alarm(AlarmResponse { header: Some(self.header()), alarms })
    }
}

/// Bytes that one version takes, for the quota.
fn weigh(key: &Bytes, version: &Version) -> usize {
    key.len() + version.size as usize + index::VERSION_BYTES
}

fn size(changes: &Changes) -> usize {
    let kv = |kv: &Option<wire::mvccpb::KeyValue>| {
        kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len())
    };
    changes.events.iter().map(|e| EVENT_BYTES + kv(&e.kv) + kv(&e.prev_kv)).sum()
}

#[cfg(test)]
mod tests;
