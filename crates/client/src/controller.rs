//! A controller is two functions and a list of triggers; this is the loop that runs all of them.
//!
//! ```ignore
//! impl Controller for ReplicaSets {
//!     const NAME: &'static str = "replicaset";
//!     type Seen = Seen;
//!     const WAKES: &'static [Wake] = &[Wake::own("ReplicaSet"), Wake::owner_of("Pod")];
//!     fn observe(cache: &Cache, key: &Key) -> Option<Seen> { … }
//!     fn reconcile(seen: &Seen, now: Timestamp) -> Plan { … }
//! }
//!
//! let (cache, executor) = (cache.clone(), executor.clone());
//! ctx.tasks.job(controller::run::<ReplicaSets>(cache, executor, ctx.clone(), leading.clone()));
//! ```
//!
//! `leading` ends the loop (leadership lost, or shutdown). A key is not decided again until the
//! cache has seen what its last plan wrote, so plans never repeat an action out of staleness.

use std::time::Duration;

use daemon::{Clock, Context};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::act::{Done, Executor, Plan};
use crate::cache::{Cache, Changed};
use crate::queue::Queue;
use crate::transport::Key;

/// How long a key waits for the cache to show what its plan wrote. A write whose event never
/// comes (an object that a selector hides) must not block its key for ever.
const EXPECT_TIMEOUT: Duration = Duration::from_secs(10);

/// One controller.
pub trait Controller: Send + Sync + 'static {
    /// Its name in logs, as upstream names it without `-controller`.
    const NAME: &'static str;
    /// What it decides from.
    type Seen: Send + Sync;
    /// Which changes make it decide again. The first [`Wake::own`] names the kind of its keys.
    const WAKES: &'static [Wake];
    /// How many keys are worked on at a time; one where a decision must see what the one before it did.
    const KEYS_MAX: usize = 16;

    /// Reads from the cache what is to be decided about `key`; none when it is gone.
    fn observe(cache: &Cache, key: &Key) -> Option<Self::Seen>;

    /// Decides. Pure: no clock, no I/O.
    fn reconcile(seen: &Self::Seen, now: Timestamp) -> Plan;
}

/// A change that wakes keys of a controller.
#[derive(Clone, Copy)]
pub struct Wake {
    kind: &'static str,
    how: How,
}

/// Names the keys that a change wakes.
pub type WakeKeys = fn(&Cache, &Changed<'_>) -> Vec<Key>;

#[derive(Clone, Copy)]
enum How {
    Own,
    OwnerOf,
    Keys(WakeKeys),
}

impl Wake {
    /// A change of an object of `kind` wakes its own key.
    #[must_use]
    pub const fn own(kind: &'static str) -> Self {
        Self { kind, how: How::Own }
    }

    /// A change of an object of `kind` wakes its controlling owner, if that is of our kind.
    #[must_use]
    pub const fn owner_of(kind: &'static str) -> Self {
        Self { kind, how: How::OwnerOf }
    }

    /// A change of an object of `kind` wakes the keys that `keys` finds, from both the state
    /// before and after.
    #[must_use]
    pub const fn keys(kind: &'static str, keys: WakeKeys) -> Self {
        Self { kind, how: How::Keys(keys) }
    }
}

impl std::fmt::Debug for Wake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Wake({})", self.kind)
    }
}

/// Runs a controller until `leading` is cancelled.
///
/// # Panics
/// When the cache lacks a kind of `WAKES`, or none is [`Wake::own`].
pub async fn run<C: Controller>(
    cache: Cache,
    executor: Executor,
    ctx: Context,
    leading: CancellationToken,
) {
    let queue = Queue::new(ctx.clock.clone());
    let own = own_kind(C::WAKES);
    for wake in C::WAKES {
        let (queue, cache2, leading2) = (queue.clone(), cache.clone(), leading.clone());
        let how = wake.how;
        cache.on_change_of(wake.kind, move |change| {
            if !leading2.is_cancelled() {
                woken(how, own, &cache2, change).into_iter().for_each(|key| queue.add(key));
            }
        });
    }
    tokio::select! {
        () = leading.cancelled() => return,
        () = cache.synced() => {}
    }
    for key in cache.keys(own) {
        queue.add(key);
    }
    tracing::info!(controller = C::NAME, "controller started");
    let mut working = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = leading.cancelled() => break,
            key = queue.next(), if working.len() < C::KEYS_MAX => {
                working.push(work::<C>(&cache, &executor, &queue, &ctx.clock, key));
            }
            Some(()) = working.next() => {}
        }
    }
}

fn own_kind(wakes: &[Wake]) -> &'static str {
    let own = wakes.iter().find(|wake| matches!(wake.how, How::Own));
    own.expect("a controller has a kind of its own").kind
}

fn woken(how: How, own: &str, cache: &Cache, change: &Changed<'_>) -> Vec<Key> {
    match how {
        How::Own => vec![change.key.clone()],
        How::Keys(keys) => keys(cache, change),
        How::OwnerOf => {
            let mut keys: Vec<Key> = Vec::new();
            for meta in [change.old, change.new].into_iter().flatten() {
                let owners = meta.owner_references.iter().flatten();
                let ours = owners.filter(|o| o.controller == Some(true) && o.kind == own);
                let namespace = &change.key.namespace;
                keys.extend(ours.map(|owner| Key::new(namespace.clone(), owner.name.clone())));
            }
            keys.sort();
            keys.dedup();
            keys
        }
    }
}

async fn work<C: Controller>(
    cache: &Cache,
    executor: &Executor,
    queue: &Queue<Key>,
    clock: &Clock,
    key: Key,
) {
    let Some(seen) = C::observe(cache, &key) else {
        queue.forget(&key);
        queue.done(&key);
        return;
    };
    let plan = C::reconcile(&seen, clock.now());
    let requeue_after = plan.requeue_after;
    let done = if plan.is_empty() { Done::default() } else { executor.run(plan).await };
    if !done.expect.is_empty() {
        let seen = cache.reached(&done.expect);
        if tokio::time::timeout(EXPECT_TIMEOUT, seen).await.is_err() {
            tracing::warn!(controller = C::NAME, %key, "cache has not shown what was written");
        }
    }
    match done.error {
        None => queue.forget(&key),
        Some(error) => {
            // A conflict or a namespace going away is part of life: the next look has it right.
            if error.is_conflict() || error.is_already_exists() || error.is_terminating() {
                tracing::debug!(controller = C::NAME, %key, %error, "plan overtaken");
            } else {
                tracing::info!(controller = C::NAME, %key, %error, "plan failed, trying again");
            }
            queue.retry(&key);
        }
    }
    if let Some(delay) = requeue_after {
        queue.add_after(key.clone(), delay);
    }
    queue.done(&key);
}
