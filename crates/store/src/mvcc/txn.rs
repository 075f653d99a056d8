//! Writes: the changes of one transaction, and the transactions themselves.

use std::cmp::Ordering;

use bytes::Bytes;
use wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use wire::etcdserverpb::request_op::Request;
use wire::etcdserverpb::response_op::Response;
use wire::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
    RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use wire::mvccpb::event::EventType;
use wire::mvccpb::{Event, KeyValue};

use super::error::Error;
use super::index::{Revision, Version};
use super::range::{self, View};
use super::span::Span;
use super::{Archive, Mvcc};

/// A transaction under way: what it changed so far, all at one revision.
pub(super) struct Write<'a> {
    mvcc: &'a mut Mvcc,
    archive: &'a dyn Archive,
    main: i64,
    events: Vec<Event>,
}

/// Which branches a transaction takes, decided before it changes anything.
pub(super) struct Path {
    succeeded: bool,
    nested: Vec<Path>,
}

impl<'a> Write<'a> {
    pub(super) fn new(mvcc: &'a mut Mvcc, archive: &'a dyn Archive) -> Self {
        let main = mvcc.revision + 1;
        Self { mvcc, archive, main, events: Vec::new() }
    }

    /// The changes; the store's revision moves if there are any.
    pub(super) fn finish(self) -> Vec<Event> {
        if !self.events.is_empty() {
            self.mvcc.revision = self.main;
        }
        self.events
    }

    fn revision(&self) -> i64 {
        if self.events.is_empty() { self.mvcc.revision } else { self.main }
    }

    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader { revision: self.revision(), ..Default::default() })
    }

    fn next(&self) -> Revision {
        // A request's size bounds its changes far below this.
        let sub = u32::try_from(self.events.len()).unwrap_or(u32::MAX);
        Revision { main: self.main, sub }
    }

    pub(super) fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        let view = View { current: self.revision(), compacted: self.mvcc.compacted };
        let mut response = range::find(&self.mvcc.index, view, request)?.finish(self.archive)?;
        response.header = self.header();
        Ok(response)
    }

    pub(super) fn put(&mut self, request: &PutRequest) -> Result<PutResponse, Error> {
        check_lease(self.mvcc, request)?;
        check_old(self.mvcc, request)?;
        let at = self.next();
        let key = self.mvcc.index.key(&request.key);
        let old = self.mvcc.index.history(&request.key).and_then(|h| h.at(i64::MAX));
        let read = request.prev_kv || request.ignore_value;
        let (prev, known) = old.map(|old| self.pair(&key, old, read)).transpose()?.unzip();
        let lease = match &prev {
            Some(prev) if request.ignore_lease => prev.lease,
            _ => request.lease,
        };
        let value = match &prev {
            Some(prev) if request.ignore_value => prev.value.clone(),
            _ => request.value.clone(),
        };
        let version = Version {
            at,
            create: prev.as_ref().map_or(at.main, |p| p.create_revision),
            version: prev.as_ref().map_or(1, |p: &KeyValue| p.version + 1),
            lease,
            size: u32::try_from(value.len()).unwrap_or(u32::MAX),
            value: None,
        };
        // A slice of a message with many entries would keep all of it as long as the value is the newest.
        let own = if version.is_large() { value.clone() } else { Bytes::copy_from_slice(&value) };
        let version = Version { value: Some(own), ..version };
        let kv = KeyValue { value, ..version.bare(&key) };
        self.mvcc.push(&key, version);
        self.mvcc.leases.attach(&key, prev.as_ref().map_or(0, |p| p.lease), lease);
        let answer = prev.clone().filter(|_| request.prev_kv);
        let prev_kv = prev.filter(|_| known == Some(true));
        self.events.push(Event { r#type: EventType::Put.into(), kv: Some(kv), prev_kv });
        Ok(PutResponse { header: self.header(), prev_kv: answer })
    }

    pub(super) fn delete(
        &mut self,
        request: &DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, Error> {
        let span = Span::new(request.key.clone(), request.range_end.clone());
        let live = self.mvcc.index.live(&span, i64::MAX);
        let doomed: Vec<(KeyValue, bool)> =
            live.map(|(key, v)| self.pair(key, v, request.prev_kv)).collect::<Result<_, _>>()?;
        for (kv, known) in &doomed {
            self.bury(kv.clone(), *known);
        }
        let deleted = i64::try_from(doomed.len()).unwrap_or(i64::MAX);
        let prev_kvs = doomed.into_iter().filter(|_| request.prev_kv).map(|(kv, _)| kv).collect();
        Ok(DeleteRangeResponse { header: self.header(), deleted, prev_kvs })
    }

    /// A pair as it is, and whether its value is there: one that is cold is read only if it must be.
    fn pair(&self, key: &Bytes, version: &Version, read: bool) -> Result<(KeyValue, bool), Error> {
        let known = read || version.value.is_some();
        let value = if known { range::value(version, self.archive)? } else { Bytes::new() };
        Ok((KeyValue { value, ..version.bare(key) }, known))
    }

    /// Deletes one live key, the value of which is `known` or not.
    fn bury(&mut self, prev: KeyValue, known: bool) {
        let at = self.next();
        let tombstone = Version::tombstone(at);
        let kv = KeyValue { key: prev.key.clone(), mod_revision: at.main, ..Default::default() };
        self.mvcc.push(&prev.key, tombstone);
        self.mvcc.leases.attach(&prev.key, prev.lease, 0);
        self.events.push(Event {
            r#type: EventType::Delete.into(),
            kv: Some(kv),
            prev_kv: Some(prev).filter(|_| known),
        });
    }

    /// Deletes the keys of a lease that ends.
    pub(super) fn bury_keys<'k>(&mut self, keys: impl Iterator<Item = &'k Bytes>) {
        for key in keys {
            let live = self.mvcc.index.history(key).and_then(|h| h.at(i64::MAX));
            let Some(Ok((prev, known))) = live.map(|v| self.pair(key, v, false)) else { continue };
            self.bury(prev, known);
        }
    }

    pub(super) fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, Error> {
        let path = choose(self.mvcc, self.archive, request)?;
        check(self.mvcc, request, &path)?;
        self.run(request, &path)
    }

    fn run(&mut self, request: &TxnRequest, path: &Path) -> Result<TxnResponse, Error> {
        let mut nested = path.nested.iter();
        let mut responses = Vec::new();
        for op in branch(request, path) {
            let response = match &op.request {
                Some(Request::RequestRange(r)) => Some(Response::ResponseRange(self.range(r)?)),
                Some(Request::RequestPut(r)) => Some(Response::ResponsePut(self.put(r)?)),
                Some(Request::RequestDeleteRange(r)) => {
                    Some(Response::ResponseDeleteRange(self.delete(r)?))
                }
                Some(Request::RequestTxn(r)) => match nested.next() {
                    Some(path) => Some(Response::ResponseTxn(nested_answer(self.run(r, path)?))),
                    None => None,
                },
                None => None,
            };
            responses.push(ResponseOp { response });
        }
        Ok(TxnResponse { header: self.header(), succeeded: path.succeeded, responses })
    }
}

/// Answers a transaction that only reads.
pub(super) fn read(
    mvcc: &Mvcc,
    archive: &dyn Archive,
    request: &TxnRequest,
) -> Result<TxnResponse, Error> {
    let path = choose(mvcc, archive, request)?;
    check(mvcc, request, &path)?;
    answer(mvcc, archive, request, &path)
}

fn answer(
    mvcc: &Mvcc,
    archive: &dyn Archive,
    request: &TxnRequest,
    path: &Path,
) -> Result<TxnResponse, Error> {
    let mut nested = path.nested.iter();
    let mut responses = Vec::new();
    for op in branch(request, path) {
        let response = match &op.request {
            Some(Request::RequestRange(r)) => {
                Some(Response::ResponseRange(mvcc.range(archive, r)?))
            }
            Some(Request::RequestTxn(r)) => match nested.next() {
                Some(path) => {
                    Some(Response::ResponseTxn(nested_answer(answer(mvcc, archive, r, path)?)))
                }
                None => None,
            },
            _ => None,
        };
        responses.push(ResponseOp { response });
    }
    Ok(TxnResponse { header: Some(mvcc.header()), succeeded: path.succeeded, responses })
}

/// etcd leaves the header of a nested transaction empty.
fn nested_answer(response: TxnResponse) -> TxnResponse {
    TxnResponse { header: Some(ResponseHeader::default()), ..response }
}

fn branch<'r>(request: &'r TxnRequest, path: &Path) -> &'r [RequestOp] {
    if path.succeeded { &request.success } else { &request.failure }
}

fn choose(mvcc: &Mvcc, archive: &dyn Archive, request: &TxnRequest) -> Result<Path, Error> {
    let mut path = Path { succeeded: true, nested: Vec::new() };
    for compare in &request.compare {
        path.succeeded = path.succeeded && holds(mvcc, archive, compare)?;
    }
    let nested = branch(request, &path).iter().filter_map(|op| match &op.request {
        Some(Request::RequestTxn(nested)) => Some(choose(mvcc, archive, nested)),
        _ => None,
    });
    path.nested = nested.collect::<Result<_, _>>()?;
    Ok(path)
}

/// Everything that could fail half way is refused before anything is changed: the puts of all
/// levels first, as etcd has it, then the ranges.
fn check(mvcc: &Mvcc, request: &TxnRequest, path: &Path) -> Result<(), Error> {
    each(request, path, &|op| match op {
        // The other way round than for a single put, as etcd has it.
        Request::RequestPut(put) => check_old(mvcc, put).and_then(|()| check_lease(mvcc, put)),
        _ => Ok(()),
    })?;
    each(request, path, &|op| match op {
        Request::RequestRange(range) if range.revision > mvcc.revision => {
            Err(Error::FutureRevision)
        }
        Request::RequestRange(range) if (1..mvcc.compacted).contains(&range.revision) => {
            Err(Error::Compacted)
        }
        _ => Ok(()),
    })
}

/// Visits the operations that will run, those of nested transactions in their place.
fn each(
    request: &TxnRequest,
    path: &Path,
    visit: &dyn Fn(&Request) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut nested = path.nested.iter();
    for op in branch(request, path).iter().filter_map(|op| op.request.as_ref()) {
        match op {
            Request::RequestTxn(txn) => nested.next().map_or(Ok(()), |p| each(txn, p, visit))?,
            other => visit(other)?,
        }
    }
    Ok(())
}

fn check_old(mvcc: &Mvcc, request: &PutRequest) -> Result<(), Error> {
    if request.ignore_value || request.ignore_lease {
        let live = mvcc.index.history(&request.key).and_then(|h| h.at(i64::MAX));
        live.ok_or(Error::KeyNotFound)?;
    }
    Ok(())
}

fn check_lease(mvcc: &Mvcc, request: &PutRequest) -> Result<(), Error> {
    if request.lease != 0 && mvcc.leases.find(request.lease).is_none() {
        return Err(Error::LeaseNotFound);
    }
    Ok(())
}

fn holds(mvcc: &Mvcc, archive: &dyn Archive, compare: &Compare) -> Result<bool, Error> {
    let span = Span::new(compare.key.clone(), compare.range_end.clone());
    let mut live = mvcc.index.live(&span, i64::MAX).peekable();
    if live.peek().is_none() {
        // A missing key has revisions and version 0, but no value, not even an empty one.
        let missing = Version::tombstone(Revision { main: 0, sub: 0 });
        return Ok(compare.target() != CompareTarget::Value && matches(compare, &missing, archive)?);
    }
    for (_, version) in live {
        if !matches(compare, version, archive)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn matches(compare: &Compare, version: &Version, archive: &dyn Archive) -> Result<bool, Error> {
    let ordering = match (compare.target(), &compare.target_union) {
        (CompareTarget::Value, wanted) => {
            let wanted = match wanted {
                Some(TargetUnion::Value(value)) => value.as_ref(),
                _ => &[],
            };
            range::value(version, archive)?.as_ref().cmp(wanted)
        }
        (CompareTarget::Version, Some(TargetUnion::Version(v))) => version.version.cmp(v),
        (CompareTarget::Create, Some(TargetUnion::CreateRevision(v))) => version.create.cmp(v),
        (CompareTarget::Mod, Some(TargetUnion::ModRevision(v))) => version.at.main.cmp(v),
        (CompareTarget::Lease, Some(TargetUnion::Lease(v))) => version.lease.cmp(v),
        (CompareTarget::Version, _) => version.version.cmp(&0),
        (CompareTarget::Create, _) => version.create.cmp(&0),
        (CompareTarget::Mod, _) => version.at.main.cmp(&0),
        (CompareTarget::Lease, _) => version.lease.cmp(&0),
    };
    Ok(match compare.result() {
        CompareResult::Equal => ordering == Ordering::Equal,
        CompareResult::Greater => ordering == Ordering::Greater,
        CompareResult::Less => ordering == Ordering::Less,
        CompareResult::NotEqual => ordering != Ordering::Equal,
    })
}
