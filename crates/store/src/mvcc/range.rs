//! Reads: one revision of a span of keys, filtered, sorted and cut.

use bytes::Bytes;
use wire::etcdserverpb::range_request::{SortOrder, SortTarget};
use wire::etcdserverpb::{RangeRequest, RangeResponse};
use wire::mvccpb::KeyValue;

use super::Archive;
use super::error::Error;
use super::index::{Index, Revision, Version};
use super::span::Span;

/// Which revisions a reader may see.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// The newest, and the one read if none is named.
    pub current: i64,
    /// The oldest that is complete.
    pub compacted: i64,
}

/// What a range request found: all of its answer but the values that are cold.
#[derive(Debug, Default)]
pub struct Found {
    kvs: Vec<KeyValue>,
    cold: Cold,
    total: usize,
    limit: usize,
    order: Option<(SortTarget, bool)>,
    keys_only: bool,
}

impl Found {
    /// Whether the answer is there without the archive.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.cold.places.is_empty()
    }

    /// The answer; the header is the caller's.
    ///
    /// # Errors
    /// When the archive lost a value.
    pub fn finish(self, archive: &dyn Archive) -> Result<RangeResponse, Error> {
        let Self { mut kvs, cold, total, limit, order, keys_only } = self;
        cold.fill(&mut kvs, archive)?;
        if let Some((target, descending)) = order {
            sort(&mut kvs, target, descending);
        }
        let more = kvs.len() > limit;
        kvs.truncate(limit);
        if keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        Ok(RangeResponse { header: None, kvs, more, count: count(total) })
    }
}

/// Finds what a range request asks for.
///
/// # Errors
/// When the revision is compacted or in the future.
pub fn find(index: &Index, view: View, request: &RangeRequest) -> Result<Found, Error> {
    let at = if request.revision <= 0 { view.current } else { request.revision };
    if at > view.current {
        return Err(Error::FutureRevision);
    }
    if at < view.compacted {
        return Err(Error::Compacted);
    }
    let span = Span::new(request.key.clone(), request.range_end.clone());
    let live = index.live(&span, at);
    if request.count_only {
        return Ok(Found { total: live.count(), ..Found::default() });
    }
    let limit = usize::try_from(request.limit).ok().filter(|n| *n > 0).unwrap_or(usize::MAX);
    let order = order(request);
    // Without a sort order etcd sorts by another target than the key only what the limit let in.
    let unsorted = order.is_none() || request.sort_order() == SortOrder::None;
    let in_order = unsorted && !filters(request);
    let fetch = if in_order { limit.saturating_add(1) } else { usize::MAX };
    let needs_value = !request.keys_only || order.is_some_and(|o| o.0 == SortTarget::Value);
    let (mut total, mut kvs, mut cold) = (0, Vec::new(), Cold::default());
    for (key, version) in live {
        total += 1;
        if !passes(request, version) || kvs.len() >= fetch {
            continue;
        }
        let mut kv = version.bare(key);
        if needs_value {
            match &version.value {
                Some(value) => kv.value = value.clone(),
                None => cold.push(kvs.len(), version),
            }
        }
        kvs.push(kv);
    }
    // What is only there to show that there is more needs no value.
    if order.is_none() {
        cold.truncate(limit);
    }
    Ok(Found { kvs, cold, total, limit, order, keys_only: request.keys_only })
}

/// A version's value, from memory or the archive.
///
/// # Errors
/// When it is cold and the archive does not have it.
pub fn value(version: &Version, archive: &dyn Archive) -> Result<Bytes, Error> {
    match &version.value {
        Some(value) => Ok(value.clone()),
        None => archive.value(version.at, version.size).ok_or(Error::Corrupt),
    }
}

/// Pairs whose values have to be read from the archive, all at once.
#[derive(Debug, Default)]
pub struct Cold {
    places: Vec<usize>,
    wanted: Vec<(Revision, u32)>,
}

impl Cold {
    /// Adds the pair at a place among others.
    pub fn push(&mut self, place: usize, version: &Version) {
        self.places.push(place);
        self.wanted.push((version.at, version.size));
    }

    /// Leaves only those before a place; they were added in the order of their places.
    fn truncate(&mut self, place: usize) {
        let left = self.places.partition_point(|p| *p < place);
        self.places.truncate(left);
        self.wanted.truncate(left);
    }

    /// Reads the values.
    ///
    /// # Errors
    /// When the archive lost one.
    pub fn fill(self, kvs: &mut [KeyValue], archive: &dyn Archive) -> Result<(), Error> {
        if self.places.is_empty() {
            return Ok(());
        }
        for (place, value) in self.places.into_iter().zip(archive.values(&self.wanted)) {
            kvs[place].value = value.ok_or(Error::Corrupt)?;
        }
        Ok(())
    }
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn filters(request: &RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

fn passes(request: &RangeRequest, version: &Version) -> bool {
    let within = |at: i64, min: i64, max: i64| at >= min && (max == 0 || at <= max);
    within(version.at.main, request.min_mod_revision, request.max_mod_revision)
        && within(version.create, request.min_create_revision, request.max_create_revision)
}

/// The target and direction to sort by, or none when the order of keys will do.
fn order(request: &RangeRequest) -> Option<(SortTarget, bool)> {
    let target = request.sort_target();
    match (request.sort_order(), target) {
        (SortOrder::None | SortOrder::Ascend, SortTarget::Key) => None,
        (SortOrder::Descend, _) => Some((target, true)),
        (SortOrder::None | SortOrder::Ascend, _) => Some((target, false)),
    }
}

fn sort(kvs: &mut [KeyValue], target: SortTarget, descending: bool) {
    kvs.sort_by(|a, b| {
        let ordering = match target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        if descending { ordering.reverse() } else { ordering }
    });
}
