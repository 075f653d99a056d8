//! The listening side.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use futures::StreamExt as _;
use parking_lot::Mutex;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};
use wire::store::peer_server::{Peer, PeerServer};
use wire::store::{Batch, Chunk, Ended, Head, Nothing, Received};

use super::{
    CHUNKS_MAX, CLUSTER, FROM, MESSAGE_BYTES_MAX, Peers, REMOVED, Shared, TO, bytes, hex, id,
};
use crate::replica::Input;
use crate::snapshot::{self, Mark};

/// Callers of other clusters that are told of, each once.
const STRANGERS_MAX: usize = 64;

type Ends = Pin<Box<dyn Stream<Item = Result<Ended, Status>> + Send>>;

/// Hears other members.
#[derive(Clone)]
pub struct Listener {
    shared: Arc<Shared>,
    /// Members of other clusters that were told of.
    strangers: Arc<Mutex<BTreeSet<(u64, u64)>>>,
    /// One snapshot arrives at a time.
    arriving: Arc<tokio::sync::Mutex<()>>,
}

impl Peers {
    /// The service for other members.
    #[must_use]
    pub fn listener(&self) -> PeerServer<Listener> {
        let listener = Listener {
            shared: self.shared.clone(),
            strangers: Arc::default(),
            arriving: Arc::default(),
        };
        PeerServer::new(listener).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

impl Listener {
    /// Who calls, if it means us and belongs to our cluster. A member that we do not know is heard: it may have joined, and
    /// even lead, while we were away, and only its messages tell us so.
    fn caller(&self, metadata: &MetadataMap) -> Result<u64, Status> {
        let ours = self.shared.identity;
        let ids = (id(metadata, CLUSTER), id(metadata, FROM), id(metadata, TO));
        let (Some(cluster), Some(from), Some(to)) = ids else {
            return Err(Status::invalid_argument("no ids in the metadata"));
        };
        if cluster != ours.cluster {
            let (theirs, ours) = (hex(cluster), hex(ours.cluster));
            if self.is_new_stranger(cluster, from) {
                tracing::warn!(from = hex(from), theirs, ours, "a member of another cluster calls");
            }
            let words = format!("cluster ID mismatch: this is {ours}, not {theirs}");
            return Err(Status::failed_precondition(words));
        }
        if self.shared.known.read().removed.contains(&from) {
            return Err(Status::failed_precondition(REMOVED));
        }
        if to != ours.member {
            let words =
                format!("member ID mismatch: this is {}, not {}", hex(ours.member), hex(to));
            return Err(Status::failed_precondition(words));
        }
        Ok(from)
    }

    /// Whether a caller of another cluster is worth a line: it calls again and again.
    fn is_new_stranger(&self, cluster: u64, from: u64) -> bool {
        let mut strangers = self.strangers.lock();
        strangers.len() < STRANGERS_MAX && strangers.insert((cluster, from))
    }

    async fn hear(self, from: u64, mut batches: Streaming<Batch>) -> Result<Ended, Status> {
        let received = self.shared.traffic.received(from);
        while let Some(batch) = batches.message().await? {
            received.inc_by(bytes(&batch.messages));
            for message in batch.messages {
                self.shared.tell(Input::Message(message)).await;
            }
        }
        Ok(Ended {})
    }

    async fn take(&self, from: u64, mut chunks: Streaming<Chunk>) -> Result<(), Status> {
        let first = chunks.message().await?;
        let (head, data) = first.map(|first| (first.head, first.data)).unwrap_or_default();
        let Head { index, term, message } = head.ok_or_else(no_head)?;
        let mark = Mark { index, term };
        let (pieces, mut ready) = tokio::sync::mpsc::channel(CHUNKS_MAX);
        let dir = self.shared.snapshots.clone();
        let writing = self.shared.ctx.tasks.blocking(move || {
            let pieces = std::iter::from_fn(|| ready.blocking_recv());
            snapshot::receive(&daemon::SystemDisk, &dir, mark, pieces)
        });
        let mut next = Some(data);
        while let Some(data) = next {
            if pieces.send(data).await.is_err() {
                break; // the disk refused: it says below why
            }
            next = chunks.message().await?.map(|chunk| chunk.data);
        }
        drop(pieces);
        let members = writing.await.map_err(|error| Status::internal(error.to_string()))?;
        let members = members.map_err(|error| {
            tracing::warn!(from = hex(from), index, %error, "a snapshot cannot be used");
            Status::internal(error.to_string())
        })?;
        tracing::info!(from = hex(from), index, "a snapshot has arrived");
        self.shared.tell(Input::Arrived(mark, members, message)).await;
        Ok(())
    }
}

fn no_head() -> Status {
    Status::invalid_argument("the first chunk has no head")
}

#[tonic::async_trait]
impl Peer for Listener {
    type MessagesStream = Ends;

    async fn messages(&self, request: Request<Streaming<Batch>>) -> Result<Response<Ends>, Status> {
        let from = self.caller(request.metadata())?;
        let ended = self.shared.ctx.shutdown.clone().cancelled_owned();
        let heard = futures::stream::once(self.clone().hear(from, request.into_inner()));
        Ok(Response::new(Box::pin(heard.take_until(ended))))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<Chunk>>,
    ) -> Result<Response<Received>, Status> {
        let from = self.caller(request.metadata())?;
        let _one = self.arriving.lock().await;
        let ended = self.shared.ctx.shutdown.clone();
        tokio::select! {
            () = ended.cancelled() => Err(Status::unavailable("going down")),
            taken = self.take(from, request.into_inner()) => {
                taken.map(|()| Response::new(Received {}))
            }
        }
    }

    async fn probe(&self, request: Request<Nothing>) -> Result<Response<Nothing>, Status> {
        self.caller(request.metadata())?;
        Ok(Response::new(Nothing {}))
    }
}
