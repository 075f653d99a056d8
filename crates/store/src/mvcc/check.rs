//! What is wrong with a request whatever the state: refused before it enters the log.

use std::collections::BTreeSet;

use bytes::Bytes;
use wire::etcdserverpb::range_request::{SortOrder, SortTarget};
use wire::etcdserverpb::request_op::Request;
use wire::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};

use super::error::Error;
use super::span::Span;

/// Operations and comparisons in one list of a transaction, nesting included.
pub const TXN_OPS_MAX: usize = 128;
/// Bytes of one request.
pub const REQUEST_BYTES_MAX: usize = 1536 * 1024;

/// Checks a range request.
///
/// # Errors
/// When the key is missing or the sort order unknown.
pub fn range(request: &RangeRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    let known = SortOrder::try_from(request.sort_order).is_ok()
        && SortTarget::try_from(request.sort_target).is_ok();
    if known { Ok(()) } else { Err(Error::InvalidSort) }
}

/// Checks a put request.
///
/// # Errors
/// When the key is missing, or what is to be ignored is given.
pub fn put(request: &PutRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

/// Checks a delete request.
///
/// # Errors
/// When the key is missing.
pub fn delete(request: &DeleteRangeRequest) -> Result<(), Error> {
    if request.key.is_empty() { Err(Error::EmptyKey) } else { Ok(()) }
}

/// Checks a transaction with everything nested in it.
///
/// # Errors
/// When it is too large, an operation is malformed, or a key could be written twice.
pub fn txn(request: &TxnRequest) -> Result<(), Error> {
    shape(request, TXN_OPS_MAX)?;
    writes(&request.success)?;
    writes(&request.failure)?;
    Ok(())
}

/// Whether a transaction cannot change anything.
#[must_use]
pub fn read_only(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).all(|op| match &op.request {
        Some(Request::RequestRange(_)) | None => true,
        Some(Request::RequestTxn(txn)) => read_only(txn),
        Some(_) => false,
    })
}

fn shape(request: &TxnRequest, ops_max: usize) -> Result<(), Error> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    let Some(left) = ops_max.checked_sub(ops) else {
        return Err(Error::TooManyOps);
    };
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Error::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(request)) => range(request)?,
            Some(Request::RequestPut(request)) => put(request)?,
            Some(Request::RequestDeleteRange(request)) => delete(request)?,
            Some(Request::RequestTxn(request)) => shape(request, left)?,
            None => return Err(Error::EmptyKey),
        }
    }
    Ok(())
}

/// What a list of operations may write.
#[derive(Default)]
struct Writes {
    puts: BTreeSet<Bytes>,
    deletes: Vec<Span>,
}

impl Writes {
    fn deleted(&self, key: &Bytes) -> bool {
        self.deletes.iter().any(|span| span.contains(key))
    }

    fn put(&mut self, key: &Bytes) -> Result<(), Error> {
        if self.deleted(key) || !self.puts.insert(key.clone()) {
            return Err(Error::DuplicateKey);
        }
        Ok(())
    }
}

/// Refuses a key that is put twice, or put and deleted. Both branches of a nested transaction may
/// put the same key, since only one of them runs.
fn writes(ops: &[RequestOp]) -> Result<Writes, Error> {
    let mut all = Writes::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(delete)) = &op.request {
            all.deletes.push(Span::new(delete.key.clone(), delete.range_end.clone()));
        }
    }
    for op in ops {
        let Some(Request::RequestTxn(nested)) = &op.request else { continue };
        let (success, failure) = (writes(&nested.success)?, writes(&nested.failure)?);
        for key in &success.puts {
            all.put(key)?;
        }
        for key in failure.puts.difference(&success.puts) {
            all.put(key)?;
        }
        all.deletes.extend(success.deletes);
        all.deletes.extend(failure.deletes);
    }
    for op in ops {
        if let Some(Request::RequestPut(put)) = &op.request {
            all.put(&put.key)?;
        }
    }
    Ok(all)
}
