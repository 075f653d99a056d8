//! The four threads of a member.
//!
//! A request waits for the log thread, which gathers all that wait into one sync; the apply
//! thread works on what is committed while the next sync runs, tells the watchers, then answers; the
//! archive thread writes old values to disk, the snapshot thread now and then the whole state.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use anyhow::Context as _;
use daemon::SystemDisk;

use crate::applied::{Applied, Round};
use crate::auth::Sessions;
use crate::engine::{Answer, Ask, Engine, Turn};
use crate::lessor::Lessor;
use crate::log;
use crate::mvcc::Changes;
use crate::node::Outgoing;
use crate::replica::{Committed, Input, Output, Refusal, Replica, Said, TICK_MS, Work};
use crate::snapshot::{self, Mark};
use crate::watch::Behind;

/// Rounds that may wait between two threads.
pub const ROUNDS_MAX: usize = 64;
/// Bytes of requests that one sync takes.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// The archive gets a large round, or what there is once nothing has come for so long: many changes cost it little more
/// than one.
const KEEP_PAUSE: Duration = Duration::from_millis(50);
/// Log bytes after which a snapshot is made, if it would not be larger than that.
const SNAPSHOT_LOG_BYTES: u64 = 64 << 20;
const TICK: Duration = Duration::from_millis(TICK_MS);

/// What the log thread hands to the apply thread.
#[derive(Debug)]
pub enum Job {
    /// Apply these, and answer.
    Apply(Vec<(Committed, Option<Answer>)>),
    /// Begin again from a snapshot.
    Install(Mark),
    /// These reads may go on.
    Turns(Vec<Turn>),
    /// Have a snapshot made.
    Snapshot,
}

/// What the apply thread hands to the archive thread.
#[derive(Debug)]
pub enum Keep {
    /// What a round changed.
    Round(Box<Round>),
    /// Forget all, and keep this state.
    Instead(Box<Applied>, SyncSender<()>),
    /// Make a snapshot.
    Snapshot,
}

/// Whether a snapshot is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// If the log has grown enough.
    IfDue,
    /// Since a member needs it.
    Now,
}

#[derive(Debug)]
enum Waiter {
    Answer(Answer),
    Turn(Turn),
}

/// Who waits, by ticket.
struct Desk {
    next: u64,
    waiters: BTreeMap<u64, Waiter>,
}

impl Desk {
    fn take_in(&mut self, ask: Ask, inputs: &mut Vec<Input>) -> usize {
        let ticket = self.next;
        self.next = self.next.wrapping_add(1);
        let (waiter, input, bytes) = match ask {
            Ask::Propose(data, answer) => {
                let bytes = data.len();
                (Waiter::Answer(answer), Input::Propose(ticket, data), bytes)
            }
            Ask::Lead(term, data, answer) => {
                (Waiter::Answer(answer), Input::Lead(ticket, term, data), 0)
            }
            Ask::Change(change, answer) => {
                (Waiter::Answer(answer), Input::Change(ticket, change), 0)
            }
            Ask::Read(turn) => (Waiter::Turn(turn), Input::Read(ticket), 0),
            Ask::Tell(input) => {
                inputs.push(input);
                return 0;
            }
            Ask::Stop => return 0,
        };
        self.waiters.insert(ticket, waiter);
        inputs.push(input);
        bytes
    }

    fn answer(&mut self, ticket: u64) -> Option<Answer> {
        match self.waiters.remove(&ticket) {
            Some(Waiter::Answer(answer)) => Some(answer),
            _ => None,
        }
    }

    fn turn(&mut self, ticket: u64) -> Option<Turn> {
        match self.waiters.remove(&ticket) {
            Some(Waiter::Turn(turn)) => Some(turn),
            _ => None,
        }
    }

    /// Whoever does not wait any more does not need the news.
    fn refuse(&mut self, ticket: u64, refusal: Refusal) {
        match self.waiters.remove(&ticket) {
            Some(Waiter::Answer(answer)) => drop(answer.send(Err(refusal))),
            Some(Waiter::Turn(turn)) => drop(turn.send(Err(refusal))),
            None => {}
        }
    }
}

/// Runs the log thread until it is told to stop. Tickets begin at `incarnation`.
///
/// # Errors
/// When the disk fails: nothing can be acknowledged any more.
pub fn log_thread(
    engine: &Engine,
    mut replica: Replica,
    incarnation: u64,
    asks: &Receiver<Ask>,
    jobs: &SyncSender<Job>,
    send: &mut dyn FnMut(Outgoing),
) -> anyhow::Result<()> {
    let mut desk = Desk { next: incarnation, waiters: BTreeMap::new() };
    let mut inputs = Vec::new();
    let mut ticked = engine.clock.monotonic();
    loop {
        let output = replica.step(inputs.drain(..), send)?;
        tell(engine, &replica, &output);
        hand_over(output, &mut desk, jobs)?;
        if replica.is_removed() {
            anyhow::bail!("this member was removed from the cluster; its data can be deleted");
        }
        let first = if replica.needs_ticks() {
            let now = engine.clock.monotonic();
            // A thread that was stopped for long does not make up for it: others have moved on.
            if now >= ticked + TICK {
                inputs.push(Input::Tick);
                ticked = now.max(ticked + TICK);
            }
            let wait = if inputs.is_empty() { ticked + TICK - now } else { Duration::ZERO };
            match asks.recv_timeout(wait) {
                Ok(ask) => ask,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        } else {
            let Ok(ask) = asks.recv() else { return Ok(()) };
            ask
        };
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(ask) = next {
            if matches!(ask, Ask::Stop) {
                return Ok(());
            }
            bytes += desk.take_in(ask, &mut inputs);
            next = if bytes > BATCH_BYTES_MAX { None } else { asks.try_recv().ok() };
        }
    }
}

fn tell(engine: &Engine, replica: &Replica, output: &Output) {
    let node = replica.node();
    engine.logged_bytes.fetch_add(output.logged_bytes as u64, Ordering::Relaxed);
    engine.term.store(node.term(), Ordering::Relaxed);
    let before = engine.leader.swap(node.leader(), Ordering::Relaxed);
    if node.leader() != 0 && node.leader() != before {
        engine.figures.leader_changes.inc();
    }
    engine.committed.store(node.committed(), Ordering::Relaxed);
    engine.alone.store(node.is_alone(), Ordering::Release);
}

fn hand_over(output: Output, desk: &mut Desk, jobs: &SyncSender<Job>) -> anyhow::Result<()> {
    for (ticket, refusal) in output.lost {
        desk.refuse(ticket, refusal);
    }
    for work in output.work {
        jobs.send(match work {
            Work::Apply(entries) => {
                let mut answer = |c: &Committed| c.ticket.and_then(|ticket| desk.answer(ticket));
                Job::Apply(
                    entries.into_iter().map(|c| (answer(&c), c)).map(|(a, c)| (c, a)).collect(),
                )
            }
            Work::Install(mark) => Job::Install(mark),
        })?;
    }
    let turns: Vec<Turn> = output.reads.iter().filter_map(|ticket| desk.turn(*ticket)).collect();
    if !turns.is_empty() {
        jobs.send(Job::Turns(turns))?;
    }
    if output.wants_snapshot {
        jobs.send(Job::Snapshot)?;
    }
    Ok(())
}

/// Runs the apply thread until the log thread ends.
///
/// # Errors
/// When a committed entry cannot be read: this member cannot go on.
pub fn apply_thread(
    engine: &Engine,
    jobs: &Receiver<Job>,
    archive: &SyncSender<Keep>,
) -> anyhow::Result<()> {
    let mut unkept: Option<Box<Round>> = None;
    loop {
        let mut job = match &unkept {
            None => jobs.recv().map_err(RecvTimeoutError::from),
            Some(_) => jobs.recv_timeout(KEEP_PAUSE),
        };
        let enough = match job {
            Ok(Job::Apply(ref mut entries)) => {
                let mut round = apply(engine, std::mem::take(entries))?;
                if let Some(mut before) = unkept.take() {
                    before.merge(*round);
                    round = before;
                }
                unkept.insert(round).is_large()
            }
            Ok(Job::Turns(turns)) => {
                for turn in turns {
                    let _gone = turn.send(Ok(()));
                }
                continue;
            }
            _ => true,
        };
        if let Some(round) = unkept.take_if(|_| enough) {
            archive.send(Keep::Round(round))?;
        }
        match job {
            Ok(Job::Install(mark)) => install(engine, mark, archive)?,
            Ok(Job::Snapshot) => archive.send(Keep::Snapshot)?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Ok(Job::Apply(_) | Job::Turns(_)) | Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Applies entries, tells the watchers, answers.
fn apply(engine: &Engine, entries: Vec<(Committed, Option<Answer>)>) -> anyhow::Result<Box<Round>> {
    let mut round = Box::<Round>::default();
    let mut replies = Vec::new();
    let mut begun = None;
    {
        let mut applied = engine.applied.write();
        for (committed, answer) in entries {
            if matches!(committed.what, Said::Nothing) {
                begun = Some(committed.mark.term);
            }
            let reply = applied.apply(&committed, &*engine.state, &mut round)?;
            replies.extend(answer.zip(reply));
        }
        applied.mvcc.cool(engine.archived.load(Ordering::Acquire));
    }
    if let Some(members) = &round.members {
        engine.members.send_replace(members.clone());
    }
    keep_leases(engine, &round, begun);
    keep_sessions(engine, &round);
    publish(engine, &round.changes);
    for (answer, reply) in replies {
        drop(answer.send(reply));
    }
    Ok(round)
}

/// Follows the leases. A leader whose first entry is `begun` has applied all that earlier ones did, and begins to count.
fn keep_leases(engine: &Engine, round: &Round, begun: Option<u64>) {
    if round.leases.is_empty() && begun.is_none() {
        return;
    }
    let now = engine.clock.monotonic();
    let mut lessor = engine.lessor.lock();
    lessor.note(&round.leases, begun.is_some(), now);
    if let Some(term) = begun {
        engine.leases_term.store(term, Ordering::Release);
    }
}

fn keep_sessions(engine: &Engine, round: &Round) {
    if let Some(auth) = &round.auth {
        engine.auth_enabled.store(auth.enabled, Ordering::Release);
    }
    if round.sessions.is_empty() {
        return;
    }
    let now = engine.clock.monotonic();
    let mut tokens = engine.tokens.lock();
    for change in &round.sessions {
        match change {
            Sessions::Stay => {}
            Sessions::Begin(user, token) => tokens.begin(token.clone(), user.clone(), now),
            Sessions::End(user) => tokens.end(user),
            Sessions::EndAll => tokens.end_all(),
        }
    }
}

fn publish(engine: &Engine, changes: &[Changes]) {
    if changes.is_empty() {
        return;
    }
    let header = engine.header(0);
    let mut hub = engine.hub.lock();
    let filled = (hub.wants_prev() && changes.iter().any(Changes::lack_prev))
        .then(|| engine.with_prev(changes));
    let changes = filled.as_deref().unwrap_or(changes);
    let behind = hub.publish(header, changes, |sink, responses| sink.offer(responses));
    for Behind { stream, watch, next } in behind {
        stream.fell_behind(watch, next);
    }
}

/// Takes the state of a snapshot in place of ours. Watchers read what they missed from it.
fn install(engine: &Engine, mark: Mark, archive: &SyncSender<Keep>) -> anyhow::Result<()> {
    let found = snapshot::list(&SystemDisk, &engine.snapshot_dir)?;
    let path = found.into_iter().find(|(found, _)| *found == mark).map(|(_, path)| path);
    let path = path.with_context(|| format!("the snapshot of entry {} is gone", mark.index))?;
    let new = snapshot::load(&SystemDisk, &path).context("read the leader's snapshot")?;
    tracing::info!(
        index = mark.index,
        revision = new.mvcc.revision(),
        "begin again from a snapshot"
    );
    let revision = new.mvcc.revision();
    let now = engine.clock.monotonic();
    *engine.lessor.lock() = Lessor::new(new.mvcc.leases(), now);
    engine.members.send_replace(new.members.clone());
    // Sessions that began or ended in between are unknown: clients begin new ones.
    engine.tokens.lock().end_all();
    engine.auth_enabled.store(new.auth.enabled, Ordering::Release);
    {
        // The new state has all its values in memory; the archive is of use again when it is full.
        engine.replacing.send_replace(true);
        let _refilling = engine.refill.write();
        engine.replacing.send_replace(false);
        *engine.applied.write() = new.clone();
        let (done, wait) = std::sync::mpsc::sync_channel(1);
        archive.send(Keep::Instead(Box::new(new), done))?;
        wait.recv().context("the archive thread has ended")?;
        engine.applied.write().mvcc.cool_all();
    }
    let behind = engine.hub.lock().jump(revision);
    for Behind { stream, watch, next } in behind {
        stream.fell_behind(watch, next);
    }
    Ok(())
}

/// Runs the archive thread until the apply thread ends: writes old values to disk, and has snapshots made. Closes the
/// state at the end.
///
/// # Errors
/// When the disk fails.
pub fn archive_thread(
    engine: &Engine,
    kept: &Receiver<Keep>,
    snapshots: &SyncSender<Wanted>,
) -> anyhow::Result<()> {
    let mut next = None;
    while let Some(keep) = next.take().or_else(|| kept.recv().ok()) {
        let wanted = match keep {
            Keep::Round(mut round) => {
                while let Ok(more) = kept.try_recv() {
                    match more {
                        Keep::Round(more) => round.merge(*more),
                        other => {
                            next = Some(other);
                            break;
                        }
                    }
                }
                let began = engine.clock.monotonic();
                engine.state.write(&round)?;
                let took = engine.clock.monotonic().saturating_sub(began);
                engine.figures.rounds.observe(took.as_secs_f64());
                engine.archived.store(round.revision, Ordering::Release);
                engine.look_at_disk();
                Wanted::IfDue
            }
            Keep::Instead(applied, done) => {
                engine.state.fill(&applied)?;
                engine.archived.store(applied.mvcc.revision(), Ordering::Release);
                let _gone = done.send(());
                continue;
            }
            Keep::Snapshot => Wanted::Now,
        };
        // If one is being made, the next round asks again, and so does whoever wants one.
        let _busy = snapshots.try_send(wanted);
    }
    engine.state.close()?;
    Ok(())
}

/// Runs the snapshot thread until the archive thread ends. It has its own, since a large state takes its time.
///
/// # Errors
/// When the disk fails.
pub fn snapshot_thread(engine: &Engine, wanted: &Receiver<Wanted>) -> anyhow::Result<()> {
    let newest = snapshot::list(&SystemDisk, &engine.snapshot_dir)?;
    let mut last = newest.first().map_or(Mark::default(), |(mark, _)| *mark);
    let mut snapshot_bytes = 0;
    while let Ok(wanted) = wanted.recv() {
        let mark = engine.applied.read().mark;
        let entries = mark.index.saturating_sub(last.index);
        let logged = engine.logged_bytes.load(Ordering::Relaxed);
        let due = entries >= engine.snapshot_entries || logged >= SNAPSHOT_LOG_BYTES;
        let due = due && logged >= snapshot_bytes;
        if due || (wanted == Wanted::Now && entries > 0) {
            engine.logged_bytes.store(0, Ordering::Relaxed);
            match make_snapshot(engine) {
                Ok(made) => (last, snapshot_bytes) = made,
                // The log goes on without it, and as much of it must come before the next try.
                Err(error) if log::is_full(&error) => {
                    tracing::warn!(%error, "no room for a snapshot");
                }
                Err(error) => return Err(error).context("make a snapshot"),
            }
        }
        if due || wanted == Wanted::Now {
            // What was offered before may be gone now. A full channel loses it, and it is wanted again.
            let _lost = engine.ask(Ask::Tell(Input::Snapshot(last)));
        }
    }
    Ok(())
}

/// Writes the applied state to a snapshot file, and has the log forget what two snapshots have.
fn make_snapshot(engine: &Engine) -> io::Result<(Mark, u64)> {
    let (_whole, _held) = (engine.refill.read(), engine.state.hold());
    let applied = engine.applied.read().clone();
    let bytes = snapshot::save(&SystemDisk, &engine.snapshot_dir, &applied, &*engine.state)?;
    tracing::info!(index = applied.mark.index, bytes, "made a snapshot");
    // The log reaches back to the older of the two snapshots that are kept; the next one releases more if this is lost.
    if let [_, (older, _), ..] = snapshot::list(&SystemDisk, &engine.snapshot_dir)?[..] {
        let _lost = engine.ask(Ask::Tell(Input::Release(older)));
    }
    Ok((applied.mark, bytes))
}
