//! The Lease service.

use std::pin::Pin;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use wire::etcdserverpb::lease_client::LeaseClient;
use wire::etcdserverpb::lease_server::Lease;
use wire::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};

use super::Services;
use super::errors::{no_leader, wrong_reply};
use crate::mvcc::{Op, Reply};
use crate::replica::Refusal;

impl Services {
    /// Gives a lease its full life again: the leader counts it.
    async fn renew(&self, id: i64) -> Result<LeaseKeepAliveResponse, Status> {
        let ttl = match self.leader().await? {
            None => {
                // A leader of the past must not promise what the next one does not know of.
                self.engine.turn().await?;
                if !self.engine.keeps_leases() {
                    return Err(no_leader());
                }
                let now = self.engine.clock.monotonic();
                self.engine.lessor.lock().renew(id, now).unwrap_or(0)
            }
            Some(leader) => {
                let request = futures::stream::iter([LeaseKeepAliveRequest { id }]);
                let answers = LeaseClient::new(leader).lease_keep_alive(request).await?;
                let answer = answers.into_inner().message().await?;
                answer.ok_or_else(no_leader)?.ttl
            }
        };
        let header = Some(self.engine.header_now());
        Ok(LeaseKeepAliveResponse { header, id, ttl })
    }
}

type KeepAlives = Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Lease for Services {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let by = self.by(&request).await?;
        let mut request = request.into_inner();
        while request.id == 0 {
            request.id = rand::random::<i64>() & i64::MAX;
        }
        match self.engine.propose_growth(&by, &Op::Grant(request)).await? {
            Reply::Grant(mut response) => {
                self.engine.sign(&mut response.header);
                Ok(Response::new(response))
            }
            _ => Err(wrong_reply()),
        }
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let by = self.by(&request).await?;
        match self.engine.propose(&by, &Op::Revoke(request.into_inner())).await? {
            Reply::Revoke(mut response) => {
                self.engine.sign(&mut response.header);
                Ok(Response::new(response))
            }
            _ => Err(wrong_reply()),
        }
    }

    type LeaseKeepAliveStream = KeepAlives;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<KeepAlives>, Status> {
        let by = self.by(&request).await?;
        self.engine.applied.read().auth.known(&by).map_err(Refusal::Auth)?;
        let services = self.clone();
        let ended = services.ctx.shutdown.clone().cancelled_owned();
        let answers = request.into_inner().then(move |request| {
            let services = services.clone();
            async move { services.renew(request?.id).await }
        });
        Ok(Response::new(Box::pin(answers.take_until(ended))))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let by = self.by(&request).await?;
        let request = request.into_inner();
        let engine = &self.engine;
        if let Some(leader) = self.leader().await? {
            let mut answer = LeaseClient::new(leader).lease_time_to_live(request).await?;
            engine.sign(&mut answer.get_mut().header);
            return Ok(answer);
        }
        engine.turn().await?;
        let left = engine.lessor.lock().left_s(request.id, engine.clock.monotonic());
        let applied = engine.applied.read();
        let mut response = LeaseTimeToLiveResponse {
            header: Some(engine.header(applied.mvcc.revision())),
            id: request.id,
            ttl: -1,
            ..Default::default()
        };
        if let (Some(lease), Some(left)) = (applied.mvcc.leases().find(request.id), left) {
            response.ttl = left;
            response.granted_ttl = lease.ttl_s;
            if request.keys {
                for key in &lease.keys {
                    applied.auth.read(&by, key, &Bytes::new()).map_err(Refusal::Auth)?;
                }
                response.keys = lease.keys.iter().cloned().collect();
            }
        }
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        self.known(request).await?;
        let applied = self.engine.applied.read();
        let leases = applied.mvcc.leases().iter().map(|(id, _)| LeaseStatus { id }).collect();
        let header = Some(self.engine.header(applied.mvcc.revision()));
        Ok(Response::new(LeaseLeasesResponse { header, leases }))
    }
}
