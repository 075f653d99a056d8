//! Opens a member: finds its state, its log and who it is, and starts its threads.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use daemon::{Context, Disk as _, SystemDisk};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wire::etcdserverpb::Member;

use crate::config::Config;
use crate::engine::{ASKS_MAX, Ask, Engine, Identity};
use crate::etcd::{Routes, Services, peer_routes, routes};
use crate::join;
use crate::lessor::Lessor;
use crate::log::{Sizes, Timer};
use crate::members::{Change, Members, What};
use crate::metrics::Figures;
use crate::node::{Node, Start};
use crate::peer::{Peers, REMOVED};
use crate::recovery::{Recovery, recover};
use crate::replica::{Input, Refusal, Replica};
use crate::snapshot;
use crate::state::State;
use crate::threads::{self, ROUNDS_MAX};
use crate::tokens::Tokens;
use crate::watch::Hub;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How often a starting member looks whether it leads yet.
const START_CHECK: Duration = Duration::from_millis(1);
/// How long a leader that goes down waits for another.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the last messages of a leader that was removed may take: others must hear that its removal is committed.
const FAREWELL: Duration = Duration::from_secs(1);
const PUBLISH_PAUSE: Duration = Duration::from_millis(500);

/// An open member.
#[derive(Clone)]
pub struct Store {
    routes: Routes,
    engine: Arc<Engine>,
}

impl Store {
    /// Its services, to be served on a socket or in memory.
    #[must_use]
    pub fn routes(&self) -> Routes {
        self.routes.clone()
    }

    /// The running member.
    #[must_use]
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }
}

/// Opens the member in `config.data_dir`, or begins a new one. When it returns, somebody leads and everything acknowledged
/// before is applied.
///
/// # Errors
/// When the data is damaged or in use, the disk fails, or the cluster does not want this member.
pub async fn open(config: &Config, ctx: &Context) -> anyhow::Result<Store> {
    let tls = if config.peer.tls == "files" { config.peer.files.client()? } else { None };
    let begin = join::start(config, tls.as_ref(), ctx).await?;
    let (identity, joins) = (begin.identity, begin.joins.clone());
    let config2 = config.clone();
    let found = ctx.tasks.blocking(move || find(&config2, begin)).await??;
    // Other members are heard and answered until this one has handed over what it does.
    let last = CancellationToken::new();
    let peer_ctx = Context { shutdown: last.clone(), ..ctx.clone() };
    let (asks, asked) = sync_channel(ASKS_MAX);
    let snapshots = Path::new(&config.data_dir).join("snapshots");
    let peers = Peers::new(identity, tls, asks.clone(), snapshots, peer_ctx.clone());
    let members =
        if joins.all.is_empty() { found.recovered.applied.members.clone() } else { joins };
    if members.removed.contains(&identity.member) {
        bail!(REMOVED);
    }
    let engine = start(found, config, ctx, (asks, asked), members, peers.clone())?;
    let pass_on = Some(peers.clone());
    let services =
        Services { engine, ctx: ctx.clone(), progress_s: config.watch_progress_s, pass_on };
    let engine = &services.engine;
    if config.peer.listen.is_empty() {
        ensure!(
            engine.members.borrow().all.len() < 2,
            "the cluster has other members, but peer.listen is empty"
        );
    } else {
        let tls = match config.peer.tls.as_str() {
            "files" => config.peer.files.server()?.map(|tls| tls.config()).transpose()?,
            _ => None,
        };
        let listener = daemon::serve::bind(&config.peer.listen, tls.is_some()).await?;
        tracing::info!(address = %listener.local_addr()?, "serving members");
        let routes = peer_routes(&services, &peers);
        ctx.tasks.part("peer", daemon::serve::serve(listener, tls, routes, peer_ctx));
        let (follower, shutdown) = (engine.clone(), ctx.shutdown.clone());
        ctx.tasks.part("members", async move {
            tokio::select! {
                () = shutdown.cancelled() => Ok(()),
                end = follow(&follower, &peers) => end,
            }
        });
    }
    ctx.tasks.job(end(engine.clone(), ctx.shutdown.clone(), last));
    until_somebody_leads(engine, ctx).await?;
    let (working, shutdown) = (engine.clone(), ctx.shutdown.clone());
    let itself = Member {
        id: identity.member,
        name: config.name.clone(),
        client_ur_ls: config.client.urls()?,
        ..Member::default()
    };
    let keep = config.auto_compaction.keep()?;
    ctx.tasks.job(async move {
        let work = async {
            tokio::join!(
                working.expire_leases(),
                publish(&working, itself),
                working.compact_by_itself(keep)
            );
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work => {}
        }
    });
    Ok(Store { routes: routes(&services).await?, engine: engine.clone() })
}

async fn until_somebody_leads(engine: &Engine, ctx: &Context) -> anyhow::Result<()> {
    loop {
        let term = engine.term.load(Ordering::Relaxed);
        let led = engine.leader.load(Ordering::Relaxed) != 0;
        if led && engine.applied.read().mark.term == term {
            return Ok(());
        }
        tokio::select! {
            () = ctx.shutdown.cancelled() => bail!("stopped while starting"),
            () = tokio::time::sleep(START_CHECK) => {}
        }
    }
}

/// Tells the transport who belongs to the cluster, until another member says that this one does not.
async fn follow(engine: &Engine, peers: &Peers) -> anyhow::Result<()> {
    let mut members = engine.members.subscribe();
    loop {
        peers.set(&members.borrow_and_update())?;
        tokio::select! {
            changed = members.changed() => changed?,
            () = peers.removed() => bail!(REMOVED),
        }
    }
}

/// Tells the cluster this member's name and where its clients come in, if it knows others.
async fn publish(engine: &Engine, itself: Member) {
    let known = |members: &Members| {
        members
            .get(itself.id)
            .is_some_and(|m| (&m.name, &m.client_ur_ls) == (&itself.name, &itself.client_ur_ls))
    };
    while !known(&engine.applied.read().members) {
        let change = Change::of([What::Publish(itself.clone())]);
        if let Err(error) = engine.change(change).await {
            tracing::debug!(%error, "the members do not know our addresses yet");
            tokio::time::sleep(PUBLISH_PAUSE).await;
        }
    }
}

/// At the end, hands leadership over if there is anybody to take it, and stops the threads.
async fn end(engine: Arc<Engine>, shutdown: CancellationToken, last: CancellationToken) {
    shutdown.cancelled().await;
    let leads = || engine.leader.load(Ordering::Relaxed) == engine.identity.member;
    if leads() && !engine.alone.load(Ordering::Acquire) {
        if engine.ask(Ask::Tell(Input::HandOver)) == Err(Refusal::Stopped) {
            tokio::time::sleep(FAREWELL).await;
        } else {
            let gone = async {
                while leads() {
                    tokio::time::sleep(START_CHECK).await;
                }
            };
            match tokio::time::timeout(HAND_OVER_TIMEOUT, gone).await {
                Ok(()) => tracing::info!("handed leadership over"),
                Err(_) => tracing::info!("nobody took leadership over"),
            }
        }
    }
    // If the log thread is gone already, there is nothing to stop.
    while engine.ask(Ask::Stop) == Err(Refusal::TooMany) {
        tokio::time::sleep(START_CHECK).await;
    }
    last.cancel();
}

/// What was on disk.
struct Found {
    identity: Identity,
    state: State,
    recovered: Recovery,
}

fn find(config: &Config, begin: join::Start) -> anyhow::Result<Found> {
    let dir = Path::new(&config.data_dir);
    let snapshots = dir.join("snapshots");
    SystemDisk.create_dir(&snapshots).with_context(|| format!("create {}", dir.display()))?;
    let boot_id = std::fs::read_to_string(BOOT_ID).unwrap_or_else(|error| {
        tracing::debug!(%error, "no boot id: the state is used only after a clean end");
        String::new()
    });
    let state = State::open(dir, boot_id.trim())?;
    let logs = dir.join("log");
    let is_new =
        SystemDisk.list(&logs)?.is_empty() && snapshot::list(&SystemDisk, &snapshots)?.is_empty();
    if is_new && begin.first.mark.index > 0 {
        snapshot::save(&SystemDisk, &snapshots, &begin.first, &state)?;
    }
    let known = state.load()?;
    let at = known.as_ref().map(|known| known.mark);
    let mut recovered = recover(&SystemDisk, (&logs, Sizes::default()), &snapshots, known)?;
    if recovered.torn_bytes > 0 {
        tracing::warn!(bytes = recovered.torn_bytes, "cut an unfinished write off the log");
    }
    if at != Some(recovered.applied.mark) {
        state.fill(&recovered.applied)?;
        recovered.applied.mvcc.cool_all();
    }
    Ok(Found { identity: begin.identity, state, recovered })
}

/// Starts the threads of a member.
fn start(
    found: Found,
    config: &Config,
    ctx: &Context,
    (asks, asked): (SyncSender<Ask>, Receiver<Ask>),
    known: Members,
    peers: Peers,
) -> anyhow::Result<Arc<Engine>> {
    let Found { identity, state, recovered } = found;
    let Recovery { applied, mut log, vote, before, entries, .. } = recovered;
    let figures = Figures::default();
    log.measure(Timer { clock: ctx.clock.clone(), seconds: figures.syncs.clone() });
    let (members, mark) = (applied.members.clone(), applied.mark);
    let node = Node::new(Start {
        id: identity.member,
        seats: members.seats(),
        vote,
        before,
        entries,
        applied: mark.index,
        seed: rand::random(),
    })?;
    let incarnation: u64 = rand::random();
    let replica = Replica::new((identity.member, incarnation), node, log, members, mark.index);
    let lessor = Lessor::new(applied.mvcc.leases(), ctx.clock.monotonic());
    let revision = applied.mvcc.revision();
    let auth_enabled = AtomicBool::new(applied.auth.enabled);
    let token_life = Duration::from_secs(config.auth_token_ttl_s.max(1));
    let engine = Arc::new(Engine {
        applied: RwLock::new(applied),
        state: Arc::new(state),
        hub: Mutex::new(Hub::new(revision)),
        lessor: Mutex::new(lessor),
        tokens: Mutex::new(Tokens::new(token_life)),
        auth_enabled,
        clock: ctx.clock.clone(),
        identity,
        quota_bytes: config.quota_bytes,
        disk_reserve_bytes: config.disk_reserve_bytes,
        snapshot_entries: config.snapshot_entries.max(1),
        snapshot_dir: Path::new(&config.data_dir).join("snapshots"),
        asks,
        members: watch::Sender::new(known),
        alone: AtomicBool::new(false),
        leases_term: AtomicU64::new(0),
        refill: RwLock::new(()),
        replacing: watch::Sender::new(false),
        term: AtomicU64::new(0),
        committed: AtomicU64::new(mark.index),
        leader: AtomicU64::new(0),
        archived: AtomicI64::new(revision),
        logged_bytes: AtomicU64::new(0),
        disk_full: AtomicBool::new(false),
        figures,
    });
    let (to_apply, jobs) = sync_channel(ROUNDS_MAX);
    let (to_archive, kept) = sync_channel(ROUNDS_MAX);
    let (to_snapshot, wanted) = sync_channel(1);
    let e = engine.clone();
    thread(ctx, "log", move || {
        threads::log_thread(&e, replica, incarnation, &asked, &to_apply, &mut |m| peers.send(m))
    });
    let e = engine.clone();
    thread(ctx, "apply", move || threads::apply_thread(&e, &jobs, &to_archive));
    let e = engine.clone();
    thread(ctx, "archive", move || threads::archive_thread(&e, &kept, &to_snapshot));
    let e = engine.clone();
    thread(ctx, "snapshot", move || threads::snapshot_thread(&e, &wanted));
    Ok(engine)
}

fn thread<F>(ctx: &Context, name: &'static str, work: F)
where
    F: FnOnce() -> anyhow::Result<()> + Send + 'static,
{
    let running = ctx.tasks.blocking(work);
    let shutdown = ctx.shutdown.clone();
    ctx.tasks.part(name, async move {
        running.await??;
        // The thread before it has ended; if that was a failure, its own words are to be heard.
        shutdown.cancelled().await;
        Ok(())
    });
}
