//! The objects of one kind with their indexes: pure, no locks, no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::transport::{Key, Object};

/// Computes the values under which an object is found in an index.
pub(crate) type IndexBy<T> = fn(&T) -> Vec<String>;

struct Index<T> {
    name: &'static str,
    by: IndexBy<T>,
    keys: BTreeMap<String, BTreeSet<Key>>,
}

/// What an event did to one object.
pub(crate) struct Applied<T> {
    pub(crate) key: Key,
    pub(crate) old: Option<Arc<T>>,
    pub(crate) new: Option<Arc<T>>,
}

pub(crate) struct Store<T> {
    objects: BTreeMap<Key, Arc<T>>,
    indexes: Vec<Index<T>>,
    revision: i64,
    synced: bool,
    /// Keys seen since a relist began; the others are gone once it ends.
    relist: Option<BTreeSet<Key>>,
}

impl<T: Object> Store<T> {
    pub(crate) fn new(indexes: &[(&'static str, IndexBy<T>)]) -> Self {
        let indexes = indexes
            .iter()
            .map(|(name, by)| Index { name, by: *by, keys: BTreeMap::new() })
            .collect();
        Self { objects: BTreeMap::new(), indexes, revision: 0, synced: false, relist: None }
    }

    pub(crate) fn revision(&self) -> i64 {
        self.revision
    }

    pub(crate) fn synced(&self) -> bool {
        self.synced
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<T>> {
        self.objects.get(key).cloned()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&Key, &Arc<T>)> {
        self.objects.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.objects.len()
    }

    /// The objects found under `value`, in key order. `None` when there is no such index.
    pub(crate) fn find(&self, index: &str, value: &str) -> Option<Vec<Arc<T>>> {
        let index = self.indexes.iter().find(|i| i.name == index)?;
        let keys = index.keys.get(value).into_iter().flatten();
        Some(keys.filter_map(|key| self.objects.get(key).cloned()).collect())
    }

    /// A watch begins: the present state is sent first (`anew`), or only what changes.
    pub(crate) fn begin(&mut self, anew: bool) {
        self.relist = anew.then(BTreeSet::new);
    }

    /// The present state has been sent: what was not in it is gone.
    pub(crate) fn end_relist(&mut self, revision: i64) -> Vec<Applied<T>> {
        self.revision = revision.max(self.revision);
        self.synced = true;
        let Some(seen) = self.relist.take() else { return Vec::new() };
        let gone: Vec<Key> =
            self.objects.keys().filter(|key| !seen.contains(key)).cloned().collect();
        gone.into_iter().filter_map(|key| self.remove(&key, revision)).collect()
    }

    /// Everything up to `revision` has been seen.
    pub(crate) fn progress(&mut self, revision: i64) {
        self.revision = revision.max(self.revision);
    }

    /// Adds or replaces an object; `None` when it is the one we have.
    pub(crate) fn put(&mut self, object: T, revision: i64) -> Option<Applied<T>> {
        let key = Key::of(object.metadata());
        if let Some(seen) = &mut self.relist {
            // The items of a relist come in key order, not in the order of their revisions.
            seen.insert(key.clone());
        } else {
            self.progress(revision);
        }
        let old = self.objects.get(&key).cloned();
        if let Some(old) = &old {
            let same = |a: &T, b: &T| {
                a.metadata().resource_version.is_some()
                    && a.metadata().resource_version == b.metadata().resource_version
            };
            if same(old, &object) {
                return None;
            }
            self.unindex(&key, &old.clone());
        }
        let new = Arc::new(object);
        for index in &mut self.indexes {
            for value in (index.by)(&new) {
                index.keys.entry(value).or_default().insert(key.clone());
            }
        }
        self.objects.insert(key.clone(), new.clone());
        Some(Applied { key, old, new: Some(new) })
    }

    /// Removes an object; `None` when we have none of that key.
    pub(crate) fn remove(&mut self, key: &Key, revision: i64) -> Option<Applied<T>> {
        if self.relist.is_none() {
            self.progress(revision);
        }
        let old = self.objects.remove(key)?;
        self.unindex(key, &old);
        Some(Applied { key: key.clone(), old: Some(old), new: None })
    }

    fn unindex(&mut self, key: &Key, old: &Arc<T>) {
        for index in &mut self.indexes {
            for value in (index.by)(old) {
                let Some(keys) = index.keys.get_mut(&value) else { continue };
                keys.remove(key);
                if keys.is_empty() {
                    index.keys.remove(&value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: &str, revision: i64) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "d", "resourceVersion": revision.to_string()},
            "spec": {"nodeName": node, "containers": []},
        }))
        .unwrap()
    }

    fn by_node(pod: &Pod) -> Vec<String> {
        pod.spec.iter().filter_map(|s| s.node_name.clone()).collect()
    }

    fn names(store: &Store<Pod>, node: &str) -> Vec<String> {
        let found = store.find("node", node).unwrap();
        found.iter().filter_map(|p| p.metadata.name.clone()).collect()
    }

    #[test]
    fn an_object_moves_between_index_values() {
        let mut store = Store::new(&[("node", by_node as IndexBy<Pod>)]);
        store.put(pod("a", "n1", 1), 1);
        store.put(pod("b", "n1", 2), 2);
        assert_eq!(names(&store, "n1"), ["a", "b"]);
        store.put(pod("a", "n2", 3), 3);
        assert_eq!(
            (names(&store, "n1"), names(&store, "n2")),
            (vec!["b".into()], vec!["a".into()])
        );
        store.remove(&Key::new("d", "b"), 4);
        assert!(names(&store, "n1").is_empty());
        assert_eq!(store.revision(), 4);
        assert!(store.find("other", "x").is_none());
    }

    #[test]
    fn a_relist_drops_what_is_gone_and_passes_over_what_is_unchanged() {
        let mut store = Store::new(&[]);
        store.begin(true);
        store.put(pod("a", "n", 1), 1);
        store.put(pod("b", "n", 2), 2);
        assert!(!store.synced());
        assert!(store.end_relist(5).is_empty());
        store.begin(true);
        assert!(store.put(pod("a", "n", 1), 1).is_none(), "unchanged");
        let gone = store.end_relist(9);
        assert_eq!(gone.len(), 1);
        assert_eq!(gone[0].key, Key::new("d", "b"));
        assert_eq!((store.len(), store.revision()), (1, 9));
    }
}
