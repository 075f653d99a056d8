//! Opens a member: finds its state, its log and who it is, and starts its threads.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use anyhow::{Context as _, bail};
use daemon::{Context, Disk as _, SystemDisk};
use parking_lot::{Mutex, RwLock};
use tonic::service::Routes;
use wire::etcdserverpb::Member;

use crate::applied::Applied;
use crate::config::Config;
use crate::engine::{ASKS_MAX, Ask, Engine, Identity};
use crate::etcd::{Services, Settings, routes};
use crate::lessor::Lessor;
use crate::log::{Entry, Log, Recovered, Sizes};
use crate::members::Members;
use crate::node::{Node, Start};
use crate::replica::{KEPT_ENTRIES, Refusal, Replica};
use crate::snapshot::{self, Mark};
use crate::state::State;
use crate::threads::{self, ROUNDS_MAX};
use crate::tokens::Tokens;
use crate::watch::Hub;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How often a starting member looks whether it leads yet.
const START_CHECK: Duration = Duration::from_millis(1);

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

/// Opens the member in `config.data_dir`, or makes a new cluster of one. When it returns, the
/// member leads and everything acknowledged before is applied.
///
/// # Errors
/// When the data is damaged or in use, or the disk fails.
pub async fn open(config: &Config, ctx: &Context) -> anyhow::Result<Store> {
    let (config2, ctx2) = (config.clone(), ctx.clone());
    let found = ctx.tasks.blocking(move || find(&config2)).await??;
    let engine = start(found, config, &ctx2)?;
    let ready = Duration::ZERO;
    loop {
        let term = engine.term.load(std::sync::atomic::Ordering::Relaxed);
        if term > 0 && engine.applied.read().mark.term == term {
            break;
        }
        if ctx.shutdown.is_cancelled() {
            bail!("stopped while starting");
        }
        tokio::time::sleep(START_CHECK.max(ready)).await;
    }
    let (expiring, compacting) = (engine.clone(), engine.clone());
    let keep = config.auto_compaction.keep()?;
    let shutdown = ctx.shutdown.clone();
    ctx.tasks.job(async move {
        let compact = async {
            compacting.compact_by_itself(keep).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = expiring.expire_leases() => {}
            () = compact => {}
        }
    });
    let scheme = if config.client.tls == "files" { "https" } else { "http" };
    let client_urls = vec![format!("{scheme}://{}", config.client.listen)];
    let settings = Settings {
        name: config.name.clone(),
        client_urls,
        peer_urls: vec!["http://localhost:2380".to_owned()],
        progress_s: config.watch_progress_s,
    };
    let services =
        Services { engine: engine.clone(), ctx: ctx.clone(), settings: Arc::new(settings) };
    Ok(Store { routes: routes(&services).await?, engine })
}

/// What was on disk.
struct Found {
    identity: Identity,
    state: State,
    applied: Applied,
    log: Log,
    recovered: Recovered,
    /// The entry before those recovered.
    before: Mark,
}

fn find(config: &Config) -> anyhow::Result<Found> {
    let dir = Path::new(&config.data_dir);
    let snapshots = dir.join("snapshots");
    SystemDisk.create_dir(&snapshots).with_context(|| format!("create {}", dir.display()))?;
    let boot_id = std::fs::read_to_string(BOOT_ID).unwrap_or_else(|error| {
        tracing::debug!(%error, "no boot id: the state is used only after a clean end");
        String::new()
    });
    let state = State::open(dir, boot_id.trim())?;
    let identity = identity(&dir.join("member"))?;
    let (log, mut recovered) = Log::open(&SystemDisk, &dir.join("log"), Sizes::default())?;
    if recovered.torn_bytes > 0 {
        tracing::warn!(bytes = recovered.torn_bytes, "cut an unfinished write off the log");
    }
    let is_new =
        recovered.entries.is_empty() && snapshot::list(&SystemDisk, &snapshots)?.is_empty();
    if is_new {
        snapshot::save(&SystemDisk, &snapshots, &first_state(identity, config), &state)?;
    }
    let known = state.load()?.filter(|known| known.mark.index >= recovered.begin.index);
    let applied = match known {
        Some(known) => known,
        None => {
            let applied = snapshot::newest(&SystemDisk, &snapshots)?;
            state.fill(&applied)?;
            applied
        }
    };
    let mark = applied.mark;
    if recovered.entries.iter().any(|entry| entry.index == mark.index && entry.term != mark.term) {
        // A snapshot came from another history than the log's end, which was never acknowledged.
        recovered.entries.clear();
    }
    let first = recovered.entries.first().map_or(recovered.begin.index + 1, |first| first.index);
    if first > mark.index + 1 {
        bail!(
            "the log begins at entry {first}, but the state ends at entry {}: a part is missing; \
             restore this member from a snapshot",
            mark.index
        );
    }
    let before = kept_before(&mut recovered.entries, mark);
    Ok(Found { identity, state, applied, log, recovered, before })
}

/// Leaves entries that members a little behind may need, and returns what is before the first of them.
fn kept_before(entries: &mut Vec<Entry>, mark: Mark) -> Mark {
    let applied = entries.iter().take_while(|entry| entry.index <= mark.index).count();
    let first = applied.saturating_sub(KEPT_ENTRIES);
    if applied == 0 {
        return mark;
    }
    let before = Mark { index: entries[first].index, term: entries[first].term };
    entries.drain(..=first);
    before
}

/// What every member of a new cluster begins with: the same members, at an entry that nobody has to replicate. A member
/// that joins later has nothing, and so is sent a snapshot first.
fn first_state(identity: Identity, config: &Config) -> Applied {
    let itself = Member { id: identity.member, name: config.name.clone(), ..Member::default() };
    let members = Members::new(vec![itself]);
    Applied { members, mark: Mark { index: 1, term: 1 }, ..Applied::default() }
}

/// Reads who this member is, or makes it up once.
fn identity(path: &Path) -> anyhow::Result<Identity> {
    if path.exists() {
        let text = std::fs::read_to_string(path)?;
        let mut words = text.split_whitespace();
        let mut number = || words.next().and_then(|w| u64::from_str_radix(w, 16).ok());
        if let (Some(1), Some(cluster), Some(member)) = (number(), number(), number()) {
            return Ok(Identity { cluster, member });
        }
        bail!("{}: not a member file of format 1", path.display());
    }
    let new = Identity { cluster: rand::random::<u64>() | 1, member: rand::random::<u64>() | 1 };
    let text = format!("1 {:016x} {:016x}\n", new.cluster, new.member);
    SystemDisk.replace(path, text.as_bytes())?;
    Ok(new)
}

/// Starts the threads of a member.
fn start(found: Found, config: &Config, ctx: &Context) -> anyhow::Result<Arc<Engine>> {
    let Found { identity, state, applied, log, recovered, before } = found;
    let (members, mark) = (applied.members.clone(), applied.mark);
    let node = Node::new(Start {
        id: identity.member,
        voters: members.voters(),
        learners: members.learners(),
        vote: recovered.vote,
        before,
        entries: recovered.entries,
        applied: mark.index,
        seed: rand::random(),
    })?;
    let incarnation: u64 = rand::random();
    let replica = Replica::new((identity.member, incarnation), node, log, members, mark.index);
    let mut lessor = Lessor::default();
    let now = ctx.clock.monotonic();
    for (id, lease) in applied.mvcc.leases().iter() {
        lessor.begin(id, lease.ttl_s, now);
    }
    let (asks, asked) = sync_channel(ASKS_MAX);
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
        asks: asks.clone(),
        alone: AtomicBool::new(false),
        leases_term: AtomicU64::new(0),
        refill: RwLock::new(()),
        term: AtomicU64::new(0),
        committed: AtomicU64::new(mark.index),
        leader: AtomicU64::new(0),
        archived: AtomicI64::new(revision),
        logged_bytes: AtomicU64::new(0),
        disk_full: AtomicBool::new(false),
    });
    let (to_apply, jobs) = sync_channel(ROUNDS_MAX);
    let (to_archive, kept) = sync_channel(ROUNDS_MAX);
    let (to_snapshot, wanted) = sync_channel(1);
    let e = engine.clone();
    thread(ctx, "log", move || {
        threads::log_thread(&e, replica, incarnation, &asked, &to_apply, &mut |_| {})
    });
    let e = engine.clone();
    thread(ctx, "apply", move || threads::apply_thread(&e, &jobs, &to_archive));
    let e = engine.clone();
    thread(ctx, "archive", move || threads::archive_thread(&e, &kept, &to_snapshot));
    let e = engine.clone();
    thread(ctx, "snapshot", move || threads::snapshot_thread(&e, &wanted));
    let (shutdown, stopping) = (ctx.shutdown.clone(), engine.clone());
    ctx.tasks.job(async move {
        shutdown.cancelled().await;
        // If the log thread is gone already, there is nothing to stop.
        while stopping.ask(Ask::Stop) == Err(Refusal::TooMany) {
            tokio::time::sleep(START_CHECK).await;
        }
    });
    Ok(engine)
}

fn thread<F>(ctx: &Context, name: &'static str, work: F)
where
    F: FnOnce() -> anyhow::Result<()> + Send + 'static,
{
    let running = ctx.tasks.blocking(work);
    ctx.tasks.part(name, async move { running.await? });
}
