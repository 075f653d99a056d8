//! A watch: a cursor into a shelf's changes, and the form events take for it.

use std::collections::VecDeque;
use std::sync::Arc;

use api::catalog::Resource;
use api::error::ApiError;
use bytes::Bytes;

use super::list::{Filter, parse_version, serve};
use super::{Api, shelf_key};
use crate::request::{ListOptions, Outcome, Request, WatchOptions};
use crate::storage::cache::{Cache, Change, Next, Shelf};

/// Changes taken from the shelf at once.
const BATCH_CHANGES: usize = 256;

/// What happened to an object, as the watcher sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventKind {
    Added,
    Modified,
    Deleted,
    Bookmark,
}

impl EventKind {
    /// As the API writes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
            Self::Bookmark => "BOOKMARK",
        }
    }
}

/// One event of a watch.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) kind: EventKind,
    pub(crate) revision: i64,
    /// The object; for a bookmark, an object with only a resourceVersion.
    pub(crate) json: Bytes,
    /// The bookmark that ends the initial events.
    pub(crate) initial_end: bool,
}

/// A watcher: nothing is queued for it, it reads on from where it is.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) resource: Arc<Resource>,
    shelf: Arc<Shelf>,
    cache: Arc<Cache>,
    reached: tokio::sync::watch::Receiver<i64>,
    filter: Filter,
    /// Key prefix, or the one key.
    scope: String,
    at: i64,
    ready: VecDeque<Event>,
    /// When the watch ends by itself.
    pub(crate) timeout: Option<std::time::Duration>,
    /// Whether bookmarks were asked for.
    pub(crate) bookmarks: bool,
}

impl Watcher {
    /// The next event; waits for one.
    ///
    /// # Errors
    /// 410 when the watcher is too far behind.
    pub(crate) async fn next(&mut self) -> Result<Event, ApiError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            self.reached.mark_unchanged();
            if !self.pull()? && self.reached.changed().await.is_err() {
                return Err(ApiError::Unavailable("shutting down".into()));
            }
        }
    }

    /// The next event if there is one already.
    pub(crate) fn try_next(&mut self) -> Result<Option<Event>, ApiError> {
        while self.ready.is_empty() && self.pull()? {}
        Ok(self.ready.pop_front())
    }

    /// Takes the next changes; false when there are none yet.
    fn pull(&mut self) -> Result<bool, ApiError> {
        let changes = match self.shelf.after(self.at, BATCH_CHANGES) {
            Next::Gone => return Err(too_old(self.at)),
            Next::Changes(changes) => changes,
        };
        let Some(last) = changes.last() else { return Ok(false) };
        self.at = last.revision;
        for change in &changes {
            if let Some(event) = self.event(change) {
                self.ready.push_back(event);
            }
        }
        Ok(true)
    }

    /// A bookmark for now: everything before it has been delivered.
    pub(crate) fn bookmark(&mut self) -> Option<Event> {
        // What the cache has reached before the shelf was seen empty.
        let revision = self.cache.revision();
        if !self.ready.is_empty() || self.shelf.changed() > self.at {
            return None;
        }
        self.at = self.at.max(revision);
        Some(bookmark(&self.resource, self.at, false))
    }

    fn event(&self, change: &Change) -> Option<Event> {
        if !self.in_scope(&change.key) {
            return None;
        }
        let before = change.before.as_ref().is_some_and(|entry| self.filter.passes(entry));
        let now = !change.deleted && self.filter.passes(&change.entry);
        let kind = match (before, now) {
            (false, true) => EventKind::Added,
            (true, true) => EventKind::Modified,
            (true, false) => EventKind::Deleted,
            (false, false) => return None,
        };
        let json = match (&change.before, kind, change.deleted) {
            // Out of the selection, not gone: the object as it last passed, under the new revision.
            (Some(before), EventKind::Deleted, false) => {
                serve(&self.resource, &before.at(change.revision))
            }
            _ => serve(&self.resource, &change.entry),
        };
        Some(Event { kind, revision: change.revision, json, initial_end: false })
    }

    fn in_scope(&self, key: &str) -> bool {
        self.scope.is_empty()
            || if self.scope.ends_with('/') {
                key.starts_with(&self.scope)
            } else {
                key == self.scope
            }
    }
}

fn bookmark(resource: &Resource, revision: i64, initial_end: bool) -> Event {
    let annotations =
        if initial_end { "\"annotations\":{\"k8s.io/initial-events-end\":\"true\"}," } else { "" };
    let json = format!(
        "{{\"apiVersion\":\"{}\",\"kind\":\"{}\",\"metadata\":{{{annotations}\"resourceVersion\":\"{revision}\"}}}}",
        resource.api_version(),
        resource.kind
    );
    Event { kind: EventKind::Bookmark, revision, json: json.into(), initial_end }
}

fn too_old(revision: i64) -> ApiError {
    ApiError::Expired(format!("too old resource version: {revision}"))
}

impl Api {
    pub(crate) async fn watch(
        &self,
        request: &Request,
        options: &WatchOptions,
    ) -> Result<Outcome, ApiError> {
        let resource = &request.resource;
        let list = &options.list;
        check(options)?;
        let filter = Filter::new(resource, &list.labels, &list.fields)?;
        let shelf = self.shelf(resource);
        let namespace = if resource.namespaced { request.namespace.as_str() } else { "" };
        let name =
            if request.name.is_empty() { filter.name() } else { Some(request.name.as_str()) };
        let scope = match name {
            Some(name) if !resource.namespaced || !namespace.is_empty() => {
                shelf_key(resource, namespace, name)
            }
            _ if namespace.is_empty() => String::new(),
            _ => format!("{namespace}/"),
        };
        let mut watcher = Watcher {
            resource: resource.clone(),
            reached: shelf.follow(),
            cache: self.cache.clone(),
            shelf,
            filter,
            scope,
            at: 0,
            ready: VecDeque::new(),
            timeout: options.timeout,
            bookmarks: options.bookmarks,
        };
        let from_now = matches!(list.version.as_str(), "" | "0");
        if from_now || options.initial_events {
            watcher.at = self.reach(&list.version).await?;
            self.initial(&mut watcher, options);
        } else {
            watcher.at = parse_version(&list.version).map_err(|_| {
                let text = &list.version;
                ApiError::Unexpected(format!(
                    "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
                ))
            })?;
            self.reach(&list.version).await?;
        }
        Ok(Outcome::Watch(Box::new(watcher)))
    }

    /// Puts the present objects in front of what will change.
    fn initial(&self, watcher: &mut Watcher, options: &WatchOptions) {
        let prefix =
            if watcher.scope.ends_with('/') { watcher.scope.clone() } else { String::new() };
        let (found, changed) = watcher.shelf.snapshot(&prefix, "");
        let newest = changed.max(watcher.at);
        watcher.at = newest;
        for (key, entry) in found {
            if !watcher.in_scope(&key) {
                continue;
            }
            if watcher.filter.passes(&entry) {
                watcher.ready.push_back(Event {
                    kind: EventKind::Added,
                    revision: entry.revision,
                    json: serve(&watcher.resource, &entry),
                    initial_end: false,
                });
            }
        }
        if options.initial_events {
            watcher.ready.push_back(bookmark(&watcher.resource, newest, true));
        }
    }
}

/// Refuses options that make no sense together.
fn check(options: &WatchOptions) -> Result<(), ApiError> {
    let list: &ListOptions = &options.list;
    let mut errors = api::error::FieldErrors::new();
    if options.initial_events {
        if list.version_match != "NotOlderThan" {
            errors.forbidden(
                "resourceVersionMatch",
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            );
        }
    } else if !list.version_match.is_empty() {
        errors.forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        );
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid("meta.k8s.io", "ListOptions", "", errors))
}
