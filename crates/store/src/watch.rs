//! Who hears of which change. Pure: where a response goes is the caller's.
//!
//! The hub knows watchers that have heard everything up to the published revision. A watcher that
//! starts in the past, or whose stream is full, is behind: it reads history until [`Hub::join`]
//! finds it level with the hub.

use std::collections::BTreeMap;

use bytes::Bytes;
use wire::etcdserverpb::watch_create_request::FilterType;
use wire::etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchResponse};
use wire::mvccpb::Event;
use wire::mvccpb::event::EventType;

use crate::mvcc::{Changes, Span};

/// Bytes of events in one part of a fragmented response.
const FRAGMENT_BYTES_MAX: usize = 2 << 20;

/// What a watcher wants to hear.
#[derive(Debug, Clone, PartialEq)]
pub struct Watch {
    /// Its number on its stream.
    pub id: i64,
    /// Its keys.
    pub span: Span,
    /// Nothing before this revision.
    pub from: i64,
    /// With the pair before each event.
    pub prev_kv: bool,
    /// Large responses may be split.
    pub fragment: bool,
    /// Tell it from time to time how far it is.
    pub progress: bool,
    puts: bool,
    deletes: bool,
}

impl Watch {
    /// Reads a request; the id is chosen by its stream.
    #[must_use]
    pub fn new(id: i64, request: &WatchCreateRequest) -> Self {
        let mut key = request.key.clone();
        if key.is_empty() {
            key = Bytes::from_static(&[0]); // the smallest key
        }
        let without = |kind: FilterType| !request.filters.contains(&i32::from(kind));
        Self {
            id,
            span: Span::new(key, request.range_end.clone()),
            from: request.start_revision,
            prev_kv: request.prev_kv,
            fragment: request.fragment,
            progress: request.progress_notify,
            puts: without(FilterType::Noput),
            deletes: without(FilterType::Nodelete),
        }
    }

    /// Whether it hears of an event.
    #[must_use]
    pub fn wants(&self, event: &Event) -> bool {
        let kind = if event.r#type == i32::from(EventType::Put) { self.puts } else { self.deletes };
        kind && event.kv.as_ref().is_some_and(|kv| self.span.contains(&kv.key))
    }

    /// The event as this watcher hears it.
    #[must_use]
    pub fn view(&self, event: &Event) -> Event {
        let prev_kv = if self.prev_kv { event.prev_kv.clone() } else { None };
        Event { r#type: event.r#type, kv: event.kv.clone(), prev_kv }
    }

    /// The responses that carry `events`: one, unless the watcher takes fragments.
    #[must_use]
    pub fn responses(&self, header: ResponseHeader, events: Vec<Event>) -> Vec<WatchResponse> {
        let whole = |events, fragment| WatchResponse {
            header: Some(header),
            watch_id: self.id,
            events,
            fragment,
            ..Default::default()
        };
        if !self.fragment {
            return vec![whole(events, false)];
        }
        let mut parts = Vec::new();
        let (mut part, mut bytes) = (Vec::new(), 0);
        for event in events {
            let more = weigh(&event);
            if bytes + more > FRAGMENT_BYTES_MAX && !part.is_empty() {
                parts.push(whole(std::mem::take(&mut part), true));
                bytes = 0;
            }
            bytes += more;
            part.push(event);
        }
        parts.push(whole(part, false));
        parts
    }
}

/// Bytes of an event, about.
#[must_use]
pub fn weigh(event: &Event) -> usize {
    let pair = |kv: &Option<wire::mvccpb::KeyValue>| {
        kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len() + 32)
    };
    16 + pair(&event.kv) + pair(&event.prev_kv)
}

/// A watcher of the hub.
pub type Ticket = u64;

#[derive(Debug)]
struct Watcher<S> {
    watch: Watch,
    stream: S,
    pending: Vec<Event>,
    /// Heard something since it was last told how far it is.
    busy: bool,
}

/// A watcher that fell behind, since its stream did not take a response.
#[derive(Debug)]
pub struct Behind<S> {
    /// Its stream.
    pub stream: S,
    /// What it wants.
    pub watch: Watch,
    /// The first revision that it has not heard.
    pub next: i64,
}

/// All watchers that are up to date.
#[derive(Debug)]
pub struct Hub<S> {
    published: i64,
    next_ticket: Ticket,
    watchers: BTreeMap<Ticket, Watcher<S>>,
    keys: BTreeMap<Bytes, Vec<Ticket>>,
    spans: Vec<(Span, Ticket)>,
    /// Watchers that want to see what was replaced.
    with_prev: usize,
}

impl<S: Clone> Hub<S> {
    /// A hub at a revision, without watchers.
    #[must_use]
    pub fn new(published: i64) -> Self {
        Self {
            published,
            next_ticket: 1,
            watchers: BTreeMap::new(),
            keys: BTreeMap::new(),
            spans: Vec::new(),
            with_prev: 0,
        }
    }

    /// Whether anybody here wants to see what a change replaced.
    #[must_use]
    pub fn wants_prev(&self) -> bool {
        self.with_prev > 0
    }

    /// The revision up to which every watcher here has heard everything.
    #[must_use]
    pub fn published(&self) -> i64 {
        self.published
    }

    /// How many watchers are here.
    #[must_use]
    pub fn len(&self) -> usize {
        self.watchers.len()
    }

    /// Whether nobody watches.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.watchers.is_empty()
    }

    /// Adds a watcher that has heard everything before `next`, if that is level with the hub.
    pub fn join(&mut self, watch: &Watch, next: i64, stream: &S) -> Option<Ticket> {
        if next <= self.published {
            return None;
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.with_prev += usize::from(watch.prev_kv);
        match &watch.span {
            Span::Key(key) => self.keys.entry(key.clone()).or_default().push(ticket),
            span => self.spans.push((span.clone(), ticket)),
        }
        let watch = Watch { from: watch.from.max(next), ..watch.clone() };
        let watcher = Watcher { watch, stream: stream.clone(), pending: Vec::new(), busy: false };
        self.watchers.insert(ticket, watcher);
        Some(ticket)
    }

    /// The state has jumped to a revision: everybody here is behind and has to read history.
    pub fn jump(&mut self, revision: i64) -> Vec<Behind<S>> {
        let missed = self.published + 1;
        self.published = self.published.max(revision);
        self.keys.clear();
        self.spans.clear();
        self.with_prev = 0;
        let behind = |w: Watcher<S>| {
            let next = missed.max(w.watch.from);
            Behind { stream: w.stream, watch: w.watch, next }
        };
        std::mem::take(&mut self.watchers).into_values().map(behind).collect()
    }

    /// Removes a watcher.
    pub fn leave(&mut self, ticket: Ticket) {
        self.take(ticket);
    }

    fn take(&mut self, ticket: Ticket) -> Option<Watcher<S>> {
        let watcher = self.watchers.remove(&ticket)?;
        self.with_prev -= usize::from(watcher.watch.prev_kv);
        if let Span::Key(key) = &watcher.watch.span {
            if let Some(tickets) = self.keys.get_mut(key) {
                tickets.retain(|other| *other != ticket);
                if tickets.is_empty() {
                    self.keys.remove(key);
                }
            }
        } else {
            self.spans.retain(|(_, other)| *other != ticket);
        }
        Some(watcher)
    }

    /// Tells everyone of new changes, in one response each or its fragments. `deliver` takes all
    /// of them or none, and says which; those that took none are returned and are here no longer.
    pub fn publish(
        &mut self,
        header: ResponseHeader,
        changes: &[Changes],
        mut deliver: impl FnMut(&S, Vec<WatchResponse>) -> bool,
    ) -> Vec<Behind<S>> {
        let (Some(first), Some(last)) = (changes.first(), changes.last()) else {
            return Vec::new();
        };
        assert!(first.main > self.published);
        self.published = last.main;
        if self.watchers.is_empty() {
            return Vec::new();
        }
        let mut touched = Vec::new();
        for change in changes {
            for event in change.events.iter() {
                self.offer(change.main, event, &mut touched);
            }
        }
        let header = ResponseHeader { revision: last.main, ..header };
        let mut lost = Vec::new();
        for ticket in touched {
            let Some(watcher) = self.watchers.get_mut(&ticket) else { continue };
            let events = std::mem::take(&mut watcher.pending);
            watcher.busy = true;
            let responses = watcher.watch.responses(header, events);
            if !deliver(&watcher.stream, responses) {
                lost.push(ticket);
            }
        }
        let behind = lost.into_iter().filter_map(|ticket| self.take(ticket));
        behind
            .map(|w| {
                let next = first.main.max(w.watch.from);
                Behind { stream: w.stream, watch: w.watch, next }
            })
            .collect()
    }

    fn offer(&mut self, main: i64, event: &Event, touched: &mut Vec<Ticket>) {
        let Some(kv) = &event.kv else { return };
        let one = self.keys.get(kv.key.as_ref()).into_iter().flatten().copied();
        let many = self.spans.iter().filter(|(s, _)| s.contains(&kv.key)).map(|(_, t)| *t);
        for ticket in one.chain(many) {
            let Some(watcher) = self.watchers.get_mut(&ticket) else { continue };
            if main < watcher.watch.from || !watcher.watch.wants(event) {
                continue;
            }
            if watcher.pending.is_empty() {
                touched.push(ticket);
            }
            watcher.pending.push(watcher.watch.view(event));
        }
    }

    /// Whether a watcher wants to be told how far it is and heard nothing since the last time.
    pub fn idle(&mut self, ticket: Ticket) -> bool {
        self.watchers.get_mut(&ticket).is_some_and(|watcher| {
            let idle = watcher.watch.progress && !watcher.busy;
            watcher.busy = false;
            idle
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::mvccpb::KeyValue;

    fn put(key: &'static str, main: i64) -> Changes {
        let kv = KeyValue { key: key.into(), mod_revision: main, ..Default::default() };
        let prev_kv = Some(KeyValue { value: "before".into(), ..kv.clone() });
        let event = Event { r#type: EventType::Put.into(), kv: Some(kv), prev_kv };
        Changes { main, events: vec![event].into() }
    }

    fn watch(id: i64, key: &'static str, end: &'static str) -> Watch {
        let request =
            WatchCreateRequest { key: key.into(), range_end: end.into(), ..Default::default() };
        Watch::new(id, &request)
    }

    fn heard(hub: &mut Hub<()>, changes: &[Changes]) -> Vec<(i64, Vec<i64>)> {
        let mut heard = Vec::new();
        hub.publish(ResponseHeader::default(), changes, |(), responses| {
            for response in responses {
                let revisions = response.events.iter().filter_map(|e| e.kv.as_ref());
                heard.push((response.watch_id, revisions.map(|kv| kv.mod_revision).collect()));
            }
            true
        });
        heard
    }

    #[test]
    fn everyone_hears_of_their_keys_once_and_in_order() {
        let mut hub = Hub::new(4);
        hub.join(&watch(1, "a", ""), 5, &()).unwrap();
        hub.join(&watch(2, "a", "c"), 5, &()).unwrap();
        hub.join(&watch(3, "z", ""), 5, &()).unwrap();
        let news = [put("a", 5), put("b", 6), put("c", 7)];
        assert_eq!(heard(&mut hub, &news), [(1, vec![5]), (2, vec![5, 6])]);
        assert_eq!(hub.published(), 7);
    }

    #[test]
    fn a_watcher_of_the_future_waits_for_its_revision() {
        let mut hub = Hub::new(4);
        let future = Watch { from: 6, ..watch(1, "a", "") };
        hub.join(&future, 6, &()).unwrap();
        assert_eq!(heard(&mut hub, &[put("a", 5), put("a", 6)]), [(1, vec![6])]);
    }

    #[test]
    fn a_watcher_behind_cannot_join_and_a_full_stream_falls_behind() {
        let mut hub = Hub::new(4);
        assert!(hub.join(&watch(1, "a", ""), 4, &()).is_none());
        hub.join(&watch(1, "a", ""), 5, &()).unwrap();
        let lost = hub.publish(ResponseHeader::default(), &[put("a", 5)], |(), _| false);
        assert_eq!((lost.len(), lost[0].next), (1, 5));
        assert!(hub.is_empty());
    }

    #[test]
    fn the_pair_before_is_only_for_those_who_asked() {
        let changes = put("a", 5);
        let mut asks = watch(1, "a", "");
        assert_eq!(asks.view(&changes.events[0]).prev_kv, None);
        asks.prev_kv = true;
        assert!(asks.view(&changes.events[0]).prev_kv.is_some());
    }
}
