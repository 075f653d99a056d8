//! Everything acknowledged is there again, however the member ended.
#![allow(clippy::unwrap_used)] // helpers of tests, which the linter does not see as tests

use store::auth::By;
use store::engine::Engine;
use store::mvcc::{Error, Op, Reply};
use store::{Config, Store};
use tokio_util::sync::CancellationToken;
use wire::etcdserverpb::alarm_request::AlarmAction;
use wire::etcdserverpb::{
    AlarmRequest, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest,
};

fn config(dir: &std::path::Path) -> Config {
    Config {
        data_dir: dir.to_string_lossy().into_owned(),
        snapshot_entries: 20,
        ..Config::default()
    }
}

async fn opened(dir: &std::path::Path) -> (Store, daemon::Context) {
    let ctx = daemon::Context::new(CancellationToken::new());
    (store::open(&config(dir), &ctx).await.unwrap(), ctx)
}

async fn put(engine: &Engine, n: u32) {
    let request = PutRequest {
        key: format!("k{}", n % 7).into(),
        value: n.to_string().into(),
        ..Default::default()
    };
    assert!(matches!(engine.propose(&By::Store, &Op::Put(request)).await, Ok(Reply::Put(_))));
}

fn value(engine: &Engine, key: &'static str) -> String {
    let request = RangeRequest { key: key.into(), ..Default::default() };
    let kvs = engine.range(&By::Store, &request).unwrap().kvs;
    String::from_utf8_lossy(&kvs[0].value).into_owned()
}

async fn stop(store: Store, ctx: daemon::Context) {
    ctx.shutdown.cancel();
    drop(store);
    ctx.tasks.join().await.unwrap();
}

fn copy(from: &std::path::Path, to: &std::path::Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for item in std::fs::read_dir(from)? {
        let path = item?.path();
        std::fs::copy(&path, to.join(path.file_name().unwrap()))?;
    }
    Ok(())
}

/// What a crash of a running member would leave. Snapshots are copied last, as they may only be newer than the log; if one
/// is replaced meanwhile, all begins again.
fn crashed(dir: &std::path::Path) -> tempfile::TempDir {
    loop {
        let left = tempfile::tempdir().unwrap();
        let parts = ["log", "snapshots"];
        if parts.iter().all(|part| copy(&dir.join(part), &left.path().join(part)).is_ok()) {
            std::fs::copy(dir.join("member"), left.path().join("member")).unwrap();
            return left;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_end_and_start_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ctx) = opened(dir.path()).await;
    for n in 0..100 {
        put(store.engine(), n).await;
    }
    stop(store, ctx).await;
    let (store, ctx) = opened(dir.path()).await;
    assert_eq!(value(store.engine(), "k1"), "99");
    put(store.engine(), 100).await;
    assert_eq!(store.engine().header_now().revision, 102);
    stop(store, ctx).await;
}

/// A disk with less room than is set aside takes no more puts, but what frees space.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_on_a_full_disk_is_read_only_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let full = Config { disk_reserve_bytes: u64::MAX, ..config(dir.path()) };
    let ctx = daemon::Context::new(CancellationToken::new());
    let store = store::open(&full, &ctx).await.unwrap();
    let engine = store.engine();
    let put = PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
    let op = Op::Put(put);
    // The disk is looked at when something was written.
    let mut taken = 0;
    while engine.propose_growth(&By::Store, &op).await.is_ok() {
        taken += 1;
        tokio::task::yield_now().await;
    }
    assert_eq!(engine.propose_growth(&By::Store, &op).await, Err(Error::NoSpace.into()));
    assert!(engine.applied.read().mvcc.no_space());
    let delete = DeleteRangeRequest { key: "k".into(), ..Default::default() };
    engine.propose(&By::Store, &Op::Delete(delete)).await.unwrap();
    let deleted = taken.min(1);
    assert_eq!(engine.header_now().revision, 1 + taken + deleted);
    stop(store, ctx).await;
    let (store, ctx) = opened(dir.path()).await;
    let engine = store.engine();
    let refused = engine.propose_growth(&By::Store, &op).await;
    assert_eq!(refused, Err(Error::NoSpace.into()), "the alarm is still up");
    let disarm = AlarmRequest { action: AlarmAction::Deactivate.into(), ..Default::default() };
    engine.propose(&By::Store, &Op::Alarm(disarm)).await.unwrap();
    engine.propose_growth(&By::Store, &op).await.unwrap();
    stop(store, ctx).await;
}

/// The log and snapshots alone, as after a power cut: no mark, so the state is not trusted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_and_snapshots_are_enough() {
    let dir = tempfile::tempdir().unwrap();
    let (store, ctx) = opened(dir.path()).await;
    let grant = Op::Grant(LeaseGrantRequest { id: 9, ttl: 600 });
    store.engine().propose(&By::Store, &grant).await.unwrap();
    for n in 0..100 {
        put(store.engine(), n).await;
        if n % 10 != 9 {
            continue;
        }
        let left = crashed(dir.path());
        let (again, ctx) = opened(left.path()).await;
        let key: &'static str = ["k0", "k1", "k2", "k3", "k4", "k5", "k6"][n as usize % 7];
        assert_eq!(value(again.engine(), key), n.to_string());
        assert_eq!(again.engine().header_now().revision, i64::from(n) + 2);
        assert_eq!(again.engine().applied.read().mvcc.leases().iter().count(), 1);
        stop(again, ctx).await;
    }
    stop(store, ctx).await;
}

/// What a member of the version before joint changes wrote (log and snapshots of format 2), killed in the middle of it: 60
/// puts of seven keys, one of a key with a lease, a delete, a compaction, a user, a last put.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_the_format_before_are_opened_and_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let written = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/format2");
    for part in ["log", "snapshots"] {
        copy(&written.join(part), &dir.path().join(part)).unwrap();
    }
    std::fs::copy(written.join("member"), dir.path().join("member")).unwrap();
    for puts in 0..2 {
        let (store, ctx) = opened(dir.path()).await;
        let engine = store.engine();
        let keys = [("k0", "v56"), ("k2", "v58"), ("leased", "x"), ("last", "one")];
        for (key, expected) in keys {
            assert_eq!(value(engine, key), expected, "{key}");
        }
        assert_eq!(engine.header_now().revision, 64 + puts);
        let applied = engine.applied.read().clone();
        assert_eq!(applied.mvcc.compacted(), 40);
        assert_eq!(applied.mvcc.leases().iter().count(), 1);
        assert_eq!(applied.auth.users.keys().collect::<Vec<_>>(), ["root"]);
        // The log goes on in today's format behind what is there.
        put(engine, 1).await;
        stop(store, ctx).await;
    }
}
