//! Records events about objects: the same event again raises a count instead of making another.
//!
//! ```ignore
//! let events = Recorder::start(client, "default-scheduler", &node_name_or_empty, &ctx);
//! events.record(act::reference(&pod), "Warning", "FailedScheduling", message);
//! ```
//!
//! `record` never waits: events go through a bounded channel and are dropped, with a log line,
//! when the API server does not keep up. One object may cause a burst of 25 events, then one in
//! five minutes, as upstream.

use std::collections::BTreeMap;
use std::time::Duration;

use daemon::{Clock, Context};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::json;
use tokio::sync::mpsc;

use crate::transport::{Client, Error, Patch};

const CHANNEL_EVENTS_MAX: usize = 1024;
/// How many different events are remembered for counting.
const REMEMBERED_EVENTS_MAX: usize = 4096;
/// How many objects are remembered for rate limits.
const REMEMBERED_OBJECTS_MAX: usize = 4096;
const BURST_EVENTS: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);
/// The longest text the API takes, in bytes.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Records events. Clones share it.
#[derive(Clone, Debug)]
pub struct Recorder {
    send: mpsc::Sender<Said>,
    clock: Clock,
}

#[derive(Debug)]
struct Said {
    about: ObjectReference,
    severity: &'static str,
    reason: String,
    message: String,
    at: Timestamp,
}

impl Recorder {
    /// Starts recording as `component`, on `host` where events come from a node.
    #[must_use]
    pub fn start(client: Client, component: &str, host: &str, ctx: &Context) -> Self {
        let (send, mut receive) = mpsc::channel::<Said>(CHANNEL_EVENTS_MAX);
        let mut book = Book::new(component, host);
        let (shutdown, clock) = (ctx.shutdown.clone(), ctx.clock.clone());
        let recorder = Self { send, clock: ctx.clock.clone() };
        ctx.tasks.job(async move {
            loop {
                let said = tokio::select! {
                    () = shutdown.cancelled() => return,
                    said = receive.recv() => said,
                };
                let Some(said) = said else { return };
                if let Some(write) = book.enter(said, clock.monotonic()) {
                    send_one(&client, &mut book, write).await;
                }
            }
        });
        recorder
    }

    /// A recorder that forgets everything, for tests.
    #[must_use]
    pub fn silent() -> Self {
        Self { send: mpsc::channel(1).0, clock: Clock::system() }
    }

    /// Records an event; `severity` is `Normal` or `Warning`.
    pub fn record(
        &self,
        about: ObjectReference,
        severity: &'static str,
        reason: &str,
        message: impl Into<String>,
    ) {
        let (reason, message, at) = (reason.to_owned(), message.into(), self.clock.now());
        let name = about.name.clone().unwrap_or_default();
        if self.send.try_send(Said { about, severity, reason, message, at }).is_err() {
            tracing::debug!(name, "event dropped");
        }
    }
}

async fn send_one(client: &Client, book: &mut Book, write: Write) {
    let result = match &write {
        Write::Create(event) => client.create::<Event>(event).await,
        Write::Raise { namespace, name, patch } => {
            client.patch(namespace, name, "", Patch::Merge(patch.clone())).await
        }
    };
    match result {
        Ok(_) => {}
        Err(Error::Api { .. }) if matches!(write, Write::Raise { .. }) => {
            // It has aged out of the API: the next one is made anew.
            book.forget(&write);
        }
        Err(error) => tracing::debug!(%error, "event not recorded"),
    }
}

/// What is to be written.
#[derive(Debug)]
enum Write {
    Create(Box<Event>),
    Raise { namespace: String, name: String, patch: serde_json::Value },
}

#[derive(Debug)]
struct Entry {
    namespace: String,
    name: String,
    count: i32,
    used: u64,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Duration,
}

/// The events written so far: pure.
#[derive(Debug)]
struct Book {
    component: String,
    host: String,
    entries: BTreeMap<String, Entry>,
    buckets: BTreeMap<String, Bucket>,
    uses: u64,
}

impl Book {
    fn new(component: &str, host: &str) -> Self {
        Self {
            component: component.to_owned(),
            host: host.to_owned(),
            entries: BTreeMap::new(),
            buckets: BTreeMap::new(),
            uses: 0,
        }
    }

    fn enter(&mut self, mut said: Said, now: Duration) -> Option<Write> {
        if !self.allowed(&said.about, now) {
            return None;
        }
        truncate(&mut said.message);
        self.uses += 1;
        let key = format!("{:?}|{}|{}|{}", said.about, said.severity, said.reason, said.message);
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.count += 1;
            entry.used = self.uses;
            let patch = json!({"count": entry.count, "lastTimestamp": Time(said.at)});
            let (namespace, name) = (entry.namespace.clone(), entry.name.clone());
            return Some(Write::Raise { namespace, name, patch });
        }
        let event = self.event(said);
        let entry = Entry {
            namespace: event.metadata.namespace.clone().unwrap_or_default(),
            name: event.metadata.name.clone().unwrap_or_default(),
            count: 1,
            used: self.uses,
        };
        if self.entries.len() >= REMEMBERED_EVENTS_MAX {
            let median = self.uses.saturating_sub(REMEMBERED_EVENTS_MAX as u64 / 2);
            self.entries.retain(|_, entry| entry.used >= median);
        }
        self.entries.insert(key, entry);
        Some(Write::Create(Box::new(event)))
    }

    fn event(&self, said: Said) -> Event {
        let namespace = said.about.namespace.clone().filter(|ns| !ns.is_empty());
        let namespace = namespace.unwrap_or_else(|| "default".to_owned());
        let about = said.about.name.clone().unwrap_or_default();
        // The time in nanoseconds, and our own count: two events of one moment differ.
        let unique = said.at.as_nanosecond().unsigned_abs() + u128::from(self.uses);
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{about}.{unique:x}")),
                namespace: Some(namespace),
                ..Default::default()
            },
            involved_object: said.about,
            reason: Some(said.reason),
            message: Some(said.message),
            source: Some(EventSource {
                component: Some(self.component.clone()),
                host: (!self.host.is_empty()).then(|| self.host.clone()),
            }),
            first_timestamp: Some(Time(said.at)),
            last_timestamp: Some(Time(said.at)),
            count: Some(1),
            type_: Some(said.severity.to_owned()),
            reporting_component: Some(self.component.clone()),
            reporting_instance: Some(self.host.clone()),
            ..Default::default()
        }
    }

    fn forget(&mut self, write: &Write) {
        if let Write::Raise { namespace, name, .. } = write {
            self.entries.retain(|_, e| e.namespace != *namespace || e.name != *name);
        }
    }

    fn allowed(&mut self, about: &ObjectReference, now: Duration) -> bool {
        let key = format!("{:?}/{:?}/{:?}", about.kind, about.namespace, about.name);
        if self.buckets.len() >= REMEMBERED_OBJECTS_MAX && !self.buckets.contains_key(&key) {
            self.buckets.retain(|_, b| now.saturating_sub(b.filled) < REFILL);
        }
        let bucket =
            self.buckets.entry(key).or_insert(Bucket { tokens: BURST_EVENTS, filled: now });
        let gained = now.saturating_sub(bucket.filled).as_secs_f64() / REFILL.as_secs_f64();
        bucket.tokens = (bucket.tokens + gained).min(BURST_EVENTS);
        bucket.filled = now;
        let allowed = bucket.tokens >= 1.0;
        if allowed {
            bucket.tokens -= 1.0;
        }
        allowed
    }
}

fn truncate(message: &mut String) {
    if message.len() > MESSAGE_BYTES_MAX {
        let cut = (0..=MESSAGE_BYTES_MAX - 3).rev().find(|i| message.is_char_boundary(*i));
        message.truncate(cut.unwrap_or(0));
        message.push_str("...");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(message: &str) -> Said {
        let about = ObjectReference {
            kind: Some("Pod".into()),
            name: Some("web".into()),
            namespace: Some("d".into()),
            ..Default::default()
        };
        let (reason, at) = ("Pulled".to_owned(), Timestamp::UNIX_EPOCH);
        Said { about, severity: "Normal", reason, message: message.to_owned(), at }
    }

    #[test]
    fn the_same_event_again_raises_the_count() {
        let mut book = Book::new("kubelet", "n1");
        let Some(Write::Create(first)) = book.enter(said("a"), Duration::ZERO) else {
            panic!("the first is made")
        };
        let Some(Write::Raise { name, patch, .. }) = book.enter(said("a"), Duration::ZERO) else {
            panic!("the second is counted")
        };
        assert_eq!((Some(&name), &patch["count"]), (first.metadata.name.as_ref(), &json!(2)));
        assert!(matches!(book.enter(said("b"), Duration::ZERO), Some(Write::Create(_))));
    }

    #[test]
    fn one_object_may_not_flood() {
        let mut book = Book::new("kubelet", "n1");
        let entered =
            (0..40).filter(|i| book.enter(said(&i.to_string()), Duration::ZERO).is_some());
        assert_eq!(entered.count(), 25);
        assert!(book.enter(said("later"), REFILL).is_some());
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let mut text = "ä".repeat(600);
        truncate(&mut text);
        assert!(text.len() <= MESSAGE_BYTES_MAX && text.ends_with("ä..."));
    }
}
