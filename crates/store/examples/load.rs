//! Measures etcd v3 servers: operations per second and how long each takes.
//!
//! `load URLS OPERATION [name=value…]`, URLs separated by commas; every eight clients share a connection, as etcd's own benchmark
//! can be told to, and the connections take the URLs in turn. Prints one line for a table. Operations:
//!
//! - `put`, `get` (linearizable), `get-any` (serializable), `txn` (compare the revision, then put): `clients` of them for
//!   `seconds`, over `keys` keys with values of `bytes`;
//! - `watch`: the time from a put's answer to its event at the last of `clients` watchers;
//! - `fill`: every key once; `overwrite`: `count` puts over `keys` keys, compacted now and then; both say how long it took;
//! - `wait`: the time until a linearizable read is answered.
//!
//! With `pids` of the servers it adds their processor time per operation and their resident memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use daemon::Clock;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use wire::etcdserverpb::kv_client::KvClient;
use wire::etcdserverpb::request_op::Request;
use wire::etcdserverpb::watch_client::WatchClient;
use wire::etcdserverpb::watch_request::RequestUnion;
use wire::etcdserverpb::{
    CompactionRequest, Compare, PutRequest, RangeRequest, RequestOp, TxnRequest,
    WatchCreateRequest, WatchRequest,
};

/// Clients on one connection.
const CLIENTS_PER_CONNECTION: usize = 8;
/// Writes after which `overwrite` compacts.
const COMPACT_EVERY: u64 = 50_000;
/// How long a server may take to start.
const WAIT_MAX: Duration = Duration::from_secs(120);
/// What is measured begins after this.
const WARM_UP: Duration = Duration::from_millis(500);

#[derive(Clone)]
struct Plan {
    urls: Vec<String>,
    operation: String,
    clients: usize,
    bytes: usize,
    seconds: u64,
    keys: u64,
    count: u64,
    pids: Vec<u32>,
}

impl Plan {
    fn parse(mut args: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let usage =
            "usage: load URL[,URL…] OPERATION [clients|bytes|seconds|keys|count|pids=VALUE…]";
        let mut plan = Self {
            urls: args.next().context(usage)?.split(',').map(str::to_owned).collect(),
            operation: args.next().context(usage)?,
            clients: 64,
            bytes: 256,
            seconds: 5,
            keys: 10_000,
            count: 100_000,
            pids: Vec::new(),
        };
        for arg in args {
            let (name, value) = arg.split_once('=').context(usage)?;
            match name {
                "clients" => plan.clients = value.parse().context("clients")?,
                "bytes" => plan.bytes = value.parse().context("bytes")?,
                "seconds" => plan.seconds = value.parse().context("seconds")?,
                "keys" => plan.keys = value.parse().context("keys")?,
                "count" => plan.count = value.parse().context("count")?,
                "pids" => {
                    plan.pids = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
                }
                _ => bail!(usage),
            }
        }
        Ok(plan)
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let plan = Plan::parse(std::env::args().skip(1))?;
    match plan.operation.as_str() {
        "put" | "get" | "get-any" | "txn" => requests(&plan).await,
        "watch" => watch(&plan).await,
        "fill" => amount(&plan, plan.keys).await,
        "overwrite" => amount(&plan, plan.count).await,
        "wait" => wait(&plan).await,
        other => bail!("unknown operation {other:?}"),
    }
}

async fn connections(plan: &Plan) -> anyhow::Result<Vec<Channel>> {
    let mut channels = Vec::new();
    for url in plan.urls.iter().cycle().take(plan.clients.div_ceil(CLIENTS_PER_CONNECTION)) {
        let endpoint = Channel::from_shared(url.clone())?.tcp_nodelay(true);
        channels.push(endpoint.connect().await.with_context(|| format!("connect {url}"))?);
    }
    Ok(channels)
}

async fn requests(plan: &Plan) -> anyhow::Result<()> {
    let channels = connections(plan).await?;
    let (clock, measuring) = (Clock::system(), Arc::new(AtomicBool::new(false)));
    if plan.operation.starts_with("get") {
        write(plan, &channels[0], plan.keys).await?;
    }
    let end = clock.monotonic() + WARM_UP + Duration::from_secs(plan.seconds);
    let mut clients = JoinSet::new();
    for id in 0..plan.clients {
        let client = KvClient::new(channels[id % channels.len()].clone());
        let (plan, clock, measuring) = (plan.clone(), clock.clone(), measuring.clone());
        clients.spawn(one_client(id as u64, client, plan, clock, measuring, end));
    }
    tokio::time::sleep(WARM_UP).await;
    let (cpu, start) = (cpu_time(plan), clock.monotonic());
    measuring.store(true, Ordering::Relaxed);
    let mut took = Vec::new();
    while let Some(done) = clients.join_next().await {
        took.extend(done??);
    }
    let elapsed = clock.monotonic() - start;
    report(plan, &mut took, elapsed, cpu_time(plan).saturating_sub(cpu));
    Ok(())
}

async fn one_client(
    id: u64,
    mut client: KvClient<Channel>,
    plan: Plan,
    clock: Clock,
    measuring: Arc<AtomicBool>,
    end: Duration,
) -> anyhow::Result<Vec<Duration>> {
    let mut random = StdRng::seed_from_u64(id);
    let value: Bytes = (0..plan.bytes).map(|_| random.random::<u8>()).collect();
    let mut took = Vec::new();
    loop {
        let start = clock.monotonic();
        if start >= end {
            return Ok(took);
        }
        let key = key(random.random_range(0..plan.keys));
        match plan.operation.as_str() {
            "put" => drop(client.put(put(key, &value)).await?),
            "txn" => drop(client.txn(txn(key, &value)).await?),
            other => {
                let serializable = other == "get-any";
                client.range(RangeRequest { key, serializable, ..Default::default() }).await?;
            }
        }
        if measuring.load(Ordering::Relaxed) {
            took.push(clock.monotonic() - start);
        }
    }
}

fn key(number: u64) -> Bytes {
    format!("/registry/load/key-{number:012}").into()
}

fn put(key: Bytes, value: &Bytes) -> PutRequest {
    PutRequest { key, value: value.clone(), ..Default::default() }
}

/// The shape of a Kubernetes write: unchanged since it was read, or give back what is there.
fn txn(key: Bytes, value: &Bytes) -> TxnRequest {
    let compare = Compare {
        result: CompareResult::Greater.into(),
        target: CompareTarget::Mod.into(),
        target_union: Some(TargetUnion::ModRevision(-1)),
        key: key.clone(),
        ..Default::default()
    };
    let range = RangeRequest { key: key.clone(), ..Default::default() };
    TxnRequest {
        compare: vec![compare],
        success: vec![RequestOp { request: Some(Request::RequestPut(put(key, value))) }],
        failure: vec![RequestOp { request: Some(Request::RequestRange(range)) }],
    }
}

/// Writes so many times, key after key.
async fn write(plan: &Plan, channel: &Channel, count: u64) -> anyhow::Result<()> {
    let value = Bytes::from(vec![b'v'; plan.bytes]);
    let puts = tokio_stream::iter(0..count).map(|number| {
        let mut client = KvClient::new(channel.clone());
        let request = put(key(number % plan.keys), &value);
        async move {
            let answer = client.put(request).await?.into_inner();
            let revision = answer.header.map_or(0, |header| header.revision);
            if (number + 1) % COMPACT_EVERY == 0 {
                client.compact(CompactionRequest { revision, physical: false }).await?;
            }
            anyhow::Ok(())
        }
    });
    let mut puts = futures::StreamExt::buffer_unordered(puts, 128);
    while let Some(done) = puts.next().await {
        done?;
    }
    Ok(())
}

async fn amount(plan: &Plan, count: u64) -> anyhow::Result<()> {
    let channels = connections(plan).await?;
    let (clock, cpu) = (Clock::system(), cpu_time(plan));
    let start = clock.monotonic();
    write(plan, &channels[0], count).await?;
    report(plan, &mut [clock.monotonic() - start], clock.monotonic() - start, cpu_time(plan) - cpu);
    Ok(())
}

async fn wait(plan: &Plan) -> anyhow::Result<()> {
    let clock = Clock::system();
    let start = clock.monotonic();
    let endpoint = Channel::from_shared(plan.urls[0].clone())?;
    loop {
        if let Ok(channel) = endpoint.connect().await {
            let request = RangeRequest { key: key(0), ..Default::default() };
            if KvClient::new(channel).range(request).await.is_ok() {
                let took = clock.monotonic() - start;
                report(plan, &mut [took], took, Duration::ZERO);
                return Ok(());
            }
        }
        if clock.monotonic() - start > WAIT_MAX {
            bail!("{} answers no read", plan.urls[0]);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn watch(plan: &Plan) -> anyhow::Result<()> {
    let channels = connections(plan).await?;
    let clock = Clock::system();
    let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let mut watchers = JoinSet::new();
    for id in 0..plan.clients {
        let (channel, said, clock) =
            (channels[id % channels.len()].clone(), said.clone(), clock.clone());
        watchers.spawn(one_watcher(channel, said, clock));
    }
    for _ in 0..plan.clients {
        heard.recv().await.context("a watcher ended")?; // it is there
    }
    let mut client = KvClient::new(channels[0].clone());
    let value = Bytes::from(vec![b'v'; plan.bytes]);
    let end = clock.monotonic() + Duration::from_secs(plan.seconds);
    let (cpu, start, mut took) = (cpu_time(plan), clock.monotonic(), Vec::new());
    while clock.monotonic() < end {
        client.put(put(key(0), &value)).await?;
        let answered = clock.monotonic();
        let mut last = answered;
        for _ in 0..plan.clients {
            last = last.max(heard.recv().await.context("a watcher ended")?);
        }
        took.push(last - answered);
    }
    watchers.abort_all();
    let elapsed = clock.monotonic() - start;
    report(plan, &mut took, elapsed, cpu_time(plan).saturating_sub(cpu));
    Ok(())
}

async fn one_watcher(
    channel: Channel,
    said: tokio::sync::mpsc::UnboundedSender<Duration>,
    clock: Clock,
) -> anyhow::Result<()> {
    let create = WatchCreateRequest {
        key: Bytes::from_static(b"/registry/"),
        range_end: Bytes::from_static(b"/registry0"),
        ..Default::default()
    };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    // The stream of requests stays open, or the server would end the watch.
    let requests = tokio_stream::once(request).chain(tokio_stream::pending());
    let mut stream = WatchClient::new(channel).watch(requests).await?.into_inner();
    while let Some(response) = stream.message().await? {
        for _ in 0..response.events.len() + usize::from(response.created) {
            said.send(clock.monotonic())?;
        }
    }
    Ok(())
}

fn report(plan: &Plan, took: &mut [Duration], elapsed: Duration, cpu: Duration) {
    took.sort_unstable();
    let at = |share: f64| {
        let i = (took.len() as f64 * share) as usize;
        took.get(i.min(took.len().saturating_sub(1))).map_or(0.0, |d| d.as_secs_f64() * 1e3)
    };
    let rate = took.len() as f64 / elapsed.as_secs_f64();
    let per_op = cpu.as_secs_f64() * 1e6 / took.len().max(1) as f64;
    println!(
        "| {:8} | {:4} clients | {:5} B | {rate:9.0} /s | p50 {:7.2} ms | p99 {:7.2} ms | {per_op:6.0} us CPU | {:5} MiB |",
        plan.operation,
        plan.clients,
        plan.bytes,
        at(0.5),
        at(0.99),
        plan.pids.iter().map(|pid| resident_bytes(*pid)).sum::<u64>() >> 20,
    );
}

/// User and system time of the servers so far.
fn cpu_time(plan: &Plan) -> Duration {
    let ticks = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name in brackets; the kernel counts in hundredths of a second.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>()
    };
    Duration::from_millis(plan.pids.iter().map(ticks).sum::<u64>() * 10)
}

fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}
