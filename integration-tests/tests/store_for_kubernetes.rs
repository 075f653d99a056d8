//! What a kube-apiserver 1.36 asks of its etcd, call by call (`k8s.io/apiserver/pkg/storage/etcd3` and etcd's
//! `client/v3/kubernetes`), asked of the store, and of a real etcd where there is one: both must pass.
#![allow(clippy::disallowed_methods)] // a test as a whole

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use integration_tests::etcd::{self, answers, store};
use integration_tests::machine;
use integration_tests::members::{PATIENCE, soon};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::sync::mpsc::Sender;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Streaming};
use wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use wire::etcdserverpb::kv_client::KvClient;
use wire::etcdserverpb::lease_client::LeaseClient;
use wire::etcdserverpb::maintenance_client::MaintenanceClient;
use wire::etcdserverpb::request_op::Request as Op;
use wire::etcdserverpb::response_op::Response as Answer;
use wire::etcdserverpb::watch_client::WatchClient;
use wire::etcdserverpb::watch_request::RequestUnion;
use wire::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest,
    RangeResponse, RequestOp, StatusRequest, TxnRequest, TxnResponse, WatchCreateRequest,
    WatchProgressRequest, WatchRequest, WatchResponse,
};
use wire::mvccpb::event::EventType;

const PREFIX: &str = "/registry/pods/";
/// How long a watch must stay silent to have nothing to say.
const SILENCE: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    let trial = |name: &str, test: fn() -> anyhow::Result<()>| {
        Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:#}"))))
    };
    let trials = vec![
        trial("store_gives_a_kube_apiserver_what_it_asks", || machine::block_on(of_the_store())),
        trial("store_test_of_a_kube_apiserver_holds_for_an_etcd", || {
            machine::block_on(of_an_etcd())
        })
        .with_ignored_flag(!etcd::is_here()),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

async fn of_the_store() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (_store, url) = store(dir.path(), &format!("data_dir={}", dir.path().display()))?;
    soon("the store answers", async || answers(&url).await).await?;
    let asker = Asker::new(&url)?;
    let version = asker.status().await?;
    // From 3.4.31 and 3.5.13 on, a watch can be asked how far it is: consistent reads from cache need that.
    let parts: Vec<u32> = version.split('.').map(str::parse).collect::<Result<_, _>>()?;
    ensure!(parts >= vec![3, 5, 13], "version {version}");
    asker.everything().await
}

async fn of_an_etcd() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (_etcd, url) = etcd::etcd(dir.path()).await?;
    let asker = Asker::new(&url)?;
    asker.status().await?;
    asker.everything().await
}

/// A client with the calls that a kube-apiserver makes, each with the parameters that it gives.
struct Asker {
    kv: KvClient<daemon::Channel>,
    channel: daemon::Channel,
}

impl Asker {
    fn new(url: &str) -> anyhow::Result<Self> {
        let channel = daemon::channel::connect(url, None)?;
        Ok(Self { kv: KvClient::new(channel.clone()), channel })
    }

    async fn everything(&self) -> anyhow::Result<()> {
        self.objects().await.context("objects")?;
        self.lists().await.context("lists")?;
        self.watches().await.context("watches")?;
        self.events().await.context("events that end by themselves")?;
        self.compaction().await.context("compaction")
    }

    /// The version by which features are chosen; the size that is reported as a metric is there as well.
    async fn status(&self) -> anyhow::Result<String> {
        let status = MaintenanceClient::new(self.channel.clone()).status(StatusRequest {}).await?;
        let status = status.into_inner();
        ensure!(status.db_size > 0, "{status:?}");
        Ok(status.version)
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, tonic::Status> {
        Ok(self.kv.clone().range(request).await?.into_inner())
    }

    async fn get(&self, key: &str) -> anyhow::Result<RangeResponse> {
        Ok(self.range(RangeRequest { key: key.to_owned().into(), ..Default::default() }).await?)
    }

    /// A page of a list: from a key on, so many, as it was at a revision.
    async fn list(&self, from: &str, limit: i64, at: i64) -> Result<RangeResponse, tonic::Status> {
        self.range(RangeRequest {
            key: from.to_owned().into(),
            range_end: prefix_end(PREFIX),
            limit,
            revision: at,
            ..Default::default()
        })
        .await
    }

    /// Create (`revision` 0) and update: the object is written if nobody else did, else it is read.
    async fn put(&self, key: &str, value: &str, revision: i64) -> anyhow::Result<TxnResponse> {
        self.put_leased(key, value, revision, 0).await
    }

    async fn put_leased(
        &self,
        key: &str,
        value: &str,
        revision: i64,
        lease: i64,
    ) -> anyhow::Result<TxnResponse> {
        let (key, value) = (Bytes::from(key.to_owned()), Bytes::from(value.to_owned()));
        let put = PutRequest { key: key.clone(), value, lease, ..Default::default() };
        self.unless_changed(key, revision, Op::RequestPut(put)).await
    }

    async fn delete(&self, key: &str, revision: i64) -> anyhow::Result<TxnResponse> {
        let key = Bytes::from(key.to_owned());
        let delete = DeleteRangeRequest { key: key.clone(), ..Default::default() };
        self.unless_changed(key, revision, Op::RequestDeleteRange(delete)).await
    }

    async fn unless_changed(&self, key: Bytes, at: i64, op: Op) -> anyhow::Result<TxnResponse> {
        let compare = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(at)),
            ..Default::default()
        };
        let read = Op::RequestRange(RangeRequest { key, ..Default::default() });
        let txn = TxnRequest {
            compare: vec![compare],
            success: vec![RequestOp { request: Some(op) }],
            failure: vec![RequestOp { request: Some(read) }],
        };
        Ok(self.kv.clone().txn(txn).await?.into_inner())
    }

    async fn objects(&self) -> anyhow::Result<()> {
        let key = format!("{PREFIX}default/web");
        let missing = self.get(&key).await?;
        ensure!(missing.kvs.is_empty() && missing.header.is_some(), "{missing:?}");
        let created = self.put(&key, "one", 0).await?;
        let first = revision(&created)?;
        ensure!(created.succeeded && first > 1, "{created:?}");
        // A second create is told what is there.
        let taken = self.put(&key, "two", 0).await?;
        let there = read(&taken)?;
        ensure!(!taken.succeeded && there.kvs.len() == 1, "{taken:?}");
        ensure!(there.kvs[0].value == "one" && there.kvs[0].mod_revision == first, "{there:?}");
        let updated = self.put(&key, "three", first).await?;
        let second = revision(&updated)?;
        ensure!(updated.succeeded && second == first + 1, "{updated:?}");
        let late = self.delete(&key, first).await?;
        ensure!(!late.succeeded && read(&late)?.kvs[0].mod_revision == second, "{late:?}");
        // What was read at a revision is still there for it.
        let request =
            RangeRequest { key: key.clone().into(), revision: first, ..Default::default() };
        ensure!(self.range(request).await?.kvs[0].value == "one", "history");
        let gone = self.delete(&key, second).await?;
        let deleted = match gone.responses.first().and_then(|r| r.response.as_ref()) {
            Some(Answer::ResponseDeleteRange(answer)) => answer.deleted,
            other => anyhow::bail!("{other:?}"),
        };
        ensure!(gone.succeeded && deleted == 1, "{gone:?}");
        // A delete of what is gone reads nothing.
        let again = self.delete(&key, second).await?;
        ensure!(!again.succeeded && read(&again)?.kvs.is_empty(), "{again:?}");
        Ok(())
    }

    async fn lists(&self) -> anyhow::Result<()> {
        for number in 0..10 {
            let created = self.put(&format!("{PREFIX}default/list-{number}"), "x", 0).await?;
            ensure!(created.succeeded, "{created:?}");
        }
        self.put("/registry/podtemplates/default/other", "x", 0).await?;
        let page = self.list(PREFIX, 4, 0).await?;
        let at = page.header.as_ref().context("no header")?.revision;
        ensure!(page.kvs.len() == 4 && page.more && page.count == 10, "{page:?}");
        // The next page begins behind the last key, at the first page's revision, and counts what is left from there.
        self.put(&format!("{PREFIX}default/list-99"), "x", 0).await?;
        let last = String::from_utf8(page.kvs[3].key.to_vec())?;
        let page = self.list(&format!("{last}\0"), 4, at).await?;
        ensure!(page.kvs.len() == 4 && page.more && page.count == 6, "{page:?}");
        let last = String::from_utf8(page.kvs[3].key.to_vec())?;
        let page = self.list(&format!("{last}\0"), 4, at).await?;
        ensure!(page.kvs.len() == 2 && !page.more && page.count == 2, "{page:?}");
        ensure!(page.header.as_ref().is_some_and(|h| h.revision == at + 1), "{page:?}");
        // What the sizes of objects are estimated from, and the count for metrics.
        let all = RangeRequest {
            key: PREFIX.into(),
            range_end: prefix_end(PREFIX),
            keys_only: true,
            ..Default::default()
        };
        let keys = self.range(all.clone()).await?;
        ensure!(keys.kvs.len() == 11 && keys.kvs.iter().all(|kv| kv.value.is_empty()), "{keys:?}");
        let count = RangeRequest { keys_only: false, count_only: true, ..all };
        let count = self.range(count).await?;
        ensure!(count.count == 11 && count.kvs.is_empty() && !count.more, "{count:?}");
        let future = self.list(PREFIX, 0, at + 1000).await.err().context("from the future")?;
        let text = "etcdserver: mvcc: required revision is a future revision";
        ensure!(future.code() == Code::OutOfRange && future.message() == text, "{future:?}");
        Ok(())
    }

    /// A watch of everything below the prefix, as the watch cache opens it.
    async fn watch(&self, from: i64) -> anyhow::Result<Watching> {
        let create = WatchCreateRequest {
            key: PREFIX.into(),
            range_end: prefix_end(PREFIX),
            start_revision: from,
            prev_kv: true,
            progress_notify: true,
            ..Default::default()
        };
        let (asks, asked) = tokio::sync::mpsc::channel(4);
        asks.send(WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) })
            .await?;
        let mut request = Request::new(ReceiverStream::new(asked));
        request.metadata_mut().insert("hasleader", "true".parse()?);
        let answers = WatchClient::new(self.channel.clone()).watch(request).await?.into_inner();
        let mut watching = Watching { asks, answers };
        let created = watching.next().await?;
        ensure!(created.created && !created.canceled, "{created:?}");
        Ok(watching)
    }

    async fn watches(&self) -> anyhow::Result<()> {
        let key = format!("{PREFIX}default/watched");
        let created = revision(&self.put(&key, "one", 0).await?)?;
        let updated = revision(&self.put(&key, "two", created).await?)?;
        let mut watch = self.watch(created + 1).await?;
        let news = watch.next().await?;
        let event = news.events.first().with_context(|| format!("no event: {news:?}"))?;
        let (kv, before) = (event.kv.as_ref().context("no kv")?, event.prev_kv.as_ref());
        ensure!(event.r#type() == EventType::Put && kv.mod_revision == updated, "{news:?}");
        ensure!(
            kv.create_revision == created && before.is_some_and(|b| b.value == "one"),
            "{news:?}"
        );
        let deleted = revision(&self.delete(&key, updated).await?)?;
        let news = watch.next().await?;
        let event = news.events.first().with_context(|| format!("no event: {news:?}"))?;
        let (kv, before) = (event.kv.as_ref().context("no kv")?, event.prev_kv.as_ref());
        ensure!(event.r#type() == EventType::Delete && kv.mod_revision == deleted, "{news:?}");
        ensure!(before.is_some_and(|b| b.value == "two"), "{news:?}");
        // Writes elsewhere say nothing here, but are what a consistent read has to wait for.
        let elsewhere = revision(&self.put("/registry/secrets/default/s", "x", 0).await?)?;
        ensure!(tokio::time::timeout(SILENCE, watch.next()).await.is_err(), "news from elsewhere");
        let progress = RequestUnion::ProgressRequest(WatchProgressRequest {});
        watch.asks.send(WatchRequest { request_union: Some(progress) }).await?;
        let news = watch.next().await?;
        let at = news.header.as_ref().context("no header")?.revision;
        ensure!(news.events.is_empty() && at >= elsewhere && !news.canceled, "{news:?}");
        Ok(())
    }

    async fn events(&self) -> anyhow::Result<()> {
        // Events share a lease, whose time is a little longer than theirs.
        let grant = LeaseGrantRequest { ttl: 1, id: 0 };
        let mut leases = LeaseClient::new(self.channel.clone());
        let lease = leases.lease_grant(grant).await?.into_inner();
        ensure!(lease.id != 0 && lease.ttl >= 1 && lease.error.is_empty(), "{lease:?}");
        let keys = [format!("{PREFIX}event-a"), format!("{PREFIX}event-b")];
        let mut last = 0;
        for key in &keys {
            let created = self.put_leased(key, "x", 0, lease.id).await?;
            last = revision(&created)?;
            ensure!(created.succeeded, "{created:?}");
        }
        let mut watch = self.watch(last + 1).await?;
        let mut ended = Vec::new();
        while ended.len() < keys.len() {
            for event in watch.next().await?.events {
                ensure!(event.r#type() == EventType::Delete, "{event:?}");
                let before = event.prev_kv.context("no previous value")?;
                ensure!(before.lease == lease.id, "{before:?}");
                ended.push(String::from_utf8(before.key.to_vec())?);
            }
        }
        ended.sort();
        ensure!(ended == keys, "{ended:?}");
        let missing =
            self.put_leased(&keys[0], "x", 0, lease.id).await.err().context("no lease")?;
        ensure!(
            missing.to_string().contains("etcdserver: requested lease not found"),
            "{missing:?}"
        );
        Ok(())
    }

    /// Several API servers agree by this key on who compacts; the loser learns the revision from the answer.
    async fn compact_turn(&self, version: i64, revision: i64) -> anyhow::Result<TxnResponse> {
        let key = Bytes::from_static(b"compact_rev_key");
        let compare = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Version.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::Version(version)),
            ..Default::default()
        };
        let value = Bytes::from(revision.to_string());
        let put = PutRequest { key: key.clone(), value, ..Default::default() };
        let get = RangeRequest { key, ..Default::default() };
        let txn = TxnRequest {
            compare: vec![compare],
            success: vec![RequestOp { request: Some(Op::RequestPut(put)) }],
            failure: vec![RequestOp { request: Some(Op::RequestRange(get)) }],
        };
        Ok(self.kv.clone().txn(txn).await?.into_inner())
    }

    async fn compaction(&self) -> anyhow::Result<()> {
        let first = self.compact_turn(0, 0).await?;
        ensure!(first.succeeded, "{first:?}");
        let at = revision(&first)?;
        let lost = self.compact_turn(0, at).await?;
        let there = read(&lost)?;
        ensure!(!lost.succeeded && there.kvs[0].version == 1, "{lost:?}");
        let won = self.compact_turn(there.kvs[0].version, at).await?;
        ensure!(won.succeeded, "{won:?}");
        let compact = CompactionRequest { revision: at, physical: false };
        self.kv.clone().compact(compact).await?;
        let again = self.kv.clone().compact(compact).await.err().context("compacted twice")?;
        let text = "etcdserver: mvcc: required revision has been compacted";
        ensure!(again.code() == Code::OutOfRange && again.message() == text, "{again:?}");
        // A list that goes on too late, and a watch that begins too early, hear of it in the words that become 410.
        let late = self.list(PREFIX, 4, at - 1).await.err().context("a list of what is gone")?;
        ensure!(late.code() == Code::OutOfRange && late.message() == text, "{late:?}");
        let mut watch = self.watch(at - 1).await?;
        let end = watch.next().await?;
        ensure!(end.canceled && end.compact_revision == at, "{end:?}");
        let now = self.list(PREFIX, 4, at).await?;
        ensure!(now.kvs.len() == 4, "{now:?}");
        Ok(())
    }
}

struct Watching {
    asks: Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
}

impl Watching {
    async fn next(&mut self) -> anyhow::Result<WatchResponse> {
        let news =
            tokio::time::timeout(PATIENCE, self.answers.message()).await.context("silent")?;
        news?.context("the watch ended")
    }
}

fn revision(answer: &TxnResponse) -> anyhow::Result<i64> {
    Ok(answer.header.as_ref().context("no header")?.revision)
}

/// What was read because the object was not as expected.
fn read(answer: &TxnResponse) -> anyhow::Result<&RangeResponse> {
    match answer.responses.first().and_then(|r| r.response.as_ref()) {
        Some(Answer::ResponseRange(range)) => Ok(range),
        other => anyhow::bail!("{other:?}"),
    }
}

/// The first key that does not begin so.
fn prefix_end(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}
