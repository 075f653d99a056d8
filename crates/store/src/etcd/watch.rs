//! The Watch service: one task per stream, which takes requests and helps watchers catch up.
//! Events of watchers that are up to date come from the hub straight into the stream's queue.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tonic::{Request, Response, Status, Streaming};
use wire::etcdserverpb::watch_request::RequestUnion;
use wire::etcdserverpb::watch_server::Watch as WatchService;
use wire::etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchRequest, WatchResponse};
use wire::mvccpb::Event;

use super::Services;
use super::auth::Credentials;
use super::errors::as_text;
use crate::engine::Missed;
use crate::replica::Refusal;
use crate::watch::{Ticket, Watch};

/// Bytes of events that may wait in one stream; a stream that is slower falls behind.
const QUEUE_BYTES_MAX: usize = 8 << 20;
/// Bytes of history that one watcher reads at once.
const CHUNK_BYTES: usize = 1 << 20;
/// The id of a response that speaks for all watchers of a stream, or for none.
const NO_WATCH: i64 = -1;

type Responses = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

/// The queue of one stream, bounded by its bytes.
#[derive(Debug)]
pub struct Sink {
    queue: UnboundedSender<(WatchResponse, usize)>,
    queued: AtomicUsize,
    behind: Mutex<Vec<(Watch, i64)>>,
    wake: Notify,
}

impl Sink {
    fn new() -> (Arc<Self>, UnboundedReceiver<(WatchResponse, usize)>) {
        let (queue, receiver) = unbounded_channel();
        let sink = Self {
            queue,
            queued: AtomicUsize::new(0),
            behind: Mutex::default(),
            wake: Notify::new(),
        };
        (Arc::new(sink), receiver)
    }

    /// Queues events with all their fragments, unless the queue is full.
    pub fn offer(&self, responses: Vec<WatchResponse>) -> bool {
        if self.queued.load(Ordering::Relaxed) > QUEUE_BYTES_MAX {
            return false;
        }
        responses.into_iter().for_each(|response| self.force(response));
        true
    }

    /// A watcher missed a response and must read history from `next`.
    pub fn fell_behind(&self, watch: Watch, next: i64) {
        self.behind.lock().push((watch, next));
        self.wake.notify_one();
    }

    /// Queues a small response that must not be lost.
    fn force(&self, response: WatchResponse) {
        let bytes = response.encoded_len();
        self.queued.fetch_add(bytes, Ordering::Relaxed);
        // A closed queue means that the client is gone, which the stream's task sees itself.
        drop(self.queue.send((response, bytes)));
    }

    fn has_room(&self) -> bool {
        self.queued.load(Ordering::Relaxed) < QUEUE_BYTES_MAX / 2
    }

    fn taken(&self, bytes: usize) {
        let before = self.queued.fetch_sub(bytes, Ordering::Relaxed);
        if before >= QUEUE_BYTES_MAX / 2 {
            self.wake.notify_one();
        }
    }
}

#[tonic::async_trait]
impl WatchService for Services {
    type WatchStream = Responses;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let credentials = Credentials::of(&request);
        let (sink, receiver) = Sink::new();
        let stream = WatchStream {
            services: self.clone(),
            credentials,
            sink: sink.clone(),
            watchers: BTreeMap::new(),
            next_id: 0,
            progress_asked: false,
        };
        self.ctx.tasks.job(stream.run(request.into_inner()));
        let responses = futures::stream::unfold((receiver, sink), |(mut receiver, sink)| async {
            let (response, bytes) = receiver.recv().await?;
            sink.taken(bytes);
            Some((Ok(response), (receiver, sink)))
        });
        let ended = self.ctx.shutdown.clone().cancelled_owned();
        Ok(Response::new(Box::pin(responses.take_until(ended))))
    }
}

/// Where one watcher of a stream is.
enum Place {
    /// In the hub.
    Level(Ticket),
    /// On its way there: it has heard everything before the revision.
    Behind(Box<Watch>, i64),
}

/// One client's stream.
struct WatchStream {
    services: Services,
    credentials: Credentials,
    sink: Arc<Sink>,
    watchers: BTreeMap<i64, Place>,
    next_id: i64,
    progress_asked: bool,
}

impl WatchStream {
    async fn run(mut self, mut requests: Streaming<WatchRequest>) {
        let period = Duration::from_secs(self.services.progress_s.max(1));
        // The first one comes after a whole period: a watch that has only begun is not idle.
        let mut progress = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
        let shutdown = self.services.ctx.shutdown.clone();
        let sink = self.sink.clone();
        let mut open = true;
        loop {
            self.take_lagging();
            let behind = self.watchers.values().any(|p| matches!(p, Place::Behind(..)));
            let catch_up = behind && sink.has_room();
            if !behind && std::mem::take(&mut self.progress_asked) {
                self.tell_progress();
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                () = sink.queue.closed() => break,
                request = requests.next(), if open => match request {
                    Some(Ok(request)) => self.handle(request).await,
                    Some(Err(_)) => break,
                    None => open = false, // the client may still listen
                },
                () = sink.wake.notified() => {}
                _ = progress.tick() => self.tell_idle(),
                () = tokio::task::yield_now(), if catch_up => self.catch_up(),
            }
        }
        self.leave_all();
    }

    fn header(&self, revision: i64) -> Option<ResponseHeader> {
        Some(self.services.engine.header(revision))
    }

    fn take_lagging(&mut self) {
        for (watch, next) in std::mem::take(&mut *self.sink.behind.lock()) {
            // It may have been cancelled meanwhile.
            if let Some(place) = self.watchers.get_mut(&watch.id) {
                *place = Place::Behind(Box::new(watch), next);
            }
        }
    }

    async fn handle(&mut self, request: WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => match self.may_watch(&request).await {
                Ok(()) => self.create(&request),
                Err(refused) => self.refuse(&as_text(&refused.into())),
            },
            Some(RequestUnion::CancelRequest(request)) => self.cancel(request.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => self.progress_asked = true,
            None => {}
        }
    }

    async fn may_watch(&self, request: &WatchCreateRequest) -> Result<(), Refusal> {
        let engine = &self.services.engine;
        if !engine.auth_enabled.load(Ordering::Acquire) {
            return Ok(());
        }
        let by = self.services.identify(&self.credentials).await?;
        let first = Bytes::from_static(&[0]); // the smallest key, which no key means here
        let key = if request.key.is_empty() { &first } else { &request.key };
        Ok(engine.applied.read().auth.read(&by, key, &request.range_end)?)
    }

    fn create(&mut self, request: &WatchCreateRequest) {
        let mut watch = Watch::new(request.watch_id, request);
        if watch.span.is_empty() {
            return self.refuse("mvcc: watcher range is empty");
        }
        if watch.id == 0 {
            while self.watchers.contains_key(&self.next_id) {
                self.next_id += 1;
            }
            watch.id = self.next_id;
            self.next_id += 1;
        } else if self.watchers.contains_key(&watch.id) {
            return self.refuse("mvcc: duplicate watch ID provided on the WatchStream");
        }
        let id = watch.id;
        let engine = self.services.engine.clone();
        let mut hub = engine.hub.lock();
        let published = hub.published();
        let created = WatchResponse {
            header: self.header(published),
            watch_id: id,
            created: true,
            ..Default::default()
        };
        self.sink.force(created);
        let next = if watch.from <= 0 { published + 1 } else { watch.from };
        let place = match hub.join(&watch, next, &self.sink) {
            Some(ticket) => Place::Level(ticket),
            None => Place::Behind(Box::new(watch), next),
        };
        self.watchers.insert(id, place);
    }

    /// Tells of a watcher that cannot be.
    fn refuse(&self, reason: &str) {
        let revision = self.services.engine.hub.lock().published();
        self.sink.force(WatchResponse {
            header: self.header(revision),
            watch_id: NO_WATCH,
            created: true,
            canceled: true,
            cancel_reason: reason.to_owned(),
            ..Default::default()
        });
    }

    fn cancel(&mut self, id: i64) {
        let Some(place) = self.watchers.remove(&id) else { return };
        let engine = &self.services.engine;
        let mut hub = engine.hub.lock();
        if let Place::Level(ticket) = place {
            hub.leave(ticket);
        }
        self.sink.force(WatchResponse {
            header: self.header(hub.published()),
            watch_id: id,
            canceled: true,
            ..Default::default()
        });
    }

    /// Says how far every watcher of the stream is; all of them are level with the hub.
    fn tell_progress(&mut self) {
        let hub = self.services.engine.hub.lock();
        if !self.sink.behind.lock().is_empty() {
            self.progress_asked = true;
            return;
        }
        let header = self.header(hub.published());
        self.sink.force(WatchResponse { header, watch_id: NO_WATCH, ..Default::default() });
    }

    /// Says how far those watchers are that asked for it and heard nothing for a while.
    fn tell_idle(&self) {
        let mut hub = self.services.engine.hub.lock();
        for (id, place) in &self.watchers {
            let Place::Level(ticket) = place else { continue };
            if hub.idle(*ticket) {
                let header = self.header(hub.published());
                self.sink.force(WatchResponse { header, watch_id: *id, ..Default::default() });
            }
        }
    }

    /// Lets every watcher that is behind read a piece of history, as long as there is room.
    fn catch_up(&mut self) {
        let ids: Vec<i64> = self.watchers.keys().copied().collect();
        for id in ids {
            if !self.sink.has_room() {
                return;
            }
            let Some(Place::Behind(watch, next)) = self.watchers.get(&id) else { continue };
            let place = self.advance(watch, *next);
            match place {
                Some(place) => drop(self.watchers.insert(id, place)),
                None => drop(self.watchers.remove(&id)),
            }
        }
    }

    /// Where a watcher is after one piece of history; nowhere if that is compacted or lost.
    fn advance(&self, watch: &Watch, next: i64) -> Option<Place> {
        let engine = &self.services.engine;
        // What is applied may be ahead of what is published: that part comes from the hub.
        let published = engine.hub.lock().published();
        let (history, reached) = match engine.history(next, CHUNK_BYTES, watch.prev_kv) {
            Ok(found) => found,
            Err(missed) => {
                let (compact_revision, reason) = match missed {
                    Missed::Compacted(revision) => (revision, crate::mvcc::Error::Compacted),
                    Missed::Lost(error) => (0, error),
                };
                self.sink.force(WatchResponse {
                    header: self.header(published),
                    watch_id: watch.id,
                    canceled: true,
                    compact_revision,
                    cancel_reason: reason.to_string(),
                    ..Default::default()
                });
                return None;
            }
        };
        let known = history.iter().take_while(|changes| changes.main <= published);
        let events: Vec<Event> = known
            .clone()
            .flat_map(|changes| changes.events.iter())
            .filter(|event| watch.wants(event))
            .map(|event| watch.view(event))
            .collect();
        let next = reached.min(published + 1).max(next);
        if !events.is_empty() {
            let header = engine.header(published);
            for response in watch.responses(header, events) {
                self.sink.force(response);
            }
        }
        let ticket = engine.hub.lock().join(watch, next, &self.sink);
        Some(match ticket {
            Some(ticket) => Place::Level(ticket),
            None => Place::Behind(Box::new(watch.clone()), next),
        })
    }

    fn leave_all(&mut self) {
        let mut hub = self.services.engine.hub.lock();
        for place in std::mem::take(&mut self.watchers).into_values() {
            if let Place::Level(ticket) = place {
                hub.leave(ticket);
            }
        }
    }
}
