//! What the API server has, kept here: one watch per kind, objects parsed once, found by indexes.
//!
//! ```ignore
//! let cache = Cache::builder(client)
//!     .kind(Select::<Pod>::all().fields("spec.nodeName=n1").index("owner", cache::owner_uids))
//!     .kind(Select::<ReplicaSet>::all())
//!     .start(&ctx);
//! cache.synced().await;                       // every kind has been read once
//! let pod = cache.get::<Pod>("default", "web");      // Option<Arc<Pod>>
//! let mine = cache.find::<Pod>("owner", uid);        // by index, in key order
//! let mut changes = cache.changes();                 // tokio watch: something changed
//! cache.on_change::<Pod>(|change| …);                // or: told of each change, synchronously
//! ```
//!
//! A broken watch resumes after the last revision seen; a revision the server no longer has (410)
//! makes it start over, and what has gone meanwhile is reported as deleted. Reads never wait.
//! Asking for a kind that was not selected is a mistake of ours and panics.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use daemon::{Backoff, Context};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::RwLock;
use tokio::sync::watch;
use wire::apiserver as pb;
use wire::apiserver::watch_event::Type;

use crate::store::{Applied, IndexBy, Store};
use crate::transport::{self, Client, Error, Key, Kind, Object, Scope};

const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(10);

/// Which objects of a kind a cache keeps, and how they are found.
pub struct Select<T> {
    scope: Scope,
    indexes: Vec<(&'static str, IndexBy<T>)>,
}

impl<T: Object> Select<T> {
    /// All objects of the kind.
    #[must_use]
    pub fn all() -> Self {
        Self { scope: Scope::default(), indexes: Vec::new() }
    }

    /// Only those of one namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.scope.namespace);
        self
    }

    /// Only those that a label selector picks.
    #[must_use]
    pub fn labels(mut self, selector: &str) -> Self {
        selector.clone_into(&mut self.scope.labels);
        self
    }

    /// Only those that a field selector picks.
    #[must_use]
    pub fn fields(mut self, selector: &str) -> Self {
        selector.clone_into(&mut self.scope.fields);
        self
    }

    /// Only these dotted paths of each object.
    #[must_use]
    pub fn project(mut self, paths: &[&str]) -> Self {
        self.scope.projection = paths.iter().map(ToString::to_string).collect();
        self
    }

    /// Objects are found under each value that `by` gives.
    #[must_use]
    pub fn index(mut self, name: &'static str, by: fn(&T) -> Vec<String>) -> Self {
        self.indexes.push((name, by));
        self
    }
}

/// Index function: the uids of all owners.
pub fn owner_uids<T: Object>(object: &T) -> Vec<String> {
    let owners = object.metadata().owner_references.iter().flatten();
    owners.map(|owner| owner.uid.clone()).collect()
}

/// Index function: the namespace.
pub fn namespace_of<T: Object>(object: &T) -> Vec<String> {
    object.metadata().namespace.iter().cloned().collect()
}

/// A change to one object. Both sides are there for a modification.
pub struct Changed<'a> {
    /// The kind's name, such as `Pod`.
    pub kind: &'static str,
    /// Which object.
    pub key: &'a Key,
    /// Metadata before.
    pub old: Option<&'a ObjectMeta>,
    /// Metadata after.
    pub new: Option<&'a ObjectMeta>,
    old_any: Option<&'a dyn Any>,
    new_any: Option<&'a dyn Any>,
}

impl Changed<'_> {
    /// The object before, when it is a `T`.
    #[must_use]
    pub fn old_as<T: Object>(&self) -> Option<&T> {
        self.old_any.and_then(|any| any.downcast_ref())
    }

    /// The object after, when it is a `T`.
    #[must_use]
    pub fn new_as<T: Object>(&self) -> Option<&T> {
        self.new_any.and_then(|any| any.downcast_ref())
    }

    /// The newest there is of the object, when it is a `T`.
    #[must_use]
    pub fn any_as<T: Object>(&self) -> Option<&T> {
        self.new_as().or_else(|| self.old_as())
    }
}

/// What a plan's action left behind that the cache has not seen yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect {
    /// The kind written.
    pub kind: Kind,
    /// The object written.
    pub key: Key,
    /// The uid it has, where known.
    pub uid: String,
    /// The revision the write made.
    pub revision: i64,
    /// It was deleted: wait until it is gone or marked for deletion.
    pub deleted: bool,
}

type Listener = Box<dyn Fn(&Changed<'_>) + Send + Sync>;

/// The cached objects of one kind, without its type.
trait Slot: Send + Sync {
    fn name(&self) -> &'static str;
    fn kind(&self) -> &Kind;
    fn synced(&self) -> bool;
    fn revision(&self) -> i64;
    fn keys(&self) -> Vec<Key>;
    fn reached(&self, expect: &Expect) -> bool;
    fn listen(&self, listener: Listener);
    fn any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
    fn start(self: Arc<Self>, client: Client, shared: Arc<Shared>, ctx: &Context);
}

struct Typed<T> {
    kind: Kind,
    scope: Scope,
    store: RwLock<Store<T>>,
    listeners: RwLock<Vec<Listener>>,
}

struct Shared {
    /// Counts changes of objects.
    changes: watch::Sender<u64>,
    /// Counts every event, bookmarks too.
    progress: watch::Sender<u64>,
}

/// Cached objects of several kinds. Clones share them.
#[derive(Clone)]
pub struct Cache {
    slots: Arc<BTreeMap<&'static str, Arc<dyn Slot>>>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.slots.keys()).finish()
    }
}

/// Collects the kinds of a cache.
pub struct CacheBuilder {
    client: Client,
    slots: BTreeMap<&'static str, Arc<dyn Slot>>,
}

impl CacheBuilder {
    /// Adds a kind.
    #[must_use]
    pub fn kind<T: Object>(mut self, select: Select<T>) -> Self {
        let slot = Typed::<T> {
            kind: Kind::of::<T>(),
            scope: select.scope,
            store: RwLock::new(Store::new(&select.indexes)),
            listeners: RwLock::default(),
        };
        self.slots.insert(T::KIND, Arc::new(slot));
        self
    }

    /// Starts the watches as parts of the daemon. A listener registered afterwards may miss the
    /// first events: look at what is there once it is registered, as [`crate::controller`] does.
    #[must_use]
    pub fn start(self, ctx: &Context) -> Cache {
        let shared =
            Arc::new(Shared { changes: watch::Sender::new(0), progress: watch::Sender::new(0) });
        let cache = Cache { slots: Arc::new(self.slots), shared: shared.clone() };
        for slot in cache.slots.values() {
            slot.clone().start(self.client.clone(), shared.clone(), ctx);
        }
        cache
    }
}

impl Cache {
    /// A cache to be filled through `client`.
    #[must_use]
    pub fn builder(client: Client) -> CacheBuilder {
        CacheBuilder { client, slots: BTreeMap::new() }
    }

    /// A cache without watches that holds `objects` of one kind: for tests of `observe`
    /// functions. Add more kinds with [`Cache::with`].
    #[must_use]
    pub fn fixed() -> Self {
        let shared = Shared { changes: watch::Sender::new(0), progress: watch::Sender::new(0) };
        Self { slots: Arc::default(), shared: Arc::new(shared) }
    }

    /// Adds a kind with these objects to a [`Cache::fixed`].
    #[must_use]
    pub fn with<T: Object>(self, select: Select<T>, objects: Vec<T>) -> Self {
        let mut store = Store::new(&select.indexes);
        store.begin(true);
        for object in objects {
            store.put(object, 0);
        }
        store.end_relist(0);
        let slot = Typed::<T> {
            kind: Kind::of::<T>(),
            scope: select.scope,
            store: RwLock::new(store),
            listeners: RwLock::default(),
        };
        let mut slots = (*self.slots).clone();
        slots.insert(T::KIND, Arc::new(slot));
        Self { slots: Arc::new(slots), shared: self.shared }
    }

    /// One object.
    #[must_use]
    pub fn get<T: Object>(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        self.typed::<T>().store.read().get(&Key::new(namespace, name))
    }

    /// One object by its key.
    #[must_use]
    pub fn at<T: Object>(&self, key: &Key) -> Option<Arc<T>> {
        self.typed::<T>().store.read().get(key)
    }

    /// All objects of a kind, in key order.
    #[must_use]
    pub fn list<T: Object>(&self) -> Vec<Arc<T>> {
        self.typed::<T>().store.read().all().map(|(_, object)| object.clone()).collect()
    }

    /// How many objects of a kind there are.
    #[must_use]
    pub fn count<T: Object>(&self) -> usize {
        self.typed::<T>().store.read().len()
    }

    /// The objects found under `value` in an index, in key order.
    ///
    /// # Panics
    /// When the kind was selected without this index.
    #[must_use]
    pub fn find<T: Object>(&self, index: &str, value: &str) -> Vec<Arc<T>> {
        let found = self.typed::<T>().store.read().find(index, value);
        found.unwrap_or_else(|| panic!("{} has no index {index:?} in this cache", T::KIND))
    }

    /// The revision up to which a kind has been seen.
    #[must_use]
    pub fn revision<T: Object>(&self) -> i64 {
        self.typed::<T>().store.read().revision()
    }

    /// Whether a kind of this name is in the cache.
    #[must_use]
    pub fn has(&self, kind: &str) -> bool {
        self.slots.contains_key(kind)
    }

    /// The keys of all objects of the kind of this name.
    #[must_use]
    pub fn keys(&self, kind: &str) -> Vec<Key> {
        self.slot(kind).keys()
    }

    /// Whether every kind has been read once.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.slots.values().all(|slot| slot.synced())
    }

    /// Waits until every kind has been read once.
    pub async fn synced(&self) {
        self.until(|| self.is_synced()).await;
    }

    /// Waits until the cache has seen all of `expected`. Kinds that are not here are passed over.
    pub async fn reached(&self, expected: &[Expect]) {
        self.until(|| {
            expected.iter().all(|e| {
                let slot = self.slots.values().find(|slot| *slot.kind() == e.kind);
                slot.is_none_or(|slot| slot.reached(e))
            })
        })
        .await;
    }

    /// Told (as a counter) whenever objects have changed. Look at the cache, not at the number.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Calls `listener` for each change of a kind, from the task that watches; it must not block.
    pub fn on_change<T: Object>(&self, listener: impl Fn(&Changed<'_>) + Send + Sync + 'static) {
        self.typed::<T>().listen(Box::new(listener));
    }

    /// As [`Cache::on_change`], for the kind of this name.
    pub fn on_change_of(
        &self,
        kind: &str,
        listener: impl Fn(&Changed<'_>) + Send + Sync + 'static,
    ) {
        self.slot(kind).listen(Box::new(listener));
    }

    async fn until(&self, done: impl Fn() -> bool) {
        let mut progress = self.shared.progress.subscribe();
        while !done() {
            if progress.changed().await.is_err() {
                return;
            }
        }
    }

    fn slot(&self, kind: &str) -> &Arc<dyn Slot> {
        self.slots.get(kind).unwrap_or_else(|| panic!("kind {kind} is not in this cache"))
    }

    fn typed<T: Object>(&self) -> Arc<Typed<T>> {
        let any = self.slot(T::KIND).clone().any();
        any.downcast().unwrap_or_else(|_| panic!("{} is cached as another type", T::KIND))
    }
}

impl<T: Object> Slot for Typed<T> {
    fn name(&self) -> &'static str {
        T::KIND
    }

    fn kind(&self) -> &Kind {
        &self.kind
    }

    fn synced(&self) -> bool {
        self.store.read().synced()
    }

    fn revision(&self) -> i64 {
        self.store.read().revision()
    }

    fn keys(&self) -> Vec<Key> {
        self.store.read().all().map(|(key, _)| key.clone()).collect()
    }

    fn reached(&self, expect: &Expect) -> bool {
        let store = self.store.read();
        if store.revision() < expect.revision {
            return false;
        }
        let held = store.get(&expect.key);
        !expect.deleted
            || held.is_none_or(|object| {
                let meta = object.metadata();
                meta.deletion_timestamp.is_some()
                    || (!expect.uid.is_empty() && meta.uid.as_ref() != Some(&expect.uid))
            })
    }

    fn listen(&self, listener: Listener) {
        self.listeners.write().push(listener);
    }

    fn any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }

    fn start(self: Arc<Self>, client: Client, shared: Arc<Shared>, ctx: &Context) {
        let shutdown = ctx.shutdown.clone();
        ctx.tasks.part(T::KIND, async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.follow(&client, &shared) => {}
            }
            // Listeners hold clones of the cache that holds us.
            self.listeners.write().clear();
            Ok(())
        });
    }
}

impl<T: Object> Typed<T> {
    /// Watches for ever: resumes where it broke off, starts over when it cannot.
    async fn follow(&self, client: &Client, shared: &Shared) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MOST);
        loop {
            let from = if self.store.read().synced() { self.revision() } else { 0 };
            let end = self.watch(client, shared, from, &mut backoff).await;
            let wait = backoff.delay();
            match end {
                Err(error) if error.is_expired() => {
                    tracing::info!(kind = self.name(), from, "watch expired, starting over");
                    let end = self.watch(client, shared, 0, &mut backoff).await;
                    tracing::debug!(kind = self.name(), ?end, "watch ended");
                }
                Err(error) => {
                    tracing::info!(kind = self.name(), from, %error, "watch broke");
                }
                Ok(()) => tracing::debug!(kind = self.name(), from, "watch ended"),
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn watch(
        &self,
        client: &Client,
        shared: &Shared,
        from: i64,
        backoff: &mut Backoff,
    ) -> Result<(), Error> {
        let mut stream = client.watch_raw(&self.kind, &self.scope, from).await?;
        self.store.write().begin(from == 0);
        while let Some(event) = stream.message().await? {
            backoff.reset();
            self.apply(event, shared);
        }
        Ok(())
    }

    fn apply(&self, event: pb::WatchEvent, shared: &Shared) {
        let kind = event.r#type();
        let object = event.object.unwrap_or_default();
        let revision = object.revision;
        let mut changes = Vec::new();
        match kind {
            Type::Bookmark => self.store.write().progress(revision),
            Type::Deleted => {
                let key = Key::new(object.namespace.clone(), object.name.clone());
                changes.extend(self.store.write().remove(&key, revision));
            }
            Type::Added | Type::Modified => match transport::parse::<T>(&object) {
                Ok(parsed) => changes.extend(self.store.write().put(parsed, revision)),
                Err(error) => tracing::warn!(%error, "object passed over"),
            },
        }
        if event.initial_done {
            changes.extend(self.store.write().end_relist(revision));
        }
        for change in &changes {
            self.tell(change);
        }
        shared.progress.send_modify(|n| *n += 1);
        if !changes.is_empty() || event.initial_done {
            shared.changes.send_modify(|n| *n += 1);
        }
    }

    fn tell(&self, applied: &Applied<T>) {
        let change = Changed {
            kind: T::KIND,
            key: &applied.key,
            old: applied.old.as_ref().map(|o| o.metadata()),
            new: applied.new.as_ref().map(|o| o.metadata()),
            old_any: applied.old.as_deref().map(|o| o as &dyn Any),
            new_any: applied.new.as_deref().map(|o| o as &dyn Any),
        };
        for listener in self.listeners.read().iter() {
            listener(&change);
        }
    }
}
