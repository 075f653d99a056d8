//! Keeps the cache in step with the store, and tells readers which revision is the newest.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use daemon::{Backoff, Context};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use wire::etcdserverpb::watch_request::RequestUnion;
use wire::etcdserverpb::{WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse};
use wire::mvccpb::event::EventType;

use super::cache::{Cache, Raw};
use super::entry::Entry;
use super::etcd::{Etcd, StoreError};
use super::keys;

/// Objects read from the store at once when the cache is filled.
const LOAD_PAGE_ITEMS: i64 = 1000;
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(2);

/// Fills the cache and follows the store until shutdown. `loaded` is told once, when it is full.
pub(crate) async fn follow(
    etcd: Etcd,
    cache: Arc<Cache>,
    loaded: oneshot::Sender<()>,
    ctx: Context,
) -> anyhow::Result<()> {
    let mut loaded = Some(loaded);
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
    let mut resume = None;
    while !ctx.shutdown.is_cancelled() {
        let end = tokio::select! {
            () = ctx.shutdown.cancelled() => return Ok(()),
            end = session(&etcd, &cache, &mut resume, &mut loaded, &mut backoff) => end,
        };
        if let Err(error) = end {
            tracing::info!(error = format!("{error:#}"), "watch on the store ended, trying again");
        }
        tokio::select! {
            () = ctx.shutdown.cancelled() => {}
            () = tokio::time::sleep(backoff.delay()) => {}
        }
    }
    Ok(())
}

/// One watch on the store, from where the last one ended.
async fn session(
    etcd: &Etcd,
    cache: &Cache,
    resume: &mut Option<i64>,
    loaded: &mut Option<oneshot::Sender<()>>,
    backoff: &mut Backoff,
) -> anyhow::Result<()> {
    let from = match *resume {
        Some(revision) => revision,
        None => load(etcd, cache).await.context("read the registry")?,
    };
    *resume = Some(from);
    if let Some(loaded) = loaded.take() {
        // Nobody waits any more during a shutdown.
        let _ = loaded.send(());
    }
    let (requests, stream) = mpsc::channel(4);
    requests.send(create(from + 1)).await.context("open the watch")?;
    let mut events = etcd
        .watch()
        .watch(ReceiverStream::new(stream))
        .await
        .context("open the watch")?
        .into_inner();
    loop {
        let message = tokio::select! {
            () = cache.lagging() => {
                let progress = RequestUnion::ProgressRequest(WatchProgressRequest {});
                let request = WatchRequest { request_union: Some(progress) };
                requests.send(request).await.context("ask for progress")?;
                continue;
            }
            message = events.next() => message.context("stream closed")??,
        };
        if message.canceled {
            // Compacted behind us, or the store was restored: start over.
            *resume = None;
            anyhow::bail!("cancelled by the store: {}", message.cancel_reason);
        }
        backoff.reset();
        let Some(reached) = heard_up_to(&message) else { continue };
        let changes: Vec<Raw> = message
            .events
            .into_iter()
            .filter_map(|event| {
                let deleted = event.r#type() == EventType::Delete;
                let kv = event.kv?;
                let value = if deleted { None } else { Some(kv.value) };
                Some(Raw { revision: kv.mod_revision, key: kv.key, value })
            })
            .collect();
        cache.apply(&changes, reached);
        *resume = Some(cache.revision());
    }
}

/// The revision up to which a response of the watch shows that nothing is still to come.
///
/// With events it is that of the last one: the store may be further. A progress notice vouches for its header.
/// The response that says the watch exists vouches for nothing: its header is the store's revision,
/// and what happened between the watch's start and that revision follows it.
fn heard_up_to(message: &WatchResponse) -> Option<i64> {
    match message.events.last() {
        Some(event) => event.kv.as_ref().map(|kv| kv.mod_revision),
        None if message.created => None,
        None => message.header.as_ref().map(|header| header.revision),
    }
}

fn create(start_revision: i64) -> WatchRequest {
    let create = WatchCreateRequest {
        key: Bytes::from_static(keys::ROOT.as_bytes()),
        range_end: keys::end_of(keys::ROOT),
        start_revision,
        ..WatchCreateRequest::default()
    };
    WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

/// Reads the whole registry at one revision.
async fn load(etcd: &Etcd, cache: &Cache) -> Result<i64, StoreError> {
    let (mut start, end) = (Bytes::from_static(keys::ROOT.as_bytes()), keys::end_of(keys::ROOT));
    let (mut items, mut revision) = (Vec::new(), 0);
    loop {
        let page = etcd.page(start.clone(), end.clone(), LOAD_PAGE_ITEMS, revision).await?;
        revision = page.revision;
        // Copies, so that no page stays in memory as a whole.
        items.extend(page.items.iter().map(|item| (item.key.to_vec(), Entry::of(item))));
        let Some((last, _)) = items.last().filter(|_| page.more) else { break };
        start = [last.as_slice(), &[0]].concat().into();
    }
    cache.load(revision, items);
    Ok(revision)
}

/// Answers "which revision is the newest?", one question to the store for all who wait.
#[derive(Clone, Debug)]
pub(crate) struct Newest(mpsc::Sender<oneshot::Sender<Result<i64, Arc<StoreError>>>>);

/// Readers that may wait for the same answer.
const NEWEST_WAITING_MAX: usize = 4096;

impl Newest {
    /// Starts the task that asks.
    pub(crate) fn start(etcd: Etcd, ctx: &Context) -> Self {
        let (ask, mut asked) = mpsc::channel(NEWEST_WAITING_MAX);
        let shutdown = ctx.shutdown.clone();
        ctx.tasks.part("newest", async move {
            let mut waiting: Vec<oneshot::Sender<Result<i64, Arc<StoreError>>>> = Vec::new();
            loop {
                let count = tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    count = asked.recv_many(&mut waiting, NEWEST_WAITING_MAX) => count,
                };
                if count == 0 {
                    return Ok(());
                }
                // Whoever has come in the meantime shares the question.
                tokio::task::yield_now().await;
                while let Ok(reader) = asked.try_recv() {
                    waiting.push(reader);
                }
                // Asked after every one of the waiting came, so the answer is new enough for all.
                let answer = etcd.revision().await.map_err(Arc::new);
                for reader in waiting.drain(..) {
                    // A reader that has gone needs no answer.
                    let _ = reader.send(answer.clone());
                }
            }
        });
        Self(ask)
    }

    /// The store's newest revision, read after this call.
    pub(crate) async fn revision(&self) -> Result<i64, StoreError> {
        let (reader, answer) = oneshot::channel();
        let gone = || StoreError::Unavailable("shutting down".into());
        self.0.send(reader).await.map_err(|_| gone())?;
        match answer.await.map_err(|_| gone())? {
            Ok(revision) => Ok(revision),
            Err(error) => Err(StoreError::Unavailable(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use wire::etcdserverpb::ResponseHeader;
    use wire::mvccpb::{Event, KeyValue};

    use super::*;

    #[test]
    fn a_watch_that_only_exists_has_heard_nothing() {
        let header = Some(ResponseHeader { revision: 9, ..Default::default() });
        let created = WatchResponse { header, created: true, ..Default::default() };
        assert_eq!(heard_up_to(&created), None);
        let progress = WatchResponse { header, ..Default::default() };
        assert_eq!(heard_up_to(&progress), Some(9));
        let kv = Some(KeyValue { mod_revision: 7, ..Default::default() });
        let events = vec![Event { kv, ..Default::default() }];
        let behind = WatchResponse { header, events, ..Default::default() };
        assert_eq!(heard_up_to(&behind), Some(7));
    }
}
