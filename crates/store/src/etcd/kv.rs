//! The KV service.

use tonic::{Request, Response, Status};
use wire::etcdserverpb::kv_server::Kv;
use wire::etcdserverpb::request_op::Request as Nested;
use wire::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};

use super::Services;
use super::errors::{status, wrong_reply};
use crate::mvcc::{Op, Reply, check};

#[tonic::async_trait]
impl Kv for Services {
    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let by = self.by(&request).await?;
        let request = request.into_inner();
        check::range(&request).map_err(status)?;
        if !request.serializable {
            self.votes()?;
            self.engine.turn().await?;
        }
        let mut response = self.engine.range(&by, &request)?;
        self.engine.sign(&mut response.header);
        Ok(Response::new(response))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        self.votes()?;
        let by = self.by(&request).await?;
        let request = request.into_inner();
        check::put(&request).map_err(status)?;
        match self.engine.propose_growth(&by, &Op::Put(request)).await? {
            Reply::Put(mut response) => {
                self.engine.sign(&mut response.header);
                Ok(Response::new(response))
            }
            _ => Err(wrong_reply()),
        }
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        self.votes()?;
        let by = self.by(&request).await?;
        let request = request.into_inner();
        check::delete(&request).map_err(status)?;
        match self.engine.propose(&by, &Op::Delete(request)).await? {
            Reply::Delete(mut response) => {
                self.engine.sign(&mut response.header);
                Ok(Response::new(response))
            }
            _ => Err(wrong_reply()),
        }
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        self.votes()?;
        let by = self.by(&request).await?;
        let request = request.into_inner();
        check::txn(&request).map_err(status)?;
        let mut response = if check::read_only(&request) {
            self.engine.turn().await?;
            self.engine.read(&by, &request)?
        } else {
            let grows = grows(&request);
            let op = Op::Txn(request);
            let reply = if grows {
                self.engine.propose_growth(&by, &op).await?
            } else {
                self.engine.propose(&by, &op).await?
            };
            match reply {
                Reply::Txn(response) => response,
                _ => return Err(wrong_reply()),
            }
        };
        self.engine.sign(&mut response.header);
        Ok(Response::new(response))
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        self.votes()?;
        let by = self.by(&request).await?;
        match self.engine.propose(&by, &Op::Compact(request.into_inner())).await? {
            Reply::Compact(mut response) => {
                self.engine.sign(&mut response.header);
                Ok(Response::new(response))
            }
            _ => Err(wrong_reply()),
        }
    }
}

/// Whether a transaction may add data.
fn grows(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).any(|op| match &op.request {
        Some(Nested::RequestPut(_)) => true,
        Some(Nested::RequestTxn(nested)) => grows(nested),
        _ => false,
    })
}
