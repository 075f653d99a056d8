//! Measures one etcd v3 server: operations per second and how long each takes.
//!
//! `load URL OPERATION [CLIENTS] [VALUE_BYTES] [SECONDS] [SERVER_PID] [KEYS]`. Operations: `put`,
//! `get` (linearizable), `get-any` (serializable), `txn` (compare the revision, then put), `watch`
//! (time from a put's answer to its event at the last of CLIENTS watchers). Prints one line for a
//! table. With the server's pid it adds the CPU time per operation and the resident memory. Every
//! eight clients share a connection, as etcd's own benchmark can be told to.

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
    Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest, WatchRequest,
};

/// Clients on one connection.
const CLIENTS_PER_CONNECTION: usize = 8;
/// What is measured begins after this.
const WARM_UP: Duration = Duration::from_millis(500);

#[derive(Clone)]
struct Plan {
    url: String,
    operation: String,
    clients: usize,
    value_bytes: usize,
    seconds: u64,
    pid: Option<u32>,
    keys: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [url, operation, rest @ ..] = args.as_slice() else {
        bail!("usage: load URL OPERATION [CLIENTS] [VALUE_BYTES] [SECONDS] [SERVER_PID] [KEYS]");
    };
    let number = |i: usize, default: u64| -> anyhow::Result<u64> {
        rest.get(i).map_or(Ok(default), |s| s.parse().with_context(|| format!("number {s:?}")))
    };
    let plan = Plan {
        url: url.clone(),
        operation: operation.clone(),
        clients: usize::try_from(number(0, 64)?)?,
        value_bytes: usize::try_from(number(1, 256)?)?,
        seconds: number(2, 5)?,
        pid: u32::try_from(number(3, 0)?).ok().filter(|pid| *pid > 0),
        keys: number(4, 10_000)?,
    };
    match operation.as_str() {
        "put" | "get" | "get-any" | "txn" => requests(&plan).await,
        "watch" => watch(&plan).await,
        other => bail!("unknown operation {other:?}"),
    }
}

async fn connections(plan: &Plan) -> anyhow::Result<Vec<Channel>> {
    let mut channels = Vec::new();
    for _ in 0..plan.clients.div_ceil(CLIENTS_PER_CONNECTION) {
        let endpoint = Channel::from_shared(plan.url.clone())?.tcp_nodelay(true);
        channels.push(endpoint.connect().await.with_context(|| format!("connect {}", plan.url))?);
    }
    Ok(channels)
}

async fn requests(plan: &Plan) -> anyhow::Result<()> {
    let channels = connections(plan).await?;
    let (clock, measuring) = (Clock::system(), Arc::new(AtomicBool::new(false)));
    if plan.operation.starts_with("get") {
        fill(plan, &channels[0]).await?;
    }
    let end = clock.monotonic() + WARM_UP + Duration::from_secs(plan.seconds);
    let mut clients = JoinSet::new();
    for id in 0..plan.clients {
        let client = KvClient::new(channels[id % channels.len()].clone());
        let (plan, clock, measuring) = (plan.clone(), clock.clone(), measuring.clone());
        clients.spawn(one_client(id as u64, client, plan, clock, measuring, end));
    }
    tokio::time::sleep(WARM_UP).await;
    let (cpu, start) = (cpu_time(plan.pid), clock.monotonic());
    measuring.store(true, Ordering::Relaxed);
    let mut took = Vec::new();
    while let Some(done) = clients.join_next().await {
        took.extend(done??);
    }
    let elapsed = clock.monotonic() - start;
    report(plan, &mut took, elapsed, cpu_time(plan.pid).saturating_sub(cpu));
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
    let value: Bytes = (0..plan.value_bytes).map(|_| random.random::<u8>()).collect();
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

/// Writes every key once.
async fn fill(plan: &Plan, channel: &Channel) -> anyhow::Result<()> {
    let value = Bytes::from(vec![b'v'; plan.value_bytes]);
    let puts = tokio_stream::iter(0..plan.keys).map(|number| {
        let mut client = KvClient::new(channel.clone());
        let request = put(key(number), &value);
        async move { client.put(request).await }
    });
    let mut puts = futures::StreamExt::buffer_unordered(puts, 128);
    while let Some(done) = puts.next().await {
        done?;
    }
    Ok(())
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
    let value = Bytes::from(vec![b'v'; plan.value_bytes]);
    let end = clock.monotonic() + Duration::from_secs(plan.seconds);
    let (cpu, start, mut took) = (cpu_time(plan.pid), clock.monotonic(), Vec::new());
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
    report(plan, &mut took, elapsed, cpu_time(plan.pid).saturating_sub(cpu));
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
        plan.value_bytes,
        at(0.5),
        at(0.99),
        resident_bytes(plan.pid) >> 20,
    );
}

/// User and system time of a process so far.
fn cpu_time(pid: Option<u32>) -> Duration {
    let Some(stat) = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok())
    else {
        return Duration::ZERO;
    };
    // After the name in brackets; the kernel counts in hundredths of a second.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn resident_bytes(pid: Option<u32>) -> u64 {
    let status = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok());
    let kib = status.as_deref().and_then(|status| {
        status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()
    });
    kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}
