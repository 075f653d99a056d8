//! The etcd client: reads and conditional transactions, in the few forms the registry needs.

use std::time::Duration;

use bytes::Bytes;
use daemon::Channel;
use wire::etcdserverpb::kv_client::KvClient;
use wire::etcdserverpb::lease_client::LeaseClient;
use wire::etcdserverpb::watch_client::WatchClient;
use wire::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest,
    RangeResponse, RequestOp, TxnRequest, compare, request_op, response_op,
};

/// How long the store may take to answer before the client hears of it.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Answers may hold a page of large objects.
const MESSAGE_BYTES_MAX: usize = 256 << 20;
/// The key on which API servers agree who compacts, upstream's.
const COMPACTED: &[u8] = b"compact_rev_key";
/// What etcd allows in one transaction.
pub(crate) const TXN_OPS_MAX: usize = 128;

/// A stored value and when it was written.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    /// The whole key.
    pub(crate) key: Bytes,
    /// The object as it is stored.
    pub(crate) value: Bytes,
    /// The revision that wrote it.
    pub(crate) revision: i64,
}

/// One page of a range.
#[derive(Debug)]
pub(crate) struct Page {
    /// The store's revision at which the page was read.
    pub(crate) revision: i64,
    /// In key order.
    pub(crate) items: Vec<Stored>,
    /// Whether there is more behind the last item.
    pub(crate) more: bool,
}

/// Why the store did not do as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The revision asked for is gone.
    #[error("revision compacted")]
    Compacted,
    /// The revision asked for is yet to come.
    #[error("revision in the future")]
    Future,
    /// The object is larger than the store takes.
    #[error("request is too large")]
    TooLarge,
    /// No answer in time, or no store.
    #[error("store: {0}")]
    Unavailable(String),
}

impl From<tonic::Status> for StoreError {
    fn from(status: tonic::Status) -> Self {
        let message = status.message();
        if message.contains("has been compacted") {
            Self::Compacted
        } else if message.contains("is a future revision") {
            Self::Future
        } else if message.contains("request is too large") {
            Self::TooLarge
        } else {
            Self::Unavailable(format!("{:?}: {message}", status.code()))
        }
    }
}

/// A write within a transaction.
#[derive(Debug, Clone)]
pub(crate) enum Write {
    /// Store this value, under a lease if not 0.
    Put { key: Bytes, value: Bytes, lease: i64 },
    /// Remove this key.
    Delete { key: Bytes },
}

/// A condition of a transaction: the key was last written at this revision, 0 for absent.
#[derive(Debug, Clone)]
pub(crate) struct Expect {
    pub(crate) key: Bytes,
    pub(crate) revision: i64,
}

/// How a transaction ended.
#[derive(Debug)]
pub(crate) enum TxnEnd {
    /// Written at this revision.
    Done(i64),
    /// Some condition failed; the present values of the keys expected, in their order.
    Failed(Vec<Option<Stored>>),
}

/// A client of the store. Clones share the connection.
#[derive(Clone, Debug)]
pub(crate) struct Etcd {
    kv: KvClient<Channel>,
    watch: WatchClient<Channel>,
    lease: LeaseClient<Channel>,
}

impl Etcd {
    /// A client over `channel`.
    pub(crate) fn new(channel: Channel) -> Self {
        Self {
            kv: KvClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
            watch: WatchClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
            lease: LeaseClient::new(channel),
        }
    }

    /// The watch service.
    pub(crate) fn watch(&self) -> WatchClient<Channel> {
        self.watch.clone()
    }

    async fn within<T>(
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(TIMEOUT, call).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => Err(StoreError::Unavailable("no answer in time".into())),
        }
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        let mut kv = self.kv.clone();
        Self::within(kv.range(request)).await
    }

    /// The value of one key, newest, or `None`; with the store's revision.
    pub(crate) async fn get(&self, key: &Bytes) -> Result<(Option<Stored>, i64), StoreError> {
        let request = RangeRequest { key: key.clone(), ..RangeRequest::default() };
        let answer = self.range(request).await?;
        let revision = answer.header.unwrap_or_default().revision;
        Ok((answer.kvs.into_iter().next().map(stored), revision))
    }

    /// The store's present revision, by a linearizable read.
    pub(crate) async fn revision(&self) -> Result<i64, StoreError> {
        let key = Bytes::from_static(b"/registry/~");
        let request = RangeRequest { key, count_only: true, ..RangeRequest::default() };
        Ok(self.range(request).await?.header.unwrap_or_default().revision)
    }

    /// At most `limit` (0: all) keys from `start` to `end` (exclusive) at `revision` (0: newest).
    pub(crate) async fn page(
        &self,
        start: Bytes,
        end: Bytes,
        limit: i64,
        revision: i64,
    ) -> Result<Page, StoreError> {
        let request =
            RangeRequest { key: start, range_end: end, limit, revision, ..RangeRequest::default() };
        let answer = self.range(request).await?;
        let at = if revision > 0 { revision } else { answer.header.unwrap_or_default().revision };
        Ok(Page {
            revision: at,
            items: answer.kvs.into_iter().map(stored).collect(),
            more: answer.more,
        })
    }

    /// Writes all or nothing, if every expectation holds.
    pub(crate) async fn txn(
        &self,
        expect: &[Expect],
        writes: Vec<Write>,
    ) -> Result<TxnEnd, StoreError> {
        let request = TxnRequest {
            compare: expect.iter().map(unchanged).collect(),
            success: writes.into_iter().map(operation).collect(),
            failure: expect.iter().map(|e| read(&e.key)).collect(),
        };
        let mut kv = self.kv.clone();
        let answer = Self::within(kv.txn(request)).await?;
        if answer.succeeded {
            return Ok(TxnEnd::Done(answer.header.unwrap_or_default().revision));
        }
        let present = answer.responses.into_iter().map(|op| match op.response {
            Some(response_op::Response::ResponseRange(range)) => {
                range.kvs.into_iter().next().map(stored)
            }
            _ => None,
        });
        Ok(TxnEnd::Failed(present.collect()))
    }

    /// One turn of compacting, of which each interval has one among all API servers: whoever still knows the newest
    /// `turn` takes it and compacts up to `revision` (0: not yet). The turn to know next time, and the store's
    /// revision by now.
    pub(crate) async fn compact(&self, turn: i64, revision: i64) -> Result<(i64, i64), StoreError> {
        let key = Bytes::from_static(COMPACTED);
        let value = Bytes::from(revision.to_string());
        let put = PutRequest { key: key.clone(), value, ..PutRequest::default() };
        let request = TxnRequest {
            compare: vec![Compare {
                key: key.clone(),
                target: compare::CompareTarget::Version.into(),
                result: compare::CompareResult::Equal.into(),
                target_union: Some(compare::TargetUnion::Version(turn)),
                range_end: Bytes::new(),
            }],
            success: vec![RequestOp { request: Some(request_op::Request::RequestPut(put)) }],
            failure: vec![read(&key)],
        };
        let mut kv = self.kv.clone();
        let answer = Self::within(kv.txn(request)).await?;
        let now = answer.header.unwrap_or_default().revision;
        if !answer.succeeded {
            let taken = answer.responses.into_iter().find_map(|op| match op.response {
                Some(response_op::Response::ResponseRange(range)) => range.kvs.into_iter().next(),
                _ => None,
            });
            return Ok((taken.map_or(0, |kv| kv.version), now));
        }
        if revision > 0 {
            let mut kv = self.kv.clone();
            let request = CompactionRequest { revision, physical: false };
            match Self::within(kv.compact(request)).await {
                // Somebody else compacts as well.
                Ok(_) | Err(StoreError::Compacted) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((turn + 1, now))
    }

    /// A lease that ends after `ttl_s` seconds, for keys that should vanish by themselves.
    pub(crate) async fn grant(&self, ttl_s: i64) -> Result<i64, StoreError> {
        let mut lease = self.lease.clone();
        let request = LeaseGrantRequest { ttl: ttl_s, id: 0 };
        Ok(Self::within(lease.lease_grant(request)).await?.id)
    }
}

fn stored(kv: wire::mvccpb::KeyValue) -> Stored {
    Stored { key: kv.key, value: kv.value, revision: kv.mod_revision }
}

fn unchanged(expect: &Expect) -> Compare {
    Compare {
        key: expect.key.clone(),
        target: compare::CompareTarget::Mod.into(),
        result: compare::CompareResult::Equal.into(),
        target_union: Some(compare::TargetUnion::ModRevision(expect.revision)),
        range_end: Bytes::new(),
    }
}

fn read(key: &Bytes) -> RequestOp {
    let range = RangeRequest { key: key.clone(), ..RangeRequest::default() };
    RequestOp { request: Some(request_op::Request::RequestRange(range)) }
}

fn operation(write: Write) -> RequestOp {
    RequestOp {
        request: Some(match write {
            Write::Put { key, value, lease } => request_op::Request::RequestPut(PutRequest {
                key,
                value,
                lease,
                ..PutRequest::default()
            }),
            Write::Delete { key } => request_op::Request::RequestDeleteRange(DeleteRangeRequest {
                key,
                ..DeleteRangeRequest::default()
            }),
        }),
    }
}
