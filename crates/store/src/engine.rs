//! The running member: a thread that logs, one that applies, one that archives, and what the
//! services ask of them.
//!
//! A proposal waits for the log thread, which gathers all that wait into one sync; the apply
//! thread works on what is committed while the next sync runs, tells the watchers, then answers.
//! Reads go to the applied state directly: a member alone has nobody to ask.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError};
use std::time::Duration;

use daemon::{Clock, Disk as _, SystemDisk};
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;
use wire::etcdserverpb::{
    AlarmType, LeaseRevokeRequest, RangeRequest, RangeResponse, ResponseHeader, TxnRequest,
    TxnResponse,
};

use crate::etcd::Sink;
use crate::lessor::Lessor;
use crate::log::{self, Entry, Log};
use crate::mvcc::{Archive as _, Changes, Error, Mvcc, Op, Reply, Revision, check};
use crate::node::Node;
use crate::snapshot::Mark;
use crate::state::{Round, State};
use crate::watch::{Behind, Hub};

/// Rounds that may wait between two threads.
pub const ROUNDS_MAX: usize = 64;
/// Bytes of proposals that one sync takes.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Log bytes after which a snapshot is made, if it would not be larger than that.
const SNAPSHOT_LOG_BYTES: u64 = 64 << 20;
/// How often leases are looked at.
const LEASE_CHECK: Duration = Duration::from_millis(250);

/// Why a proposal has no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The state refused it, or it may not be proposed.
    #[error(transparent)]
    State(#[from] Error),
    /// This member does not lead.
    #[error("etcdserver: not leader")]
    NotLeader,
    /// Another leader took over before it was committed.
    #[error("etcdserver: leader changed")]
    LeaderChanged,
    /// The member is going down.
    #[error("etcdserver: server stopped")]
    Stopped,
}

type Answer = oneshot::Sender<Result<Reply, Refusal>>;

/// What the log thread is asked to do.
pub enum Ask {
    /// Replicate an operation.
    Propose(Vec<u8>, Answer),
    /// Drop log entries that a snapshot has.
    Release(Mark),
    /// End.
    Stop,
}

/// A committed entry on its way to the state, with who waits for it.
type Committed = Vec<(Entry, Option<Answer>)>;

/// The applied state and the entry it ends with.
pub struct Applied {
    /// The state.
    pub mvcc: Mvcc,
    /// The entry.
    pub mark: Mark,
}

/// Who this member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: u64,
    /// The member.
    pub member: u64,
}

/// The member as services see it.
pub struct Engine {
    /// The applied state.
    pub applied: RwLock<Applied>,
    /// Old values.
    pub state: Arc<State>,
    /// Watchers.
    pub hub: Mutex<Hub<Arc<Sink>>>,
    /// Deadlines of leases.
    pub lessor: Mutex<Lessor>,
    /// Time.
    pub clock: Clock,
    /// Who we are.
    pub identity: Identity,
    /// Bytes that keys and values may take.
    pub quota_bytes: u64,
    /// Free space below which nothing may grow any more: the log, a snapshot of what is there and
    /// the state's own tidying must still fit.
    pub disk_reserve_bytes: u64,
    /// Entries after which a snapshot is made.
    pub snapshot_entries: u64,
    /// Where snapshots go.
    pub snapshot_dir: PathBuf,
    /// To the log thread.
    pub asks: Sender<Ask>,
    /// The current term.
    pub term: AtomicU64,
    /// The last committed entry.
    pub committed: AtomicU64,
    /// Who leads.
    pub leader: AtomicU64,
    /// Up to which revision the archive has everything.
    pub archived: AtomicI64,
    /// Bytes logged since the last snapshot.
    pub logged_bytes: AtomicU64,
    /// The disk was full when it was last looked at.
    pub disk_full: AtomicBool,
}

impl Engine {
    /// Replicates an operation and returns what it did.
    ///
    /// # Errors
    /// When the state refuses it, or this member cannot replicate.
    pub async fn propose(&self, op: &Op) -> Result<Reply, Refusal> {
        let data = op.encode();
        if data.len() > check::REQUEST_BYTES_MAX {
            return Err(Error::RequestTooLarge.into());
        }
        let (answer, reply) = oneshot::channel();
        self.asks.send(Ask::Propose(data, answer)).map_err(|_| Refusal::Stopped)?;
        reply.await.unwrap_or(Err(Refusal::Stopped))
    }

    /// Replicates an operation that makes the state larger, if the quota allows it.
    ///
    /// # Errors
    /// As [`Engine::propose`], and when the quota is used up.
    pub async fn propose_growth(&self, op: &Op) -> Result<Reply, Refusal> {
        let (full, known) = {
            let applied = self.applied.read();
            let full = applied.mvcc.bytes() as u64 > self.quota_bytes || self.disk_is_full();
            (full, applied.mvcc.no_space())
        };
        if full && !known {
            let alarm = wire::etcdserverpb::AlarmRequest {
                action: wire::etcdserverpb::alarm_request::AlarmAction::Activate.into(),
                member_id: self.identity.member,
                alarm: AlarmType::Nospace.into(),
            };
            self.propose(&Op::Alarm(alarm)).await?;
        }
        if full || known {
            return Err(Error::NoSpace.into());
        }
        self.propose(op).await
    }

    /// Whether nothing may grow for want of space. Looks again only if there was none: whoever
    /// made some and cleared the alarm must not have to wait.
    fn disk_is_full(&self) -> bool {
        self.disk_full.load(Ordering::Relaxed) && self.look_at_disk()
    }

    fn look_at_disk(&self) -> bool {
        let full = match SystemDisk.free_bytes(&self.snapshot_dir) {
            Ok(free) => free < self.disk_reserve_bytes,
            Err(error) => {
                tracing::warn!(%error, "cannot tell how much space is left");
                false
            }
        };
        if self.disk_full.swap(full, Ordering::Relaxed) != full {
            tracing::warn!(full, "the disk is full, or is no longer");
        }
        full
    }

    /// Answers a range request from the applied state.
    ///
    /// # Errors
    /// When the revision is compacted or in the future.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        self.applied.read().mvcc.range(&*self.state, request)
    }

    /// Answers a transaction that only reads.
    ///
    /// # Errors
    /// As its ranges.
    pub fn read(&self, request: &TxnRequest) -> Result<TxnResponse, Error> {
        self.applied.read().mvcc.read(&*self.state, request)
    }

    /// Says who answers, beside the revision that is there.
    pub fn sign(&self, header: &mut Option<ResponseHeader>) {
        let revision = header.as_ref().map_or(0, |h| h.revision);
        *header = Some(self.header(revision));
    }

    /// A header at a revision.
    #[must_use]
    pub fn header(&self, revision: i64) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.identity.cluster,
            member_id: self.identity.member,
            revision,
            raft_term: self.term.load(Ordering::Relaxed),
        }
    }

    /// A header at the current revision.
    #[must_use]
    pub fn header_now(&self) -> ResponseHeader {
        let revision = self.applied.read().mvcc.revision();
        self.header(revision)
    }

    /// Changes from a revision on, whole revisions, about `bytes_max` of them, and the first
    /// revision after what was looked at; with the pairs before if asked.
    ///
    /// # Errors
    /// The last compaction, if the revision is before it.
    pub fn history(
        &self,
        from: i64,
        bytes_max: usize,
        prev: bool,
    ) -> Result<(Vec<Changes>, i64), i64> {
        let to = {
            let applied = self.applied.read();
            let mvcc = &applied.mvcc;
            if from < mvcc.compacted() {
                return Err(mvcc.compacted());
            }
            if let Some(changes) = mvcc.recent(from, bytes_max) {
                let next = changes.last().map_or(from, |last| last.main + 1);
                return Ok((changes, next));
            }
            mvcc.recent_from().map_or(mvcc.revision(), |first| first - 1)
        };
        let mut found = self.state.changes(from, to, bytes_max);
        let applied = self.applied.read();
        if from < applied.mvcc.compacted() {
            return Err(applied.mvcc.compacted());
        }
        if prev {
            for changes in &mut found {
                fill_prev(&applied.mvcc, &self.state, changes);
            }
        }
        // Memory lets go only of what is archived, so where nothing is found nothing ever was.
        let next = found.last().map_or(to, |last| last.main) + 1;
        Ok((found, next))
    }

    /// Ends leases whose time has come, as long as this member leads.
    pub async fn expire_leases(&self) {
        loop {
            tokio::time::sleep(LEASE_CHECK).await;
            if self.leader.load(Ordering::Relaxed) != self.identity.member {
                continue;
            }
            let expired = self.lessor.lock().expired(self.clock.monotonic());
            for id in expired {
                let ended = self.propose(&Op::Revoke(LeaseRevokeRequest { id })).await;
                match ended {
                    Ok(_) | Err(Refusal::State(_)) => {}
                    Err(error) => {
                        tracing::debug!(id, %error, "cannot end a lease yet");
                        self.lessor.lock().retry(id);
                    }
                }
            }
        }
    }
}

fn fill_prev(mvcc: &Mvcc, state: &State, changes: &mut Changes) {
    let main = changes.main;
    let events = changes.events.iter().enumerate().map(|(sub, event)| {
        let at = Revision { main, sub: u32::try_from(sub).unwrap_or(u32::MAX) };
        let prev_kv = event.kv.as_ref().and_then(|kv| mvcc.before(state, &kv.key, at));
        wire::mvccpb::Event { prev_kv, ..event.clone() }
    });
    changes.events = events.collect();
}

/// Runs the log thread until it is told to stop.
///
/// # Errors
/// When the disk fails: nothing can be acknowledged any more.
pub fn log_thread(
    engine: &Engine,
    mut node: Node,
    mut log: Log,
    asks: &Receiver<Ask>,
    apply: &SyncSender<Committed>,
) -> anyhow::Result<()> {
    let mut waiting: VecDeque<(u64, u64, Answer)> = VecDeque::new();
    let mut vote = (0, 0);
    loop {
        while let Some(effects) = node.step() {
            let bytes: usize = effects.entries.iter().map(|e| e.data.len() + 40).sum();
            for entry in &effects.entries {
                log.entry(entry);
            }
            // The commit index alone need not be durable: a restart finds it again.
            if let Some(new) = effects.vote.filter(|v| (v.term, v.vote) != vote) {
                log.vote(new);
                vote = (new.term, new.vote);
            }
            log.sync()?;
            engine.logged_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            let mut committed = effects.committed;
            committed.extend(node.written());
            engine.term.store(node.term(), Ordering::Relaxed);
            engine.leader.store(node.leader(), Ordering::Relaxed);
            engine.committed.store(node.committed(), Ordering::Relaxed);
            if let Some(last) = committed.last() {
                node.compact(last.index);
                let round = committed.into_iter().map(|e| with_answer(e, &mut waiting)).collect();
                apply.send(round)?;
            }
        }
        let Ok(mut ask) = asks.recv() else { return Ok(()) };
        let mut bytes = 0;
        loop {
            match ask {
                Ask::Stop => return Ok(()),
                Ask::Release(mark) => log.release(mark.index)?,
                Ask::Propose(data, answer) => {
                    bytes += data.len();
                    match node.propose(data) {
                        Ok((term, index)) => waiting.push_back((index, term, answer)),
                        Err(_) => drop(answer.send(Err(Refusal::NotLeader))),
                    }
                }
            }
            if bytes > BATCH_BYTES_MAX {
                break;
            }
            match asks.try_recv() {
                Ok(next) => ask = next,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
    }
}

/// Finds who waits for an entry. Whoever waited for its place in another term has lost it.
fn with_answer(
    entry: Entry,
    waiting: &mut VecDeque<(u64, u64, Answer)>,
) -> (Entry, Option<Answer>) {
    while let Some((index, term, answer)) = waiting.pop_front() {
        if index > entry.index {
            waiting.push_front((index, term, answer));
            break;
        }
        if (index, term) == (entry.index, entry.term) {
            return (entry, Some(answer));
        }
        drop(answer.send(Err(Refusal::LeaderChanged)));
    }
    (entry, None)
}

/// Runs the apply thread until the log thread ends.
///
/// # Errors
/// When a committed entry cannot be read: this member cannot go on.
pub fn apply_thread(
    engine: &Engine,
    rounds: &Receiver<Committed>,
    archive: &SyncSender<Round>,
) -> anyhow::Result<()> {
    let mut replies = Vec::new();
    while let Ok(committed) = rounds.recv() {
        let mut round = Round::default();
        {
            let mut applied = engine.applied.write();
            for (entry, answer) in committed {
                let reply = apply(engine, &mut applied, entry, &mut round)?;
                replies.extend(answer.zip(reply));
            }
            applied.mvcc.cool(engine.archived.load(Ordering::Acquire));
            round.mark = applied.mark;
            round.revision = applied.mvcc.revision();
            round.compacted = applied.mvcc.compacted();
        }
        publish(engine, &round.changes);
        for (answer, reply) in replies.drain(..) {
            // Whoever does not wait any more does not need it.
            drop(answer.send(reply));
        }
        archive.send(round)?;
    }
    Ok(())
}

/// Applies one entry and notes in `round` what it changed.
///
/// # Errors
/// When the entry cannot be read.
pub fn apply(
    engine: &Engine,
    applied: &mut Applied,
    entry: Entry,
    round: &mut Round,
) -> anyhow::Result<Option<Result<Reply, Refusal>>> {
    assert!(entry.index == applied.mark.index + 1);
    applied.mark = Mark { index: entry.index, term: entry.term };
    if entry.data.is_empty() {
        return Ok(None); // a new leader's first entry
    }
    let op = Op::decode(entry.data)
        .map_err(|error| anyhow::anyhow!("entry {}: {error}", entry.index))?;
    let alarms = matches!(op, Op::Alarm(_)).then(|| applied.mvcc.summary().alarms);
    let outcome = applied.mvcc.apply(&op, &*engine.state);
    round.changes.extend(outcome.changes);
    round.removed.extend(outcome.removed);
    match (&op, &outcome.reply) {
        (Op::Grant(_), Ok(Reply::Grant(granted))) => {
            round.leases.push((granted.id, Some(granted.ttl)));
            let now = engine.clock.monotonic();
            engine.lessor.lock().begin(granted.id, granted.ttl, now);
        }
        (Op::Revoke(request), Ok(_)) => {
            round.leases.push((request.id, None));
            engine.lessor.lock().end(request.id);
        }
        (Op::Alarm(_), Ok(_)) => {
            let before = alarms.unwrap_or_default();
            let after = applied.mvcc.summary().alarms;
            round.alarms.extend(before.iter().filter(|a| !after.contains(a)).map(|a| (*a, false)));
            round.alarms.extend(after.iter().map(|a| (*a, true)));
        }
        _ => {}
    }
    Ok(Some(outcome.reply.map_err(Refusal::State)))
}

fn publish(engine: &Engine, changes: &[Changes]) {
    if changes.is_empty() {
        return;
    }
    let header = engine.header(0);
    let mut hub = engine.hub.lock();
    let behind = hub.publish(header, changes, |sink, responses| sink.offer(responses));
    for Behind { stream, watch, next } in behind {
        stream.fell_behind(watch, next);
    }
}

/// Runs the archive thread until the apply thread ends: writes old values to disk and makes
/// snapshots. Closes the state at the end.
///
/// # Errors
/// When the disk fails.
pub fn archive_thread(engine: &Engine, rounds: &Receiver<Round>) -> anyhow::Result<()> {
    let mut last = engine.applied.read().mark;
    let mut snapshot_bytes = 0;
    while let Ok(round) = rounds.recv() {
        let mut round = round;
        while let Ok(next) = rounds.try_recv() {
            merge(&mut round, next);
        }
        engine.state.write(&round)?;
        engine.archived.store(round.revision, Ordering::Release);
        engine.look_at_disk();
        let entries = round.mark.index.saturating_sub(last.index);
        let logged = engine.logged_bytes.load(Ordering::Relaxed);
        let due = entries >= engine.snapshot_entries || logged >= SNAPSHOT_LOG_BYTES;
        if due && logged >= snapshot_bytes {
            engine.logged_bytes.store(0, Ordering::Relaxed);
            match snapshot(engine) {
                Ok(made) => (last, snapshot_bytes) = made,
                // The log goes on without it, and as much of it must come before the next try.
                Err(error) if log::is_full(&error) => {
                    tracing::warn!(%error, "no room for a snapshot");
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
            // The log reaches back to the older of the two snapshots that are kept.
            if let [_, (older, _), ..] =
                crate::snapshot::list(&SystemDisk, &engine.snapshot_dir)?[..]
            {
                drop(engine.asks.send(Ask::Release(older)));
            }
        }
    }
    engine.state.close()?;
    Ok(())
}

fn merge(round: &mut Round, next: Round) {
    // What is removed was written before; a batch keeps the order of its operations.
    round.mark = next.mark;
    round.revision = next.revision;
    round.compacted = next.compacted;
    round.changes.extend(next.changes);
    round.removed.extend(next.removed);
    round.leases.extend(next.leases);
    round.alarms.extend(next.alarms);
}

/// Writes the applied state to a snapshot file.
///
/// # Errors
/// When the disk fails.
pub fn snapshot(engine: &Engine) -> io::Result<(Mark, u64)> {
    let (mvcc, mark) = {
        let applied = engine.applied.read();
        (applied.mvcc.clone(), applied.mark)
    };
    let bytes =
        crate::snapshot::save(&SystemDisk, &engine.snapshot_dir, (&mvcc, mark), &*engine.state)?;
    tracing::info!(index = mark.index, bytes, "made a snapshot");
    Ok((mark, bytes))
}
