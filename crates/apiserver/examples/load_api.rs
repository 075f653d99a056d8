//! Measures a Kubernetes API server: operations per second, how long each takes, and what it costs the server.
//!
//! `load_api HOST:PORT PKI_DIRECTORY OPERATION [name=value…]` speaks HTTP/2 over TLS 1.3 as the administrator and prints one
//! line for a table. Operations:
//!
//! - `create`, `get`, `patch` (merge, of one label), `delete`, `list`: `clients` of them with objects of `kind`, for `seconds`
//!   or, if `count` is given, so many times. What `get`, `patch` and `delete` ask for has to be there: `create` with the same
//!   `count` and `from`;
//! - `renew`: Leases, one for each client, by merge patch of their time;
//! - `watch`: `watchers` of ConfigMaps that `clients` create; counts events;
//! - `latency`: the time from the answer to a create to its event at each of `watchers`;
//! - `hold`: `watchers` that see nothing for `seconds`; what the server needs meanwhile;
//! - `wait`: the time until `/readyz` says yes.
//!
//! With `pids` of the servers it adds their processor time per operation and resident memory; `goal` and `quoted` end the line.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use daemon::Clock;
use http::Method;
use http_body_util::BodyExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

#[path = "load_api/link.rs"]
mod link;
#[path = "load_api/objects.rs"]
mod objects;

use link::{Links, Target};
use objects::{Kind, NAMESPACE};

/// How long a server may take to start.
const WAIT_MAX: Duration = Duration::from_secs(120);
/// What is measured for a time begins after this.
const WARM_UP: Duration = Duration::from_millis(500);
/// Watches on one connection.
const WATCHES_PER_LINK: usize = 250;

#[derive(Clone)]
struct Plan {
    operation: String,
    kind: Kind,
    clients: usize,
    watchers: usize,
    connections: usize,
    seconds: u64,
    count: Option<u64>,
    from: u64,
    pids: Vec<u32>,
    goal: String,
    quoted: String,
}

impl Plan {
    fn parse(operation: String, args: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut plan = Self {
            operation,
            kind: Kind::ConfigMap,
            clients: 64,
            watchers: 64,
            connections: 4,
            seconds: 5,
            count: None,
            from: 0,
            pids: Vec::new(),
            goal: String::new(),
            quoted: String::new(),
        };
        for arg in args {
            let (name, value) = arg.split_once('=').context("name=value")?;
            match name {
                "kind" => plan.kind = Kind::parse(value).context("pod, configmap or lease")?,
                "clients" => plan.clients = value.parse().context("clients")?,
                "watchers" => plan.watchers = value.parse().context("watchers")?,
                "connections" => plan.connections = value.parse().context("connections")?,
                "seconds" => plan.seconds = value.parse().context("seconds")?,
                "count" => plan.count = Some(value.parse().context("count")?),
                "from" => plan.from = value.parse().context("from")?,
                "pids" => plan.pids = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
                "goal" => plan.goal = value.to_owned(),
                "quoted" => plan.quoted = value.to_owned(),
                _ => bail!("unknown setting {name:?}"),
            }
        }
        Ok(plan)
    }

    fn links(&self) -> usize {
        self.connections.min(self.clients)
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: load_api HOST:PORT PKI_DIRECTORY OPERATION [name=value…]";
    let (address, pki) = (args.next().context(usage)?, args.next().context(usage)?);
    let plan = Plan::parse(args.next().context(usage)?, args)?;
    let target = Target::new(&address, pki.as_ref())?;
    match plan.operation.as_str() {
        "create" | "get" | "patch" | "delete" | "list" | "renew" => requests(&plan, &target).await,
        "watch" => watch(&plan, &target).await,
        "latency" => latency(&plan, &target).await,
        "hold" => hold(&plan, &target).await,
        "wait" => wait(&plan, &target).await,
        other => bail!("unknown operation {other:?}"),
    }
}

fn name(number: u64) -> String {
    format!("load-{number:08}")
}

/// Makes what a pod cannot be without: a namespace and its service account. No controller need run.
async fn namespace(links: &Links) -> anyhow::Result<()> {
    let accounts = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts");
    for (path, kind, name) in [
        ("/api/v1/namespaces", "Namespace", NAMESPACE),
        (accounts.as_str(), "ServiceAccount", "default"),
    ] {
        let body = format!(
            "{{\"apiVersion\":\"v1\",\"kind\":\"{kind}\",\"metadata\":{{\"name\":\"{name}\"}}}}"
        );
        let made = links.open(0, Method::POST, path, body.into()).await?.status();
        anyhow::ensure!(matches!(made.as_u16(), 201 | 409), "{path}: {made}");
    }
    Ok(())
}

/// What all clients of a run share.
struct Run {
    plan: Plan,
    links: Links,
    clock: Clock,
    next: AtomicU64,
    /// Whether what happens now counts.
    counts: AtomicBool,
    /// When a run by the clock ends.
    end: Duration,
}

impl Run {
    async fn begin(plan: &Plan, target: &Target) -> anyhow::Result<Arc<Self>> {
        let links = target.connect(plan.links()).await?;
        namespace(&links).await?;
        let clock = Clock::system();
        let end = clock.monotonic() + WARM_UP + Duration::from_secs(plan.seconds);
        let counts = AtomicBool::new(plan.count.is_some());
        Ok(Arc::new(Self {
            plan: plan.clone(),
            links,
            clock,
            next: AtomicU64::new(0),
            counts,
            end,
        }))
    }

    /// The number of the next operation, while there is one.
    fn more(&self) -> Option<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        match self.plan.count {
            Some(count) => (number < count).then_some(number),
            None => (self.clock.monotonic() < self.end).then_some(number),
        }
    }

    /// One operation of a client.
    async fn once(&self, client: usize, number: u64) -> anyhow::Result<()> {
        let (plan, path) = (&self.plan, self.plan.kind.path());
        // Neighbours in time are no neighbours by name.
        let there = plan.from + number.wrapping_mul(7919) % OBJECTS;
        let ask = |method, path, body| self.links.ask(client, method, path, body);
        match plan.operation.as_str() {
            "create" => {
                let body = plan.kind.body(&name(plan.from + number));
                ask(Method::POST, &path, body).await?
            }
            "get" => ask(Method::GET, &format!("{path}/{}", name(there)), Bytes::new()).await?,
            "patch" => {
                let body = format!("{{\"metadata\":{{\"labels\":{{\"round\":\"{number}\"}}}}}}");
                ask(Method::PATCH, &format!("{path}/{}", name(there)), body.into()).await?
            }
            "delete" => {
                let path = format!("{path}/{}", name(plan.from + number));
                ask(Method::DELETE, &path, NO_GRACE).await?
            }
            "list" => ask(Method::GET, &path, Bytes::new()).await?,
            _ => {
                let (seconds, micros) = (number / 1_000_000 % 60, number % 1_000_000);
                let body = format!(
                    "{{\"spec\":{{\"renewTime\":\"2026-01-02T00:00:{seconds:02}.{micros:06}Z\"}}}}"
                );
                let path = format!("{}/{}", Kind::Lease.path(), name(client as u64));
                ask(Method::PATCH, &path, body.into()).await?
            }
        };
        Ok(())
    }
}

/// The objects that `get` and `patch` choose from.
const OBJECTS: u64 = 1000;
const NO_GRACE: Bytes = Bytes::from_static(
    b"{\"apiVersion\":\"v1\",\"kind\":\"DeleteOptions\",\"gracePeriodSeconds\":0}",
);

async fn requests(plan: &Plan, target: &Target) -> anyhow::Result<()> {
    let run = Run::begin(plan, target).await?;
    if plan.operation == "renew" {
        for client in 0..plan.clients {
            let body = Kind::Lease.body(&name(client as u64));
            let made = run.links.open(client, Method::POST, &Kind::Lease.path(), body).await?;
            anyhow::ensure!(matches!(made.status().as_u16(), 201 | 409), "{}", made.status());
        }
    }
    let mut clients = JoinSet::new();
    for client in 0..plan.clients {
        let run = run.clone();
        clients.spawn(async move {
            let mut took = Vec::new();
            while let Some(number) = run.more() {
                let (counts, start) = (run.counts.load(Ordering::Relaxed), run.clock.monotonic());
                run.once(client, number).await?;
                if counts {
                    took.push(run.clock.monotonic() - start);
                }
            }
            anyhow::Ok(took)
        });
    }
    if plan.count.is_none() {
        tokio::time::sleep(WARM_UP).await;
    }
    let (cpu, start) = (cpu_time(plan), run.clock.monotonic());
    run.counts.store(true, Ordering::Relaxed);
    let mut took = Vec::new();
    while let Some(done) = clients.join_next().await {
        took.extend(done??);
    }
    let spent = Spent { elapsed: run.clock.monotonic() - start, cpu: cpu_since(plan, &cpu) };
    let done = took.len();
    report(plan, &mut took, done, &spent);
    Ok(())
}

/// Watches the ConfigMaps from now on; returns when all watches are there.
async fn watchers<F>(
    plan: &Plan,
    target: &Target,
    each: impl Fn(usize) -> F,
) -> anyhow::Result<JoinSet<anyhow::Result<()>>>
where
    F: FnMut(&[u8]) -> bool + Send + 'static,
{
    let links = Arc::new(target.connect(plan.watchers.div_ceil(WATCHES_PER_LINK).max(2)).await?);
    let now = now(&links).await?;
    let mut watches = JoinSet::new();
    for watcher in 0..plan.watchers {
        let (links, (started, is_started), each) =
            (links.clone(), oneshot::channel(), each(watcher));
        let path = format!("{}?watch=1&resourceVersion={now}", Kind::ConfigMap.path());
        watches.spawn(async move { links.watch(watcher, &path, started, each).await });
        is_started.await.context("a watch did not start")?;
    }
    Ok(watches)
}

/// The version that a watch begins at to see only what is new.
async fn now(links: &Links) -> anyhow::Result<String> {
    let path = format!("{}?limit=1", Kind::ConfigMap.path());
    let answer = links.open(0, Method::GET, &path, Bytes::new()).await?;
    let list: serde_json::Value =
        serde_json::from_slice(&answer.into_body().collect().await?.to_bytes())?;
    let version = list["metadata"]["resourceVersion"].as_str();
    version.map(str::to_owned).context("a list without a version")
}

async fn watch(plan: &Plan, target: &Target) -> anyhow::Result<()> {
    let run = Run::begin(plan, target).await?;
    let run = Arc::into_inner(run).context("nobody else has it")?;
    let plan = Plan { operation: "create".into(), ..plan.clone() };
    let run = Arc::new(Run { plan: plan.clone(), ..run });
    let seen = Arc::new(AtomicU64::new(0));
    let watches = watchers(&plan, target, |_| {
        let seen = seen.clone();
        move |chunk: &[u8]| {
            let events = memchr::memchr_iter(b'\n', chunk).count();
            seen.fetch_add(events as u64, Ordering::Relaxed);
            true
        }
    });
    let mut watches = watches.await?;
    let (cpu, start) = (cpu_time(&plan), run.clock.monotonic());
    let mut clients = JoinSet::new();
    let end = start + Duration::from_secs(plan.seconds);
    for client in 0..plan.clients {
        let run = run.clone();
        clients.spawn(async move {
            let mut took = Vec::new();
            while run.clock.monotonic() < end {
                let (number, start) =
                    (run.next.fetch_add(1, Ordering::Relaxed), run.clock.monotonic());
                run.once(client, number).await?;
                took.push(run.clock.monotonic() - start);
            }
            anyhow::Ok(took)
        });
    }
    let mut took = Vec::new();
    while let Some(done) = clients.join_next().await {
        took.extend(done??);
    }
    let wanted = (took.len() * plan.watchers) as u64;
    let give_up = run.clock.monotonic() + WAIT_MAX;
    while seen.load(Ordering::Relaxed) < wanted && run.clock.monotonic() < give_up {
        if let Some(ended) = watches.try_join_next() {
            ended??;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let events = usize::try_from(seen.load(Ordering::Relaxed))?;
    let spent = Spent { elapsed: run.clock.monotonic() - start, cpu: cpu_since(&plan, &cpu) };
    let writes = took.len() as f64 / spent.elapsed.as_secs_f64();
    let shown = Plan { operation: format!("watch, {writes:.0} writes/s"), ..plan };
    report(&shown, &mut took, events, &spent);
    Ok(())
}

async fn latency(plan: &Plan, target: &Target) -> anyhow::Result<()> {
    let run = Run::begin(plan, target).await?;
    let (said, mut heard) = mpsc::unbounded_channel();
    let mut watches = watchers(plan, target, |_| {
        let (said, clock) = (said.clone(), run.clock.clone());
        move |chunk: &[u8]| {
            let events = memchr::memchr_iter(b'\n', chunk).count();
            (0..events).all(|_| said.send(clock.monotonic()).is_ok())
        }
    })
    .await?;
    let (cpu, start, mut took) = (cpu_time(plan), run.clock.monotonic(), Vec::new());
    let path = Kind::ConfigMap.path();
    let mut number = plan.from;
    while run.clock.monotonic() < run.end {
        let body = Kind::ConfigMap.body(&name(number));
        number += 1;
        run.links.ask(0, Method::POST, &path, body).await?;
        let answered = run.clock.monotonic();
        for _ in 0..plan.watchers {
            let heard = tokio::time::timeout(WAIT_MAX, heard.recv()).await;
            let at = heard.context("no event")?.context("a watcher ended")?;
            took.push(at.saturating_sub(answered));
        }
        if let Some(ended) = watches.try_join_next() {
            ended??;
        }
    }
    let spent = Spent { elapsed: run.clock.monotonic() - start, cpu: cpu_since(plan, &cpu) };
    let events = took.len();
    report(plan, &mut took, events, &spent);
    Ok(())
}

async fn hold(plan: &Plan, target: &Target) -> anyhow::Result<()> {
    let run = Run::begin(plan, target).await?;
    let watches = watchers(plan, target, |_| |_: &[u8]| true).await?;
    let (cpu, start) = (cpu_time(plan), run.clock.monotonic());
    tokio::time::sleep(Duration::from_secs(plan.seconds)).await;
    let spent = Spent { elapsed: run.clock.monotonic() - start, cpu: cpu_since(plan, &cpu) };
    anyhow::ensure!(watches.len() == plan.watchers, "watches ended");
    report(plan, &mut [], 1, &spent);
    Ok(())
}

async fn wait(plan: &Plan, target: &Target) -> anyhow::Result<()> {
    let clock = Clock::system();
    let start = clock.monotonic();
    loop {
        if let Ok(links) = target.connect(1).await
            && links.ask(0, Method::GET, "/readyz", Bytes::new()).await.is_ok()
        {
            let elapsed = clock.monotonic() - start;
            let total = vec![Duration::ZERO; plan.pids.len()];
            report(plan, &mut [elapsed], 1, &Spent { elapsed, cpu: cpu_since(plan, &total) });
            return Ok(());
        }
        if clock.monotonic() - start > WAIT_MAX {
            bail!("the server is not ready");
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What a run took: time, and processor time of each of the servers.
struct Spent {
    elapsed: Duration,
    cpu: Vec<Duration>,
}

fn report(plan: &Plan, took: &mut [Duration], done: usize, spent: &Spent) {
    took.sort_unstable();
    let at = |share: f64| {
        let i = (took.len() as f64 * share) as usize;
        took.get(i.min(took.len().saturating_sub(1))).map_or(0.0, |d| d.as_secs_f64() * 1e3)
    };
    let rate = done as f64 / spent.elapsed.as_secs_f64();
    let each = |cpu: &Duration| format!("{:.1}", cpu.as_secs_f64() * 1e6 / done.max(1) as f64);
    let cpu: Vec<String> = spent.cpu.iter().map(each).collect();
    let memory: Vec<String> =
        plan.pids.iter().map(|pid| (resident_bytes(*pid) >> 20).to_string()).collect();
    println!(
        "| {} | {rate:.1} /s | {:.2} ms | {:.2} ms | {} us | {} MiB | {} | {} |",
        plan.operation,
        at(0.5),
        at(0.99),
        cpu.join(" + "),
        memory.join(" + "),
        plan.goal,
        plan.quoted,
    );
}

/// User and system time of each of the servers so far.
fn cpu_time(plan: &Plan) -> Vec<Duration> {
    let ticks = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name in brackets; the kernel counts in hundredths of a second.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>()
    };
    plan.pids.iter().map(|pid| Duration::from_millis(ticks(pid) * 10)).collect()
}

fn cpu_since(plan: &Plan, before: &[Duration]) -> Vec<Duration> {
    cpu_time(plan).iter().zip(before).map(|(now, then)| now.saturating_sub(*then)).collect()
}

fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}
