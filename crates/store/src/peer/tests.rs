//! Two members that talk over real sockets.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, sync_channel};

use wire::etcdserverpb::Member;

use super::*;
use crate::snapshot::{Mark, Writer};

const PATIENCE: Duration = Duration::from_secs(20);

struct Side {
    peers: Peers,
    asked: Arc<Mutex<Receiver<Ask>>>,
    dir: tempfile::TempDir,
    address: SocketAddr,
    ctx: Context,
}

impl Side {
    async fn new(cluster: u64, member: u64) -> Self {
        let listener = daemon::serve::bind("127.0.0.1:0", false).await.unwrap();
        let address = listener.local_addr().unwrap();
        let ctx = Context::new(CancellationToken::new());
        let dir = tempfile::tempdir().unwrap();
        let (asks, asked) = sync_channel(64);
        let identity = Identity { cluster, member };
        let peers = Peers::new(identity, None, asks, dir.path().to_owned(), ctx.clone());
        let routes = tonic::service::Routes::new(peers.listener()).prepare();
        ctx.tasks.part("peers", daemon::serve::serve(listener, None, routes, ctx.clone()));
        Self { peers, asked: Arc::new(Mutex::new(asked)), dir, address, ctx }
    }

    fn member(&self) -> Member {
        Member {
            id: self.peers.shared.identity.member,
            peer_ur_ls: vec![format!("http://{}", self.address)],
            ..Member::default()
        }
    }

    /// The next news that `choose` takes.
    async fn news<T: Send + 'static>(
        &self,
        choose: impl Fn(Input) -> Option<T> + Send + 'static,
    ) -> T {
        let asked = self.asked.clone();
        let waiting = self.ctx.tasks.blocking(move || {
            let asked = asked.lock();
            while let Ok(Ask::Tell(input)) = asked.recv_timeout(PATIENCE) {
                if let Some(chosen) = choose(input) {
                    return chosen;
                }
            }
            panic!("no news in time");
        });
        waiting.await.unwrap()
    }
}

fn plain(to: u64, text: &'static str) -> Outgoing {
    Outgoing { to, bytes: Bytes::from_static(text.as_bytes()), snapshot: None }
}

fn message(input: Input) -> Option<Bytes> {
    match input {
        Input::Message(bytes) => Some(bytes),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_come_in_order_and_a_snapshot_comes_whole() {
    let (a, b) = (Side::new(7, 1).await, Side::new(7, 2).await);
    let mut known = b.member();
    // Nobody listens at the first address, and so the second is taken for everything.
    known.peer_ur_ls.insert(0, "http://127.0.0.1:1".to_owned());
    a.peers.set(&Members::new(vec![a.member(), known])).unwrap();
    // What is sent before the other side listens may be lost, so the first is said until it is heard.
    let heard = b.news(message);
    tokio::pin!(heard);
    let first = loop {
        a.peers.send(plain(2, "first"));
        tokio::select! {
            heard = &mut heard => break heard,
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    };
    assert_eq!(first, "first");
    a.peers.send(plain(2, "second"));
    a.peers.send(plain(2, "third"));
    for expected in ["second", "third"] {
        let heard = b.news(move |input| message(input).filter(|m| m != "first")).await;
        assert_eq!(heard, expected);
    }

    let mark = Mark { index: 9, term: 3 };
    let mut writer = Writer::create(&daemon::SystemDisk, a.dir.path(), mark).unwrap();
    writer.block(b"summary").unwrap();
    writer.block(&prost::Message::encode_to_vec(&Members::new(vec![a.member()]))).unwrap();
    writer.block(&vec![5; 3 * CHUNK_BYTES]).unwrap();
    writer.finish().unwrap();
    let bytes = Bytes::from_static(b"begin here");
    a.peers.send(Outgoing { to: 2, bytes: bytes.clone(), snapshot: Some(mark) });
    let arrived = b.news(|input| match input {
        Input::Arrived(mark, members, message) => Some((mark, members, message)),
        _ => None,
    });
    assert_eq!(arrived.await, (mark, Members::new(vec![a.member()]), bytes));
    let name = snapshot::file_name(mark);
    let read = |side: &Side| std::fs::read(side.dir.path().join(&name)).unwrap();
    assert_eq!(read(&a), read(&b));
    let sent = a.news(|input| match input {
        Input::SnapshotSent(to, arrived) => Some((to, arrived)),
        _ => None,
    });
    assert_eq!(sent.await, (2, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_another_member_and_a_removed_one_are_refused() {
    let b = Side::new(7, 2).await;
    let asked = async |identity: Identity, to: u64| {
        let channel = daemon::channel::connect(&format!("http://{}", b.address), None).unwrap();
        let mut request = Request::new(futures::stream::pending());
        sign(request.metadata_mut(), identity, to);
        PeerClient::new(channel).messages(request).await.map(drop).map_err(|status| {
            assert_eq!(status.code(), tonic::Code::FailedPrecondition);
            status.message().to_owned()
        })
    };
    let refused = |words: &str| Err(words.to_owned());
    let known = Identity { cluster: 7, member: 1 };
    assert_eq!(asked(known, 2).await, Ok(()));
    let stranger = Identity { cluster: 8, member: 1 };
    assert_eq!(asked(stranger, 2).await, refused("cluster ID mismatch: this is 7, not 8"));
    assert_eq!(asked(known, 3).await, refused("member ID mismatch: this is 2, not 3"));
    // One that b does not know may have joined while b was away.
    let only = |removed: u64| Members {
        all: vec![b.member()],
        removed: vec![removed],
        ..Members::default()
    };
    b.peers.set(&only(3)).unwrap();
    assert_eq!(asked(known, 2).await, Ok(()));
    b.peers.set(&only(1)).unwrap();
    assert_eq!(asked(known, 2).await, refused(REMOVED));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_hears_of_it() {
    let (a, b) = (Side::new(7, 1).await, Side::new(7, 2).await);
    b.peers
        .set(&Members { all: vec![b.member()], removed: vec![1], ..Members::default() })
        .unwrap();
    a.peers.set(&Members::new(vec![a.member(), b.member()])).unwrap();
    tokio::time::timeout(PATIENCE, a.peers.removed()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_unreachable_and_a_full_queue_loses() {
    let a = Side::new(7, 1).await;
    let nobody =
        Member { id: 3, peer_ur_ls: vec!["http://127.0.0.1:1".to_owned()], ..Member::default() };
    a.peers.set(&Members::new(vec![a.member(), nobody])).unwrap();
    let unreachable = |input| matches!(input, Input::Unreachable(3)).then_some(());
    a.news(unreachable).await;
    let queue = Queue::default();
    let half = Bytes::from(vec![0; QUEUE_BYTES_MAX / 2]);
    assert!(queue.push(half.clone()) && queue.push(half.clone()) && !queue.push(half));
    let old = queue.begin();
    assert!(queue.push(Bytes::from_static(b"x")));
    assert_eq!(queue.next(old).await.unwrap(), ["x"]);
    let new = queue.begin();
    assert!(queue.next(old).await.is_none());
    assert!(queue.push(Bytes::from_static(b"y")));
    assert_eq!(queue.next(new).await.unwrap(), ["y"]);
}
