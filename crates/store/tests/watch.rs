//! Watches of the past, through the services of a member in memory.

use std::time::Duration;

use store::Config;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use wire::etcdserverpb::kv_client::KvClient;
use wire::etcdserverpb::request_op::Request;
use wire::etcdserverpb::watch_client::WatchClient;
use wire::etcdserverpb::watch_request::RequestUnion;
use wire::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest,
    WatchRequest,
};

fn create(key: &'static [u8], range_end: &'static [u8], start_revision: i64) -> WatchRequest {
    let create = WatchCreateRequest {
        key: key.into(),
        range_end: range_end.into(),
        start_revision,
        ..Default::default()
    };
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_from_before_the_first_change_hears_all_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { data_dir: dir.path().display().to_string(), ..Config::default() };
    let ctx = daemon::Context::new(CancellationToken::new());
    let member = store::open(&config, &ctx).await.unwrap();
    let channel = daemon::channel::in_memory(member.routes(), ());
    for value in ["1", "2"] {
        let put = PutRequest { key: "a".into(), value: value.into(), ..Default::default() };
        KvClient::new(channel.clone()).put(put).await.unwrap();
    }
    // The second has no keys, and takes no id from the third.
    let requests = [create(b"a", b"", 1), create(b"d", b"b", 1), create(b"a", b"\0", 3)];
    let requests = tokio_stream::iter(requests).chain(tokio_stream::pending());
    let mut stream = WatchClient::new(channel).watch(requests).await.unwrap().into_inner();
    let mut heard = vec![Vec::new(), Vec::new()];
    while heard[0].len() + heard[1].len() < 3 {
        let next = tokio::time::timeout(Duration::from_secs(10), stream.message());
        let response = next.await.expect("an event in time").unwrap().unwrap();
        for event in response.events {
            let kv = event.kv.unwrap();
            heard[usize::try_from(response.watch_id).unwrap()].push((kv.mod_revision, kv.value));
        }
    }
    let (one, two) = ((2, "1".into()), (3, "2".into()));
    assert_eq!(heard, [vec![one, two.clone()], vec![two]]);
    ctx.shutdown.cancel();
    drop(stream);
    ctx.tasks.join().await.unwrap();
}

/// Large values leave memory once it has had its share of newer ones; watchers, deletes and reads still see them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_hears_what_was_replaced_though_memory_let_it_go() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { data_dir: dir.path().display().to_string(), ..Config::default() };
    let ctx = daemon::Context::new(CancellationToken::new());
    let member = store::open(&config, &ctx).await.unwrap();
    let channel = daemon::channel::in_memory(member.routes(), ());
    let mut kv = KvClient::new(channel.clone());
    let put = |key: &str, value: Vec<u8>| PutRequest {
        key: key.to_owned().into(),
        value: value.into(),
        ..Default::default()
    };
    for key in ["put", "deleted"] {
        kv.put(put(key, vec![1; 4000])).await.unwrap();
    }
    for n in 0..40 {
        kv.put(put(&format!("x{n}"), vec![2; 1 << 20])).await.unwrap();
    }
    let watch = |from| {
        let mut request = create(b"a", b"x", from);
        if let Some(RequestUnion::CreateRequest(create)) = &mut request.request_union {
            create.prev_kv = true;
        }
        request
    };
    // One that hears of the changes as they come, one that reads them from memory afterwards.
    let (ask, asked) = tokio::sync::mpsc::channel(2);
    ask.send(watch(0)).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(asked);
    let mut stream = WatchClient::new(channel).watch(requests).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().unwrap().created);
    let first = kv.put(put("put", vec![3])).await.unwrap().into_inner().header.unwrap().revision;
    let deleted = DeleteRangeRequest { key: "deleted".into(), ..Default::default() };
    assert_eq!(kv.delete_range(deleted).await.unwrap().into_inner().deleted, 1);
    ask.send(watch(first)).await.unwrap();
    let mut heard = [Vec::new(), Vec::new()];
    while heard[0].len() + heard[1].len() < 4 {
        let next = tokio::time::timeout(Duration::from_secs(10), stream.message());
        let response = next.await.expect("an event in time").unwrap().unwrap();
        for event in response.events {
            let prev = event.prev_kv.unwrap();
            heard[usize::try_from(response.watch_id).unwrap()].push((prev.key, prev.value));
        }
    }
    let old = |key: &'static str| (key.into(), vec![1; 4000].into());
    assert_eq!(heard[0], [old("put"), old("deleted")]);
    assert_eq!(heard[1], heard[0]);
    let old = RangeRequest { key: "put".into(), revision: first - 1, ..Default::default() };
    let answer = kv.range(old).await.unwrap().into_inner();
    assert_eq!(answer.kvs[0].value, vec![1; 4000]);
    ctx.shutdown.cancel();
    drop(stream);
    ctx.tasks.join().await.unwrap();
}

/// A disk that does not give history back must end the watch: silence would be taken for "nothing happened".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_whose_history_the_disk_lost_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { data_dir: dir.path().display().to_string(), ..Config::default() };
    let ctx = daemon::Context::new(CancellationToken::new());
    let member = store::open(&config, &ctx).await.unwrap();
    let channel = daemon::channel::in_memory(member.routes(), ());
    let mut kv = KvClient::new(channel.clone());
    // Small enough for sled to let go of them.
    for n in 0..300 {
        let puts = (0..100).map(|m| PutRequest {
            key: format!("k{n}-{m}").into(),
            value: vec![7; 3 << 10].into(),
            ..Default::default()
        });
        let success = puts.map(|put| RequestOp { request: Some(Request::RequestPut(put)) });
        kv.txn(TxnRequest { success: success.collect(), ..Default::default() }).await.unwrap();
    }
    // Until the last of them is archived, so that it is the watch which finds out.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let lost = destroy(&dir.path().join("state")).unwrap();
    assert!(lost > 50 << 20, "only {lost} bytes of state were on disk");
    let requests = tokio_stream::iter([create(b"k", b"l", 1)]).chain(tokio_stream::pending());
    let mut stream = WatchClient::new(channel).watch(requests).await.unwrap().into_inner();
    let mut heard = 1;
    let end = async {
        // A member that finds its state broken may also end, and its clients ask another one.
        while let Ok(Some(response)) = stream.message().await {
            if response.canceled {
                assert_eq!(response.compact_revision, 0, "{response:?}");
                return response.cancel_reason;
            }
            for kv in response.events.into_iter().filter_map(|event| event.kv) {
                assert!((heard..=heard + 1).contains(&kv.mod_revision), "{heard}, then {kv:?}");
                heard = kv.mod_revision;
                assert!(kv.value.iter().all(|byte| *byte == 7), "{kv:?}");
            }
        }
        "the member ended".to_owned()
    };
    let end = tokio::time::timeout(Duration::from_secs(30), end).await.expect("an end in time");
    assert!(!end.is_empty());
    println!("heard {heard} revisions, then {end}");
    ctx.shutdown.cancel();
    drop(stream);
    // The state cannot be closed cleanly any more, and may say so.
    drop(ctx.tasks.join().await);
}

/// Makes zeros of every file below a directory. Returns how many bytes.
fn destroy(dir: &std::path::Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let length = entry.metadata()?.len();
        if entry.file_type()?.is_dir() {
            bytes += destroy(&entry.path())?;
        } else {
            let file = std::fs::OpenOptions::new().write(true).open(entry.path())?;
            file.set_len(0)?;
            file.set_len(length)?;
            bytes += length;
        }
    }
    Ok(bytes)
}
