//! How members reach each other: messages, snapshots, and calls that only the leader can answer.
//!
//! Each member that is known has one sender, which keeps a stream of batches open. Sending never waits: what does not fit is
//! lost, and raft says it again. A snapshot goes in a call of its own, so that it holds up no heartbeat.

mod serve;
mod traffic;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use bytes::Bytes;
use daemon::channel::Pulse;
use daemon::tls::ClientTls;
use daemon::{Backoff, Channel, Context};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};
use wire::store::peer_client::PeerClient;
use wire::store::{Batch, Chunk, Head, Nothing};

use crate::engine::{Ask, Identity};
use crate::members::Members;
use crate::node::Outgoing;
use crate::replica::Input;
use crate::snapshot;

pub use serve::Listener;
use traffic::Traffic;

/// Bytes that may wait for one member.
const QUEUE_BYTES_MAX: usize = 32 << 20;
/// Bytes after which a batch is full.
const BATCH_BYTES: usize = 1 << 20;
/// What a message may take on the wire; a batch can end with a large one.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// How much of a snapshot is read at once, and how many pieces wait for the wire.
const CHUNK_BYTES: usize = 256 << 10;
const CHUNKS_MAX: usize = 4;
/// How long the other side may take to answer at all, and how often it has to show that it lives.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How often the way to a member is measured.
const PROBE: Duration = Duration::from_secs(4);
const PULSE: Pulse = Pulse { every: Duration::from_secs(1), timeout: Duration::from_secs(2) };
/// Pauses after failures, the first and the longest.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(800);
/// How long a full log thread is left alone before it is told again.
const TELL_AGAIN: Duration = Duration::from_millis(1);

const CLUSTER: &str = "ironclad-cluster";
const FROM: &str = "ironclad-from";
const TO: &str = "ironclad-to";
/// What a member hears that was removed while it was away.
pub(crate) const REMOVED: &str = "the member has been permanently removed from the cluster";

/// The other members, as far as they can be reached. Clones share them.
#[derive(Clone)]
pub struct Peers {
    shared: Arc<Shared>,
}

struct Shared {
    identity: Identity,
    tls: Option<ClientTls>,
    asks: SyncSender<Ask>,
    snapshots: PathBuf,
    ctx: Context,
    known: RwLock<Known>,
    traffic: Traffic,
    /// Cancelled when another member says that we were removed.
    removed: CancellationToken,
}

#[derive(Default)]
struct Known {
    peers: BTreeMap<u64, Peer>,
    removed: Vec<u64>,
}

struct Peer {
    urls: Vec<String>,
    /// To the address that answered last.
    channel: Arc<Mutex<Channel>>,
    queue: Arc<Queue>,
    stop: CancellationToken,
}

impl Peers {
    /// No peers yet. News go to `asks`, snapshot files are found and put in `snapshots`; `ctx` ends when nothing is sent any more.
    #[must_use]
    pub fn new(
        identity: Identity,
        tls: Option<ClientTls>,
        asks: SyncSender<Ask>,
        snapshots: PathBuf,
        ctx: Context,
    ) -> Self {
        let (known, removed) = (RwLock::default(), CancellationToken::new());
        let traffic = Traffic::new(&ctx.metrics);
        let shared = Shared { identity, tls, asks, snapshots, ctx, known, traffic, removed };
        Self { shared: Arc::new(shared) }
    }

    /// Follows a change of members: begins to send to new ones and stops with those that are gone or have moved.
    ///
    /// # Errors
    /// When an address or the certificates cannot be used.
    pub fn set(&self, members: &Members) -> anyhow::Result<()> {
        let shared = &self.shared;
        let mut known = shared.known.write();
        known.removed.clone_from(&members.removed);
        let stays = |id: &u64, peer: &Peer| {
            members.get(*id).is_some_and(|member| member.peer_ur_ls == peer.urls)
        };
        known.peers.retain(|id, peer| {
            let stays = stays(id, peer);
            if !stays {
                peer.stop.cancel();
            }
            stays
        });
        for member in members.all.iter().filter(|member| member.id != shared.identity.member) {
            if known.peers.contains_key(&member.id) || member.peer_ur_ls.is_empty() {
                continue;
            }
            let channels: Vec<Channel> = member
                .peer_ur_ls
                .iter()
                .map(|url| shared.connect(url))
                .collect::<Result<_, _>>()?;
            let peer = Peer {
                urls: member.peer_ur_ls.clone(),
                channel: Arc::new(Mutex::new(channels[0].clone())),
                queue: Arc::default(),
                stop: shared.ctx.shutdown.child_token(),
            };
            let (queue, stop) = (peer.queue.clone(), peer.stop.clone());
            let reached = peer.channel.clone();
            let (sender, id) = (shared.clone(), member.id);
            known.peers.insert(id, peer);
            shared.ctx.tasks.job(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = sender.keep_sending(id, &channels, &queue, &reached) => {}
                }
            });
        }
        Ok(())
    }

    /// Sends a message some time soon, or never.
    pub fn send(&self, message: Outgoing) {
        let to = message.to;
        let lost = {
            let known = self.shared.known.read();
            let peer = known.peers.get(&to);
            match (peer, message.snapshot) {
                (None, _) => true,
                (Some(peer), None) => !peer.queue.push(message.bytes),
                (Some(peer), Some(_)) => {
                    self.send_snapshot(message, peer);
                    false
                }
            }
        };
        if lost {
            self.shared.hint(Input::Unreachable(to));
        }
    }

    fn send_snapshot(&self, message: Outgoing, peer: &Peer) {
        let (shared, channel, stop) =
            (self.shared.clone(), peer.channel.lock().clone(), peer.stop.clone());
        self.shared.ctx.tasks.job(async move {
            let to = message.to;
            let sent = tokio::select! {
                () = stop.cancelled() => return,
                sent = shared.snapshot(message, channel) => sent,
            };
            match &sent {
                Ok(index) => tracing::info!(to = hex(to), index, "sent a snapshot"),
                Err(error) => {
                    tracing::info!(to = hex(to), error = error.message(), "no snapshot sent");
                }
            }
            shared.tell(Input::SnapshotSent(to, sent.is_ok())).await;
        });
    }

    /// A channel to a member, for calls that it has to answer.
    #[must_use]
    pub fn channel(&self, id: u64) -> Option<Channel> {
        self.shared.known.read().peers.get(&id).map(|peer| peer.channel.lock().clone())
    }

    /// Ends when another member says that this one was removed.
    pub async fn removed(&self) {
        self.shared.removed.cancelled().await;
    }
}

impl Shared {
    fn connect(&self, url: &str) -> anyhow::Result<Channel> {
        daemon::channel::connect_with(url, self.tls.as_ref(), PULSE)
    }

    fn client(&self, channel: Channel) -> PeerClient<Channel> {
        PeerClient::new(channel).max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn signed<T>(&self, to: u64, body: T) -> Request<T> {
        let mut request = Request::new(body);
        sign(request.metadata_mut(), self.identity, to);
        request
    }

    async fn keep_sending(
        &self,
        id: u64,
        channels: &[Channel],
        queue: &Arc<Queue>,
        answers: &Mutex<Channel>,
    ) {
        let mut pauses = Backoff::new(PAUSE, PAUSE_MAX);
        let mut told = false;
        for channel in channels.iter().cycle() {
            let (reached, end) = self.session(id, channel, queue, answers).await;
            if reached {
                pauses.reset();
                told = false;
            }
            self.tell(Input::Unreachable(id)).await;
            self.traffic.failed(id);
            let error = end.message();
            let (to, refused) = (hex(id), end.code() == tonic::Code::FailedPrecondition);
            if refused && error == REMOVED {
                self.removed.cancel();
            } else if refused && !told {
                tracing::warn!(to, error, "a member refuses to listen");
            } else if !told {
                tracing::info!(to, error, "cannot reach a member");
            }
            told = true;
            tokio::time::sleep(pauses.delay()).await;
        }
    }

    /// Sends what waits until something goes wrong, and returns what, and whether the member was reached.
    async fn session(
        &self,
        id: u64,
        channel: &Channel,
        queue: &Arc<Queue>,
        answers: &Mutex<Channel>,
    ) -> (bool, Status) {
        let turn = queue.begin();
        let waiting = (queue.clone(), self.traffic.sent(id));
        let batches = futures::stream::unfold(waiting, move |(queue, sent)| async move {
            let messages = queue.next(turn).await?;
            sent.inc_by(bytes(&messages));
            Some((Batch { messages }, (queue, sent)))
        });
        let mut client = self.client(channel.clone());
        let call = client.messages(self.signed(id, batches));
        match tokio::time::timeout(ANSWER_TIMEOUT, call).await {
            Err(_) => (false, Status::deadline_exceeded("no answer in time")),
            Ok(Err(status)) => (false, status),
            Ok(Ok(answer)) => {
                tracing::info!(to = hex(id), "reached a member");
                answers.lock().clone_from(channel);
                let mut answers = answer.into_inner();
                let end = tokio::select! {
                    end = answers.message() => end,
                    never = self.probe(id, channel) => match never {},
                };
                (true, end.err().unwrap_or_else(|| Status::unavailable("the other side ended")))
            }
        }
    }

    /// Measures the way to a member again and again. Whether it is there at all is the stream's affair.
    async fn probe(&self, id: u64, channel: &Channel) -> Infallible {
        loop {
            let start = self.ctx.clock.monotonic();
            let mut client = self.client(channel.clone());
            let answer = client.probe(self.signed(id, Nothing {}));
            if let Ok(Ok(_)) = tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
                self.traffic.round_trip(id, self.ctx.clock.monotonic().saturating_sub(start));
            }
            tokio::time::sleep(PROBE).await;
        }
    }

    async fn snapshot(&self, message: Outgoing, channel: Channel) -> Result<u64, Status> {
        let mark = message.snapshot.unwrap_or_default();
        let path = self.snapshots.join(snapshot::file_name(mark));
        let head = Head { index: mark.index, term: mark.term, message: message.bytes };
        let (chunks, ready) = tokio::sync::mpsc::channel(CHUNKS_MAX);
        let reading = self.ctx.tasks.blocking(move || {
            let mut head = Some(head);
            snapshot::chunks(&daemon::SystemDisk, &path, CHUNK_BYTES, |data| {
                // Nobody takes them any more when the call has failed.
                chunks.blocking_send(Chunk { head: head.take(), data }).is_ok()
            })
        });
        let request = self.signed(message.to, ReceiverStream::new(ready));
        let sent = self.client(channel).snapshot(request).await;
        let read = reading.await.map_err(|error| Status::internal(error.to_string()))?;
        read.map_err(|error| Status::internal(format!("read the snapshot: {error}")))?;
        sent.map(|_| mark.index)
    }

    /// Tells the log thread, which may be busy, and has it wait in turn whoever brings the news.
    async fn tell(&self, input: Input) {
        let mut ask = Ask::Tell(input);
        while let Err(TrySendError::Full(back)) = self.asks.try_send(ask) {
            ask = back;
            tokio::time::sleep(TELL_AGAIN).await;
        }
    }

    /// Tells the log thread if it has time.
    fn hint(&self, input: Input) {
        let _busy = self.asks.try_send(Ask::Tell(input));
    }
}

/// Messages that wait for one member.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    news: Notify,
}

#[derive(Default)]
struct Waiting {
    messages: Vec<Bytes>,
    bytes: usize,
    turn: u64,
}

impl Queue {
    /// Adds a message, unless too much waits.
    fn push(&self, message: Bytes) -> bool {
        {
            let mut waiting = self.waiting.lock();
            if waiting.bytes + message.len() > QUEUE_BYTES_MAX {
                return false;
            }
            waiting.bytes += message.len();
            waiting.messages.push(message);
        }
        self.news.notify_one();
        true
    }

    /// A new stream takes from here on; one before it gets nothing more. What waited is too old by now.
    fn begin(&self) -> u64 {
        let turn = {
            let mut waiting = self.waiting.lock();
            *waiting = Waiting { turn: waiting.turn + 1, ..Waiting::default() };
            waiting.turn
        };
        self.news.notify_waiters();
        turn
    }

    /// The next messages, as soon as there are any, or none if another stream has begun.
    async fn next(&self, turn: u64) -> Option<Vec<Bytes>> {
        loop {
            let news = self.news.notified();
            {
                let mut waiting = self.waiting.lock();
                if waiting.turn != turn {
                    // The news may have been for the other stream.
                    self.news.notify_one();
                    return None;
                }
                if !waiting.messages.is_empty() {
                    return Some(waiting.take());
                }
            }
            news.await;
        }
    }
}

impl Waiting {
    fn take(&mut self) -> Vec<Bytes> {
        let mut bytes = 0;
        let full = self.messages.iter().position(|message| {
            bytes += message.len();
            bytes >= BATCH_BYTES
        });
        let rest = full.map_or_else(Vec::new, |at| self.messages.split_off(at + 1));
        let taken = std::mem::replace(&mut self.messages, rest);
        self.bytes -= taken.iter().map(Bytes::len).sum::<usize>();
        taken
    }
}

fn bytes(messages: &[Bytes]) -> u64 {
    messages.iter().map(|message| message.len() as u64).sum()
}

fn hex(id: u64) -> String {
    format!("{id:x}")
}

fn sign(metadata: &mut MetadataMap, identity: Identity, to: u64) {
    for (key, id) in [(CLUSTER, identity.cluster), (FROM, identity.member), (TO, to)] {
        if let Ok(value) = hex(id).parse() {
            metadata.insert(key, value);
        }
    }
}

fn id(metadata: &MetadataMap, key: &str) -> Option<u64> {
    u64::from_str_radix(metadata.get(key)?.to_str().ok()?, 16).ok()
}

#[cfg(test)]
mod tests;
