//! What an entry of the replicated log says, and its bytes: one for the kind, then protobuf.

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use wire::etcdserverpb::{
    AlarmRequest, CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
    PutRequest, TxnRequest,
};

use crate::auth::{By, Caller, Change};

const PUT: u8 = 1;
const DELETE: u8 = 2;
const TXN: u8 = 3;
const COMPACT: u8 = 4;
const GRANT: u8 = 5;
const REVOKE: u8 = 6;
const ALARM: u8 = 7;
const AUTH: u8 = 8;
/// Before an operation: who proposed it, if not a client that did not say.
const STORE: u8 = 64;
const USER: u8 = 65;

/// An operation that changes the state.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Write one key.
    Put(PutRequest),
    /// Delete a range of keys.
    Delete(DeleteRangeRequest),
    /// Compare, then do one list of operations or the other.
    Txn(TxnRequest),
    /// Forget old revisions.
    Compact(CompactionRequest),
    /// Create a lease, whose id is set.
    Grant(LeaseGrantRequest),
    /// End a lease and delete its keys.
    Revoke(LeaseRevokeRequest),
    /// Raise or clear an alarm.
    Alarm(AlarmRequest),
    /// Change users and roles.
    Auth(Change),
}

/// An entry that is not an operation.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// Written by a later version, or not by us.
    #[error("unknown kind of operation {0}")]
    Kind(u8),
    /// An entry without a kind.
    #[error("empty operation")]
    Empty,
    /// Who proposed it does not parse.
    #[error("operation of nobody")]
    Caller,
    /// The message does not parse.
    #[error("operation: {0}")]
    Message(#[from] prost::DecodeError),
}

impl Op {
    /// The entry's bytes, made once and shared by log, peers and state.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Put(m) => frame(PUT, m),
            Self::Delete(m) => frame(DELETE, m),
            Self::Txn(m) => frame(TXN, m),
            Self::Compact(m) => frame(COMPACT, m),
            Self::Grant(m) => frame(GRANT, m),
            Self::Revoke(m) => frame(REVOKE, m),
            Self::Alarm(m) => frame(ALARM, m),
            Self::Auth(m) => frame(AUTH, m),
        }
    }

    /// The entry's bytes with who proposes it.
    #[must_use]
    pub fn encode_by(&self, by: &By) -> Vec<u8> {
        let op = self.encode();
        let mut bytes = Vec::with_capacity(op.len() + 32);
        match by {
            By::Client(caller) if caller.revision == 0 => return op,
            By::Store => bytes.push(STORE),
            By::Client(Caller { user, revision }) => {
                bytes.push(USER);
                bytes.put_u64_le(*revision);
                // A request's size bounds the name far below this.
                bytes.put_u32_le(u32::try_from(user.len()).unwrap_or(u32::MAX));
                bytes.put_slice(user.as_bytes());
            }
        }
        bytes.extend_from_slice(&op);
        bytes
    }

    /// Reads an entry with who proposed it.
    ///
    /// # Errors
    /// When the entry was not made by [`Op::encode_by`].
    pub fn decode_by(mut entry: Bytes) -> Result<(By, Self), OpError> {
        let by = match entry.first() {
            Some(&STORE) => {
                entry.advance(1);
                By::Store
            }
            Some(&USER) => {
                entry.advance(1);
                By::Client(caller(&mut entry).ok_or(OpError::Caller)?)
            }
            _ => By::nobody(),
        };
        Ok((by, Self::decode(entry)?))
    }

    /// Reads an entry; keys and values are slices of it.
    ///
    /// # Errors
    /// When the entry was not made by [`Op::encode`].
    pub fn decode(mut entry: Bytes) -> Result<Self, OpError> {
        if entry.is_empty() {
            return Err(OpError::Empty);
        }
        Ok(match entry.get_u8() {
            PUT => Self::Put(PutRequest::decode(entry)?),
            DELETE => Self::Delete(DeleteRangeRequest::decode(entry)?),
            TXN => Self::Txn(TxnRequest::decode(entry)?),
            COMPACT => Self::Compact(CompactionRequest::decode(entry)?),
            GRANT => Self::Grant(LeaseGrantRequest::decode(entry)?),
            REVOKE => Self::Revoke(LeaseRevokeRequest::decode(entry)?),
            ALARM => Self::Alarm(AlarmRequest::decode(entry)?),
            AUTH => Self::Auth(Change::decode(entry)?),
            other => return Err(OpError::Kind(other)),
        })
    }
}

fn caller(entry: &mut Bytes) -> Option<Caller> {
    let revision = entry.try_get_u64_le().ok()?;
    let len = entry.try_get_u32_le().ok()? as usize;
    if entry.len() < len {
        return None;
    }
    let user = String::from_utf8(entry.split_to(len).to_vec()).ok()?;
    Some(Caller { user, revision })
}

fn frame(kind: u8, message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + message.encoded_len());
    bytes.push(kind);
    message.encode_raw(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_proposed_an_operation_comes_back_with_it() {
        let op = Op::Put(PutRequest { key: "k".into(), ..PutRequest::default() });
        let ann = Caller { user: "ann".into(), revision: 7 };
        for by in [By::Store, By::nobody(), By::Client(ann)] {
            let entry = Bytes::from(op.encode_by(&by));
            assert_eq!(Op::decode_by(entry.clone()).unwrap(), (by, op.clone()));
            for cut in 0..entry.len() - 3 {
                assert!(Op::decode_by(entry.slice(..cut)).is_err(), "cut at {cut}");
            }
        }
        assert_eq!(op.encode_by(&By::nobody()), op.encode());
    }
}
