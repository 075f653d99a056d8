//! The watch cache: every object in memory as bytes, and the recent changes of every resource.
//!
//! One watch on the store over the whole registry fills it, so there is one line of revisions. Readers
//! wait until the cache has reached the revision they need. A watcher holds no queue: it remembers a
//! revision and reads on from there, and one that falls behind the recent changes is told so.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use compact_str::CompactString;
use parking_lot::RwLock;
use tokio::sync::watch;

use super::entry::Entry;
use super::keys;

/// Recent changes kept per resource, for watches that start or go on in the past.
const LOG_EVENTS_MAX: usize = 8192;
/// How long a read waits for the cache to catch up with the store.
const WAIT_MAX: Duration = Duration::from_secs(3);

/// A change of one object.
#[derive(Debug)]
pub(crate) struct Change {
    /// The store's revision of the change.
    pub(crate) revision: i64,
    /// `namespace/name`, or `name`.
    pub(crate) key: CompactString,
    /// The object after the change; for a deletion its last state under the deletion's revision.
    pub(crate) entry: Arc<Entry>,
    /// The object before the change, if it was there.
    pub(crate) before: Option<Arc<Entry>>,
    /// Whether the object is gone.
    pub(crate) deleted: bool,
}

/// The objects and recent changes of one resource.
#[derive(Debug)]
pub(crate) struct Shelf {
    state: RwLock<State>,
    reached: watch::Sender<i64>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<CompactString, Arc<Entry>>,
    log: VecDeque<Arc<Change>>,
    /// Watches may start at or after this revision.
    log_since: i64,
    /// The revision of the last change of this resource.
    changed: i64,
}

/// What a watcher reads next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Changes after the revision asked for, oldest first; perhaps none yet.
    Changes(Vec<Arc<Change>>),
    /// The changes asked for are no longer kept.
    Gone,
}

impl Shelf {
    fn new(since: i64) -> Self {
        let state = State { log_since: since, ..State::default() };
        Self { state: RwLock::new(state), reached: watch::Sender::new(0) }
    }

    /// One object by `namespace/name` or `name`.
    pub(crate) fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.state.read().objects.get(key).cloned()
    }

    /// All objects whose key begins with `prefix`, behind `after`, in key order.
    pub(crate) fn list(&self, prefix: &str, after: &str) -> Vec<(CompactString, Arc<Entry>)> {
        self.snapshot(prefix, after).0
    }

    /// The same, with the revision of the last change that it shows.
    pub(crate) fn snapshot(
        &self,
        prefix: &str,
        after: &str,
    ) -> (Vec<(CompactString, Arc<Entry>)>, i64) {
        let state = self.state.read();
        let from = if after.is_empty() { Bound::Included(prefix) } else { Bound::Excluded(after) };
        let found = state
            .objects
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, entry)| (key.clone(), entry.clone()))
            .collect();
        (found, state.changed)
    }

    /// How many objects there are.
    pub(crate) fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    /// The revision of the last change.
    pub(crate) fn changed(&self) -> i64 {
        self.state.read().changed
    }

    /// At most `most` changes after `revision`, never splitting the changes of one revision.
    pub(crate) fn after(&self, revision: i64, most: usize) -> Next {
        let state = self.state.read();
        if revision < state.log_since {
            return Next::Gone;
        }
        let start = state.log.partition_point(|change| change.revision <= revision);
        let mut end = (start + most).min(state.log.len());
        while end > start
            && end < state.log.len()
            && state.log[end].revision == state.log[end - 1].revision
        {
            end += 1;
        }
        Next::Changes(state.log.range(start..end).cloned().collect())
    }

    /// Tells of changes: the receiver's value is the revision of the last one.
    pub(crate) fn follow(&self) -> watch::Receiver<i64> {
        self.reached.subscribe()
    }

    fn apply(&self, revision: i64, key: &str, value: Option<&[u8]>) {
        let mut state = self.state.write();
        let change = match value {
            Some(value) => {
                let entry = Entry::new(value, revision);
                let before = state.objects.insert(key.into(), entry.clone());
                Change { revision, key: key.into(), entry, before, deleted: false }
            }
            None => {
                let Some(before) = state.objects.remove(key) else { return };
                let entry = before.at(revision);
                Change { revision, key: key.into(), entry, before: Some(before), deleted: true }
            }
        };
        state.log.push_back(Arc::new(change));
        state.changed = revision;
        if state.log.len() > LOG_EVENTS_MAX
            && let Some(oldest) = state.log.pop_front()
        {
            state.log_since = oldest.revision;
        }
    }

    /// Starts over: watches from before `revision` are gone.
    fn reset(&self, revision: i64, objects: BTreeMap<CompactString, Arc<Entry>>) {
        let mut state = self.state.write();
        *state = State { objects, log: VecDeque::new(), log_since: revision, changed: revision };
    }
}

/// A change as the store reports it.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) revision: i64,
    pub(crate) key: bytes::Bytes,
    /// `None` for a deletion.
    pub(crate) value: Option<bytes::Bytes>,
}

/// All shelves, and how far they have come.
#[derive(Debug)]
pub(crate) struct Cache {
    shelves: RwLock<HashMap<String, Arc<Shelf>>>,
    known: Vec<String>,
    revision: watch::Sender<i64>,
    /// Asked to bring a progress report from the store.
    lagging: tokio::sync::Notify,
}

impl Cache {
    /// An empty cache with a shelf for each of the built-in storage prefixes.
    pub(crate) fn new(prefixes: impl IntoIterator<Item = String>) -> Self {
        let known: Vec<String> = prefixes.into_iter().collect();
        let shelves = known.iter().map(|p| (p.clone(), Arc::new(Shelf::new(0)))).collect();
        Self {
            shelves: RwLock::new(shelves),
            known,
            revision: watch::Sender::new(0),
            lagging: tokio::sync::Notify::new(),
        }
    }

    /// The shelf of a storage prefix, such as `pods` or `example.com/widgets`.
    pub(crate) fn shelf(&self, prefix: &str) -> Arc<Shelf> {
        if let Some(shelf) = self.shelves.read().get(prefix) {
            return shelf.clone();
        }
        let since = *self.revision.borrow();
        let mut shelves = self.shelves.write();
        shelves.entry(prefix.to_owned()).or_insert_with(|| Arc::new(Shelf::new(since))).clone()
    }

    /// The revision that every shelf has reached.
    pub(crate) fn revision(&self) -> i64 {
        *self.revision.borrow()
    }

    /// Waits until the cache has reached `revision`; false if it did not in time.
    pub(crate) async fn wait(&self, revision: i64) -> bool {
        if self.revision() >= revision {
            return true;
        }
        self.lagging.notify_one();
        let mut reached = self.revision.subscribe();
        let wait = reached.wait_for(|at| *at >= revision);
        matches!(tokio::time::timeout(WAIT_MAX, wait).await, Ok(Ok(_)))
    }

    /// Returns when some reader waits for a revision that the cache has not reached.
    pub(crate) async fn lagging(&self) {
        self.lagging.notified().await;
    }

    /// Takes over the whole registry as read at `revision`, by whole keys.
    pub(crate) fn load(&self, revision: i64, items: Vec<(Vec<u8>, Arc<Entry>)>) {
        let mut by_shelf: HashMap<String, BTreeMap<CompactString, Arc<Entry>>> = HashMap::new();
        for (key, entry) in items {
            if let Some((prefix, key)) = std::str::from_utf8(&key).ok().and_then(|k| self.place(k))
            {
                by_shelf.entry(prefix.to_owned()).or_default().insert(key.into(), entry);
            }
        }
        for prefix in by_shelf.keys() {
            self.shelf(prefix);
        }
        for (prefix, shelf) in self.shelves.read().iter() {
            shelf.reset(revision, by_shelf.remove(prefix).unwrap_or_default());
        }
        self.reached(revision);
        for shelf in self.shelves.read().values() {
            shelf.reached.send_replace(revision);
        }
    }

    /// Applies what the store reports, all of it up to and including `revision`.
    pub(crate) fn apply(&self, changes: &[Raw], revision: i64) {
        let mut touched: Vec<(Arc<Shelf>, i64)> = Vec::new();
        for change in changes {
            let Some((prefix, key)) =
                std::str::from_utf8(&change.key).ok().and_then(|k| self.place(k))
            else {
                continue;
            };
            let shelf = self.shelf(prefix);
            shelf.apply(change.revision, key, change.value.as_deref());
            match touched.last_mut() {
                Some((last, at)) if Arc::ptr_eq(last, &shelf) => *at = change.revision,
                _ => touched.push((shelf, change.revision)),
            }
        }
        self.reached(revision);
        for (shelf, at) in touched {
            shelf.reached.send_replace(at);
        }
    }

    fn reached(&self, revision: i64) {
        self.revision.send_if_modified(|at| {
            let later = revision > *at;
            *at = (*at).max(revision);
            later
        });
    }

    /// The storage prefix and the object's own key within a whole key of the store.
    fn place<'k>(&self, key: &'k str) -> Option<(&'k str, &'k str)> {
        let rest = key.strip_prefix(keys::ROOT)?;
        let first = rest.find('/')?;
        let second = rest[first + 1..].find('/').map(|at| first + 1 + at);
        if let Some(second) = second {
            let two = &rest[..second];
            // Custom resources lie under their group, which has a dot, and their plural.
            if self.known.iter().any(|k| k == two) || rest[..first].contains('.') {
                return Some((two, &rest[second + 1..]));
            }
        }
        Some((&rest[..first], &rest[first + 1..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(revision: i64, key: &str, value: Option<&str>) -> Raw {
        let value = value.map(|v| bytes::Bytes::copy_from_slice(v.as_bytes()));
        Raw { revision, key: bytes::Bytes::copy_from_slice(key.as_bytes()), value }
    }

    fn cache() -> Cache {
        Cache::new(["pods".to_owned(), "services/specs".to_owned()])
    }

    #[test]
    fn changes_are_read_from_any_revision_still_kept() {
        let cache = cache();
        cache.load(5, Vec::new());
        cache.apply(&[raw(6, "/registry/pods/ns/a", Some(r#"{"metadata":{}}"#))], 6);
        cache.apply(&[raw(8, "/registry/pods/ns/a", None)], 8);
        let shelf = cache.shelf("pods");
        let Next::Changes(all) = shelf.after(5, 10) else { panic!("gone") };
        assert_eq!(
            all.iter().map(|c| (c.revision, c.deleted)).collect::<Vec<_>>(),
            [(6, false), (8, true)]
        );
        assert!(std::str::from_utf8(&all[1].entry.bytes).unwrap().contains("\"8\""));
        assert!(matches!(shelf.after(4, 10), Next::Gone));
        assert_eq!(cache.revision(), 8);
    }

    #[test]
    fn the_changes_of_one_revision_are_never_split() {
        let cache = cache();
        cache.load(1, Vec::new());
        let same: Vec<Raw> = (0..3)
            .map(|i| raw(2, &format!("/registry/pods/ns/{i}"), Some(r#"{"metadata":{}}"#)))
            .collect();
        cache.apply(&same, 2);
        let Next::Changes(first) = cache.shelf("pods").after(1, 1) else { panic!("gone") };
        assert_eq!(first.len(), 3);
    }

    #[test]
    fn keys_are_placed_by_the_longest_known_prefix() {
        let cache = cache();
        assert_eq!(cache.place("/registry/pods/ns/a"), Some(("pods", "ns/a")));
        assert_eq!(cache.place("/registry/services/specs/ns/a"), Some(("services/specs", "ns/a")));
        assert_eq!(cache.place("/registry/ex.com/widgets/ns/a"), Some(("ex.com/widgets", "ns/a")));
        assert_eq!(cache.place("/elsewhere/pods/a"), None);
    }
}
