//! What clients do to the cluster, through any member, and what they remember of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use daemon::Channel;
use integration_tests::members::soon;
use testkit::history::{Answer, Call, Operation, Stamp};
use testkit::sim::Rng;
use tonic::{Code, Status};
use wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use wire::etcdserverpb::kv_client::KvClient;
use wire::etcdserverpb::lease_client::LeaseClient;
use wire::etcdserverpb::request_op::Request as Part;
use wire::etcdserverpb::watch_client::WatchClient;
use wire::etcdserverpb::watch_request::RequestUnion;
use wire::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest,
    RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest, WatchCreateRequest,
    WatchRequest,
};
use wire::mvccpb::Event;
use wire::mvccpb::event::EventType;

/// How long a client waits for an answer before it asks another member.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two calls of one client, and after one that failed.
const PAUSE: Duration = Duration::from_millis(8);
const PAUSE_FAILED: Duration = Duration::from_millis(100);
/// So many calls go to the same three keys, then to others: a short history is judged quickly.
const ROUND_CALLS: u64 = 500;
const KEYS: [&str; 3] = ["a", "b", "c"];
/// Writes that must be acknowledged before something is said to go on.
const GO_ON_WRITES: usize = 30;
/// The life of a lease, and how often it is renewed.
const TTL_S: i64 = 4;
const RENEW: Duration = Duration::from_secs(1);
/// What is said to a client whose write does not fit.
const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";

/// A change of a key: revision, key, and the new value unless it was removed.
pub type Change = (i64, Bytes, Option<Bytes>);

/// One lease as its owner knows it.
#[derive(Debug, Clone, Default)]
pub struct Lease {
    /// It must not end before; none if it is not known to be granted.
    pub safe_until: Option<Instant>,
    /// Its key was written, as the store said.
    pub attached: bool,
}

/// Everything that was seen.
#[derive(Debug, Default)]
pub struct Memory {
    instant: u64,
    /// By key.
    pub operations: BTreeMap<String, Vec<Operation>>,
    /// Linearizable answers with their revisions.
    pub stamps: Vec<Stamp>,
    /// Writes that were acknowledged.
    pub written: Vec<Change>,
    /// Reads of a round's keys: its prefix and the answer.
    pub ranges: Vec<(String, RangeResponse)>,
    /// By id.
    pub leases: BTreeMap<i64, Lease>,
    /// The last value seen, for swaps.
    seen: BTreeMap<String, Option<u64>>,
}

/// What all clients share.
pub struct Clients {
    channels: Vec<Channel>,
    memory: Mutex<Memory>,
    calls: AtomicU64,
    acknowledged: AtomicUsize,
    /// Writes that were refused since a disk is full.
    pub refused: AtomicUsize,
    stop: AtomicBool,
    /// The last revision that watchers have to hear; 0 while there will be more.
    goal: AtomicI64,
}

#[derive(Debug, Clone)]
enum Deed {
    One(String, Call),
    /// Read a round's keys, from a quorum or as the member knows them.
    All(String, bool),
    Both(String, u64, u64),
}

enum Heard {
    Changed(ResponseHeader, Answer),
    Range(RangeResponse),
}

/// Where a client goes: to the same member until it fails, or for a change.
pub struct Place {
    rng: Rng,
    at: usize,
}

impl Place {
    /// Draws from `rng`.
    pub fn new(mut rng: Rng) -> Self {
        let at = rng.place(integration_tests::lab::MEMBERS);
        Self { rng, at }
    }

    fn leave(&mut self) {
        self.at += 1 + self.rng.place(integration_tests::lab::MEMBERS - 1);
        self.at %= integration_tests::lab::MEMBERS;
    }
}

impl Clients {
    /// Clients of these members, none of which does anything yet.
    pub fn new(channels: Vec<Channel>) -> Arc<Self> {
        Arc::new(Self {
            channels,
            memory: Mutex::default(),
            calls: AtomicU64::new(1),
            acknowledged: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            goal: AtomicI64::new(0),
        })
    }

    /// A way to a member.
    pub fn channel(&self, at: usize) -> Channel {
        self.channels[at].clone()
    }

    /// What was seen so far.
    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing more is called.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Watchers end when they have heard this revision.
    pub fn last(&self, revision: i64) {
        self.goal.store(revision, Ordering::Relaxed);
    }

    /// Waits until some more writes are acknowledged.
    pub async fn go_on(
        &self,
        why: &str,
        mut meanwhile: impl AsyncFnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let goal = self.acknowledged.load(Ordering::Relaxed) + GO_ON_WRITES;
        soon(why, async || {
            meanwhile().await?;
            let now = self.acknowledged.load(Ordering::Relaxed);
            ensure!(now >= goal, "{now} writes acknowledged instead of {goal}");
            Ok(())
        })
        .await
    }

    /// Reads and writes until it is told to stop.
    pub async fn work(self: Arc<Self>, mut place: Place) {
        while !self.stop.load(Ordering::Relaxed) {
            if place.rng.chance(3) {
                place.leave();
            }
            let deed = self.choose(&mut place.rng);
            let called = self.memory().next_instant();
            let call = self.call(place.at, &deed);
            let heard = tokio::time::timeout(ANSWER_TIMEOUT, call).await;
            let heard = heard.unwrap_or_else(|_| Err(Status::deadline_exceeded("too late")));
            let pause = if heard.is_ok() { PAUSE } else { PAUSE_FAILED };
            if heard.as_ref().is_err_and(|status| !is_no_space(status)) {
                place.leave();
            }
            self.hear(deed, called, heard);
            tokio::time::sleep(pause).await;
        }
    }

    fn choose(&self, rng: &mut Rng) -> Deed {
        let value = self.calls.fetch_add(1, Ordering::Relaxed);
        let round = format!("d/{:05}/", value / ROUND_CALLS);
        let key = format!("{round}{}", KEYS[rng.place(KEYS.len())]);
        match rng.within(0..100) {
            0..30 => Deed::One(key, Call::Get),
            30..60 => Deed::One(key, Call::Put(value)),
            60..67 => Deed::One(key, Call::Delete),
            67..82 => {
                let from = self.memory().seen.get(&key).copied().flatten();
                Deed::One(key, Call::Swap(from, value))
            }
            82..88 => Deed::Both(round, value, self.calls.fetch_add(1, Ordering::Relaxed)),
            88..94 => Deed::All(round, true),
            _ => Deed::All(round, false),
        }
    }

    async fn call(&self, at: usize, deed: &Deed) -> Result<Heard, Status> {
        let mut kv = KvClient::new(self.channel(at));
        let header = |header: Option<ResponseHeader>| {
            header.ok_or_else(|| Status::internal("an answer without a header"))
        };
        Ok(match deed {
            Deed::One(key, Call::Get) => {
                let request = RangeRequest { key: key.clone().into(), ..Default::default() };
                Heard::Range(kv.range(request).await?.into_inner())
            }
            Deed::One(key, Call::Put(value)) => {
                let answer = kv.put(put(key, *value)).await?.into_inner();
                Heard::Changed(header(answer.header)?, Answer::Done)
            }
            Deed::One(key, Call::Delete) => {
                let key = key.clone().into();
                let request = DeleteRangeRequest { key, ..Default::default() };
                let answer = kv.delete_range(request).await?.into_inner();
                // That a key was there is said by the revisions, which only then move.
                Heard::Changed(header(answer.header)?, Answer::Swapped(answer.deleted > 0))
            }
            Deed::One(key, Call::Swap(from, to)) => {
                let answer = kv.txn(swap(key, *from, *to)).await?.into_inner();
                Heard::Changed(header(answer.header)?, Answer::Swapped(answer.succeeded))
            }
            Deed::Both(round, one, two) => {
                let parts = [put(&format!("{round}a"), *one), put(&format!("{round}b"), *two)];
                let part = |put| RequestOp { request: Some(Part::RequestPut(put)) };
                let success = parts.map(part).into();
                let answer = kv.txn(TxnRequest { success, ..Default::default() }).await?;
                Heard::Changed(header(answer.into_inner().header)?, Answer::Done)
            }
            Deed::All(round, linearizable) => {
                let request = RangeRequest {
                    key: round.clone().into(),
                    range_end: format!("{round}~").into(),
                    serializable: !linearizable,
                    ..Default::default()
                };
                Heard::Range(kv.range(request).await?.into_inner())
            }
        })
    }

    fn hear(&self, deed: Deed, called: u64, heard: Result<Heard, Status>) {
        if heard.as_ref().is_err_and(is_no_space) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return; // it was not done, for sure
        }
        let mut memory = self.memory();
        let answered = memory.next_instant();
        let heard = heard.ok();
        let (revision, wrote) = match &heard {
            Some(Heard::Changed(header, answer)) => {
                (header.revision, !matches!(answer, Answer::Swapped(false)))
            }
            Some(Heard::Range(range)) => (range.header.as_ref().map_or(0, |h| h.revision), false),
            None => (0, false),
        };
        if heard.is_some() && !matches!(deed, Deed::All(_, false)) {
            memory.stamps.push(Stamp { called, answered, revision, wrote });
        }
        if wrote {
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        match (deed, heard) {
            (Deed::One(key, call), heard) => {
                if wrote {
                    memory.written.push((revision, key.clone().into(), written(call)));
                }
                let answer = heard.map(|heard| (answered, answer(call, &heard)));
                if let Some((_, Answer::Found(found))) = answer {
                    memory.seen.insert(key.clone(), found);
                }
                let operation = Operation { called, call, answered: answer };
                memory.operations.entry(key).or_default().push(operation);
            }
            (Deed::Both(round, one, two), heard) => {
                let answer = heard.map(|_| (answered, Answer::Done));
                for (key, value) in [("a", one), ("b", two)] {
                    let key = format!("{round}{key}");
                    if wrote {
                        memory.written.push((revision, key.clone().into(), Some(text(value))));
                    }
                    let operation = Operation { called, call: Call::Put(value), answered: answer };
                    memory.operations.entry(key).or_default().push(operation);
                }
            }
            (Deed::All(round, _), Some(Heard::Range(range))) => memory.ranges.push((round, range)),
            (Deed::All(..), _) => {}
        }
    }

    /// Holds one lease after the other, each with a key, renews it for a while and lets it end.
    pub async fn hold(self: Arc<Self>, mut place: Place) {
        while !self.stop.load(Ordering::Relaxed) {
            let id = i64::try_from(self.calls.fetch_add(1, Ordering::Relaxed)).unwrap_or(1);
            if self.grant(place.at, id).await.is_err() {
                place.leave();
                tokio::time::sleep(PAUSE_FAILED).await;
                continue;
            }
            for _ in 0..place.rng.within(1..10) {
                tokio::time::sleep(RENEW).await;
                if place.rng.chance(20) || self.renew(place.at, id).await.is_err() {
                    place.leave();
                }
            }
        }
    }

    async fn grant(&self, at: usize, id: i64) -> anyhow::Result<()> {
        self.memory().leases.insert(id, Lease::default());
        let called = Instant::now();
        let mut client = LeaseClient::new(self.channel(at));
        let granting = client.lease_grant(LeaseGrantRequest { id, ttl: TTL_S });
        let ttl = tokio::time::timeout(ANSWER_TIMEOUT, granting).await??.into_inner().ttl;
        self.lives(id, called, ttl)?;
        let (key, mut kv) = (format!("l/{id}").into(), KvClient::new(self.channel(at)));
        let attaching = kv.put(PutRequest { key, lease: id, ..Default::default() });
        tokio::time::timeout(ANSWER_TIMEOUT, attaching).await??;
        self.memory().leases.entry(id).or_default().attached = true;
        Ok(())
    }

    async fn renew(&self, at: usize, id: i64) -> anyhow::Result<()> {
        let called = Instant::now();
        let request = tokio_stream::iter([LeaseKeepAliveRequest { id }]);
        let mut client = LeaseClient::new(self.channel(at));
        let renewing =
            async { client.lease_keep_alive(request).await?.into_inner().message().await };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, renewing).await??;
        self.lives(id, called, answer.context("no answer")?.ttl)
    }

    /// A lease had so many seconds to live, some time after `called`.
    fn lives(&self, id: i64, called: Instant, ttl: i64) -> anyhow::Result<()> {
        let life = Duration::from_secs(u64::try_from(ttl)?);
        ensure!(!life.is_zero(), "lease {id} has ended");
        let mut memory = self.memory();
        let lease = memory.leases.entry(id).or_default();
        lease.safe_until = lease.safe_until.max(Some(called + life));
        Ok(())
    }

    /// Hears all changes up to the last, and when, going on through another member whenever one fails.
    pub async fn watch(self: Arc<Self>, mut place: Place) -> (Vec<Change>, Vec<Instant>) {
        let mut heard: (Vec<Change>, Vec<Instant>) = Default::default();
        loop {
            let ended = self.watch_through(place.at, &mut heard).await;
            let goal = self.goal.load(Ordering::Relaxed);
            if goal != 0 && heard.0.last().is_some_and(|change| change.0 >= goal) {
                return heard;
            }
            if ended.is_err() {
                place.leave();
            }
            tokio::time::sleep(PAUSE_FAILED).await;
        }
    }

    async fn watch_through(
        &self,
        at: usize,
        heard: &mut (Vec<Change>, Vec<Instant>),
    ) -> anyhow::Result<()> {
        let next = heard.0.last().map_or(1, |change| change.0 + 1);
        let mut events = Box::pin(watch(self.channel(at), next));
        let mut events = tokio::time::timeout(ANSWER_TIMEOUT, &mut events).await??;
        loop {
            let goal = self.goal.load(Ordering::Relaxed);
            if goal != 0 && heard.0.last().is_some_and(|change| change.0 >= goal) {
                return Ok(());
            }
            // From time to time it looks whether the end was told.
            let Ok(news) = tokio::time::timeout(ANSWER_TIMEOUT, events.message()).await else {
                continue;
            };
            let news = news?.context("the watch ended")?;
            ensure!(!news.canceled, "cancelled: {}", news.cancel_reason);
            let now = Instant::now();
            heard.0.extend(news.events.into_iter().map(change));
            heard.1.resize(heard.0.len(), now);
        }
    }
}

impl Memory {
    fn next_instant(&mut self) -> u64 {
        self.instant += 1;
        self.instant
    }
}

/// A watch on everything.
pub async fn watch(
    channel: Channel,
    start_revision: i64,
) -> anyhow::Result<tonic::Streaming<wire::etcdserverpb::WatchResponse>> {
    let all = Bytes::from_static(&[0]);
    let create = WatchCreateRequest {
        key: all.clone(),
        range_end: all,
        start_revision,
        ..Default::default()
    };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    // The side that asks stays open as long as the answers are read.
    let requests =
        tokio_stream::StreamExt::chain(tokio_stream::once(request), tokio_stream::pending());
    Ok(WatchClient::new(channel).watch(requests).await?.into_inner())
}

/// What an event says.
pub fn change(event: Event) -> Change {
    let put = event.r#type == i32::from(EventType::Put);
    let kv = event.kv.unwrap_or_default();
    (kv.mod_revision, kv.key, put.then_some(kv.value))
}

/// The number that a value says.
pub fn value(bytes: &Bytes) -> Option<u64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

fn text(value: u64) -> Bytes {
    value.to_string().into()
}

fn is_no_space(status: &Status) -> bool {
    status.code() == Code::ResourceExhausted && status.message() == NO_SPACE
}

fn put(key: &str, value: u64) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: text(value), ..Default::default() }
}

fn swap(key: &str, from: Option<u64>, to: u64) -> TxnRequest {
    let (target, union) = match from {
        Some(from) => (CompareTarget::Value, TargetUnion::Value(text(from))),
        None => (CompareTarget::Create, TargetUnion::CreateRevision(0)),
    };
    let compare = Compare {
        result: CompareResult::Equal.into(),
        target: target.into(),
        key: key.to_owned().into(),
        target_union: Some(union),
        ..Default::default()
    };
    let success = vec![RequestOp { request: Some(Part::RequestPut(put(key, to))) }];
    TxnRequest { compare: vec![compare], success, ..Default::default() }
}

/// What a write leaves.
fn written(call: Call) -> Option<Bytes> {
    match call {
        Call::Put(value) | Call::Swap(_, value) => Some(text(value)),
        Call::Get | Call::Delete => None,
    }
}

fn answer(call: Call, heard: &Heard) -> Answer {
    match (call, heard) {
        (_, Heard::Range(range)) => {
            Answer::Found(range.kvs.first().and_then(|kv| value(&kv.value)))
        }
        (Call::Delete, _) => Answer::Done,
        (_, Heard::Changed(_, answer)) => *answer,
    }
}
