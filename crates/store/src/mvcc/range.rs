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

/// Answers a range request; the header is the caller's.
///
/// # Errors
/// When the revision is compacted or in the future, or the archive lost a value.
pub fn range(
    index: &Index,
    view: View,
    archive: &dyn Archive,
    request: &RangeRequest,
) -> Result<RangeResponse, Error> {
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
        return Ok(RangeResponse { count: count(live.count()), ..Default::default() });
    }
    let limit = usize::try_from(request.limit).ok().filter(|n| *n > 0).unwrap_or(usize::MAX);
    let order = order(request);
    // Without a sort order etcd sorts by another target than the key only what the limit let in.
    let unsorted = order.is_none() || request.sort_order() == SortOrder::None;
    let in_order = unsorted && !filters(request);
    let fetch = if in_order { limit.saturating_add(1) } else { usize::MAX };
    let needs_value = !request.keys_only || order.is_some_and(|o| o.0 == SortTarget::Value);
    let mut total = 0;
    let mut kvs = Vec::new();
    for (key, version) in live {
        total += 1;
        if !passes(request, version) || kvs.len() >= fetch {
            continue;
        }
        let mut kv = version.bare(key);
        if needs_value {
            kv.value = value(version, archive)?;
        }
        kvs.push(kv);
    }
    if let Some((target, descending)) = order {
        sort(&mut kvs, target, descending);
    }
    let more = kvs.len() > limit;
    kvs.truncate(limit);
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    Ok(RangeResponse { header: None, kvs, more, count: count(total) })
}

/// A version's value, from memory or the archive.
///
/// # Errors
/// When it is cold and the archive does not have it.
pub fn value(version: &Version, archive: &dyn Archive) -> Result<Bytes, Error> {
    match &version.value {
        Some(value) => Ok(value.clone()),
        None => archived(archive, version.at),
    }
}

fn archived(archive: &dyn Archive, at: Revision) -> Result<Bytes, Error> {
    archive.value(at).ok_or(Error::Corrupt)
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
