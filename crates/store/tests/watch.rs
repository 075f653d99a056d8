//! Watches of the past, through the services of a member in memory.

use std::time::Duration;

use store::Config;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use wire::etcdserverpb::kv_client::KvClient;
use wire::etcdserverpb::watch_client::WatchClient;
use wire::etcdserverpb::watch_request::RequestUnion;
use wire::etcdserverpb::{PutRequest, WatchCreateRequest, WatchRequest};

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
