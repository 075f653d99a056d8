//! The running member as services see it: they ask it to replicate, to read and to catch up.
//!
//! The threads behind it are in [`crate::threads`].

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use daemon::{Clock, Disk as _, SystemDisk};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};
use wire::etcdserverpb::{
    AlarmType, CompactionRequest, LeaseRevokeRequest, RangeRequest, RangeResponse, ResponseHeader,
    TxnRequest, TxnResponse,
};

use crate::applied::Applied;
use crate::auth::By;
use crate::compactor::{Compactor, Keep};
use crate::etcd::Sink;
use crate::lessor::Lessor;
use crate::members::{Change, Members};
use crate::metrics::Figures;
use crate::mvcc::{Archive as _, Changes, Error, Found, Mvcc, Op, Reply, Revision, check};
use crate::replica::{Input, Refusal};
use crate::state::State;
use crate::tokens::Tokens;
use crate::watch::Hub;

/// Requests and messages that may wait for the log thread.
pub const ASKS_MAX: usize = 16 << 10;
/// How often leases are looked at.
const LEASE_CHECK: Duration = Duration::from_millis(250);

/// Who waits for a reply.
pub type Answer = oneshot::Sender<Result<Reply, Refusal>>;
/// Who waits until a read sees all that was acknowledged before.
pub type Turn = oneshot::Sender<Result<(), Refusal>>;

/// What the log thread is asked to do.
#[derive(Debug)]
pub enum Ask {
    /// Replicate an operation.
    Propose(Vec<u8>, Answer),
    /// Replicate what the leader of a term has decided, if this member still leads in it.
    Lead(u64, Vec<u8>, Answer),
    /// Replicate a change of members; only the leader does.
    Change(Change, Answer),
    /// Let a read have its turn.
    Read(Turn),
    /// What peers and snapshots bring.
    Tell(Input),
    /// End.
    Stop,
}

/// Who this member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: u64,
    /// The member.
    pub member: u64,
}

/// Why a piece of history cannot be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missed {
    /// It is before this compaction.
    Compacted(i64),
    /// The disk does not give it.
    Lost(Error),
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
    /// Sessions of users.
    pub tokens: Mutex<Tokens>,
    /// Whether callers are checked.
    pub auth_enabled: AtomicBool,
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
    pub asks: SyncSender<Ask>,
    /// The members, for those who follow their changes.
    pub members: watch::Sender<Members>,
    /// Whether there are no other members, so that everything acknowledged is applied here.
    pub alone: AtomicBool,
    /// The current term.
    pub term: AtomicU64,
    /// The last committed entry.
    pub committed: AtomicU64,
    /// Who leads.
    pub leader: AtomicU64,
    /// The last term in which this member led and gave all leases their full life.
    pub leases_term: AtomicU64,
    /// Held while the archive is filled anew: what it says meanwhile is not all.
    pub refill: RwLock<()>,
    /// Somebody waits to fill it: whoever reads it at the pace of a client must stop.
    pub replacing: watch::Sender<bool>,
    /// Up to which revision the archive has everything.
    pub archived: AtomicI64,
    /// Bytes logged since the last snapshot.
    pub logged_bytes: AtomicU64,
    /// The disk was full when it was last looked at.
    pub disk_full: AtomicBool,
    /// What is counted for the metrics.
    pub figures: Figures,
}

impl Engine {
    /// Replicates an operation of a caller and returns what it did.
    ///
    /// # Errors
    /// When the state refuses it, the caller may not do it, or this member cannot replicate.
    pub async fn propose(&self, by: &By, op: &Op) -> Result<Reply, Refusal> {
        let data = op.encode_by(by);
        if data.len() > check::REQUEST_BYTES_MAX {
            return Err(Error::RequestTooLarge.into());
        }
        let _waits = self.figures.waits();
        let (answer, reply) = oneshot::channel();
        let done = match self.ask(Ask::Propose(data, answer)) {
            Ok(()) => reply.await.unwrap_or(Err(Refusal::Stopped)),
            Err(refusal) => Err(refusal),
        };
        if matches!(&done, Err(refusal) if !refusal.is_answer()) {
            self.figures.failed.inc();
        }
        done
    }

    /// Replicates a change of members, if this member leads.
    ///
    /// # Errors
    /// When the members cannot change so, or this member cannot replicate.
    pub async fn change(&self, change: Change) -> Result<(), Refusal> {
        let (answer, reply) = oneshot::channel();
        self.ask(Ask::Change(change, answer))?;
        reply.await.unwrap_or(Err(Refusal::Stopped)).map(drop)
    }

    /// Waits until the applied state has all that was acknowledged to anybody before.
    ///
    /// # Errors
    /// When no leader confirms it in time.
    pub async fn turn(&self) -> Result<(), Refusal> {
        if self.alone.load(Ordering::Acquire) {
            // What is acknowledged was applied here before.
            return Ok(());
        }
        let (turn, come) = oneshot::channel();
        self.ask(Ask::Read(turn))?;
        come.await.unwrap_or(Err(Refusal::Stopped))
    }

    /// Asks the log thread, unless too many wait for it.
    ///
    /// # Errors
    /// When they do, or it has ended.
    pub fn ask(&self, ask: Ask) -> Result<(), Refusal> {
        self.asks.try_send(ask).map_err(|error| match error {
            TrySendError::Full(_) => Refusal::TooMany,
            TrySendError::Disconnected(_) => Refusal::Stopped,
        })
    }

    /// Replicates an operation that makes the state larger, if the quota allows it.
    ///
    /// # Errors
    /// As [`Engine::propose`], and when the quota is used up.
    pub async fn propose_growth(&self, by: &By, op: &Op) -> Result<Reply, Refusal> {
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
            self.propose(&By::Store, &Op::Alarm(alarm)).await?;
        }
        if full || known {
            return Err(Error::NoSpace.into());
        }
        self.propose(by, op).await
    }

    /// Whether nothing may grow for want of space. Looks again only if there was none: whoever
    /// made some and cleared the alarm must not have to wait.
    fn disk_is_full(&self) -> bool {
        self.disk_full.load(Ordering::Relaxed) && self.look_at_disk()
    }

    /// Looks how much space is left, and whether that is too little.
    pub fn look_at_disk(&self) -> bool {
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
    /// When the revision is compacted or in the future, or the caller may not read it.
    pub fn range(&self, by: &By, request: &RangeRequest) -> Result<RangeResponse, Refusal> {
        let (found, header) = self.find(by, request)?;
        let mut response = if found.is_whole() {
            found.finish(&())?
        } else {
            // The disk is read while others write; what is found from here on stays readable for us.
            let (_whole, _held) = (self.refill.read(), self.state.hold());
            self.find(by, request)?.0.finish(&*self.state)?
        };
        response.header = Some(header);
        Ok(response)
    }

    fn find(&self, by: &By, request: &RangeRequest) -> Result<(Found, ResponseHeader), Refusal> {
        let applied = self.applied.read();
        applied.auth.read(by, &request.key, &request.range_end)?;
        Ok((applied.mvcc.find(request)?, applied.mvcc.header()))
    }

    /// Answers a transaction that only reads.
    ///
    /// # Errors
    /// As its ranges.
    pub fn read(&self, by: &By, request: &TxnRequest) -> Result<TxnResponse, Refusal> {
        let applied = self.applied.read();
        applied.auth.read_txn(by, request)?;
        Ok(applied.mvcc.read(&*self.state, request)?)
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
    /// What was compacted, or that the disk does not give it.
    pub fn history(
        &self,
        from: i64,
        bytes_max: usize,
        prev: bool,
    ) -> Result<(Vec<Changes>, i64), Missed> {
        let to = {
            let applied = self.applied.read();
            let mvcc = &applied.mvcc;
            if from < mvcc.compacted() {
                return Err(Missed::Compacted(mvcc.compacted()));
            }
            if let Some(mut changes) = mvcc.recent(from, bytes_max) {
                if prev {
                    fill_prev(mvcc, &self.state, &mut changes);
                }
                let next = changes.last().map_or(from, |last| last.main + 1);
                return Ok((changes, next));
            }
            mvcc.recent_from().map_or(mvcc.revision(), |first| first - 1)
        };
        let _whole = self.refill.read();
        let found = self.state.changes(from, to, bytes_max);
        let applied = self.applied.read();
        if from < applied.mvcc.compacted() {
            return Err(Missed::Compacted(applied.mvcc.compacted()));
        }
        let mut found = found.map_err(Missed::Lost)?;
        if prev {
            fill_prev(&applied.mvcc, &self.state, &mut found);
        }
        // Memory lets go only of what is archived, so where nothing is found nothing ever was.
        let next = found.last().map_or(to, |last| last.main) + 1;
        Ok((found, next))
    }

    /// The same changes with all pairs that they replaced.
    pub fn with_prev(&self, changes: &[Changes]) -> Vec<Changes> {
        let mut changes = changes.to_vec();
        fill_prev(&self.applied.read().mvcc, &self.state, &mut changes);
        changes
    }

    /// Whether this member's deadlines of leases count: it leads, and has given all of them their full life since.
    #[must_use]
    pub fn keeps_leases(&self) -> bool {
        self.leader.load(Ordering::Relaxed) == self.identity.member
            && self.leases_term.load(Ordering::Acquire) == self.term.load(Ordering::Relaxed)
    }

    /// Compacts history by itself, as long as this member leads.
    pub async fn compact_by_itself(&self, keep: Keep) {
        let mut compactor = Compactor::new(keep, self.clock.monotonic());
        let Some(period) = compactor.period() else { return };
        loop {
            tokio::time::sleep(period).await;
            let (revision, compacted) = {
                let applied = self.applied.read();
                (applied.mvcc.revision(), applied.mvcc.compacted())
            };
            let due = compactor.due(self.clock.monotonic(), revision);
            let leads = self.leader.load(Ordering::Relaxed) == self.identity.member;
            let Some(revision) = due.filter(|due| leads && *due > compacted) else { continue };
            let op = Op::Compact(CompactionRequest { revision, physical: false });
            match self.propose(&By::Store, &op).await {
                Ok(_) => tracing::info!(revision, "compacted"),
                Err(error) => tracing::debug!(revision, %error, "cannot compact yet"),
            }
        }
    }

    /// Ends leases whose time has come, as long as this member leads.
    pub async fn expire_leases(&self) {
        loop {
            tokio::time::sleep(LEASE_CHECK).await;
            // Whoever led before, and leads again, has given all leases their life once more.
            let term = self.leases_term.load(Ordering::Acquire);
            if !self.keeps_leases() {
                continue;
            }
            let expired = self.lessor.lock().expired(self.clock.monotonic());
            for id in expired {
                let (answer, reply) = oneshot::channel();
                let op = Op::Revoke(LeaseRevokeRequest { id });
                let asked = self.ask(Ask::Lead(term, op.encode_by(&By::Store), answer));
                let ended = match asked {
                    Ok(()) => reply.await.unwrap_or(Err(Refusal::Stopped)),
                    Err(refusal) => Err(refusal),
                };
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

/// Adds the pairs that were replaced where they are missing and not compacted.
fn fill_prev(mvcc: &Mvcc, state: &State, all: &mut [Changes]) {
    for changes in all.iter_mut().filter(|changes| changes.lack_prev()) {
        let main = changes.main;
        let events = changes.events.iter().enumerate().map(|(sub, event)| {
            let at = Revision { main, sub: u32::try_from(sub).unwrap_or(u32::MAX) };
            let read = || event.kv.as_ref().and_then(|kv| mvcc.before(state, &kv.key, at));
            let prev_kv = event.prev_kv.clone().or_else(read);
            wire::mvccpb::Event { prev_kv, ..event.clone() }
        });
        changes.events = events.collect();
    }
}
