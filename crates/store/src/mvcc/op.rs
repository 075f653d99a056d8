//! What an entry of the replicated log says, and its bytes: one for the kind, then protobuf.

use bytes::{Buf, Bytes};
use prost::Message;
use wire::etcdserverpb::{
    AlarmRequest, CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
    PutRequest, TxnRequest,
};

const PUT: u8 = 1;
const DELETE: u8 = 2;
const TXN: u8 = 3;
const COMPACT: u8 = 4;
const GRANT: u8 = 5;
const REVOKE: u8 = 6;
const ALARM: u8 = 7;

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
        }
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
            other => return Err(OpError::Kind(other)),
        })
    }
}

fn frame(kind: u8, message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + message.encoded_len());
    bytes.push(kind);
    message.encode_raw(&mut bytes);
    bytes
}
