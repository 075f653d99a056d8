//! The etcd v3 services over gRPC, and one of ours: each turns requests into operations and reads of the engine.

mod auth;
mod calls;
mod cluster;
pub mod errors;
mod kv;
mod lease;
mod maintenance;
mod members;
mod watch;
pub mod web;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use daemon::Channel;
use daemon::channel::BoxError;
use futures::TryFutureExt as _;
use futures::future::{BoxFuture, Either};
use tonic::codegen::{Service, http};
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Status};
use wire::etcdserverpb::auth_server::AuthServer;
use wire::etcdserverpb::cluster_server::ClusterServer;
use wire::etcdserverpb::kv_server::KvServer;
use wire::etcdserverpb::lease_server::LeaseServer;
use wire::etcdserverpb::maintenance_server::MaintenanceServer;
use wire::etcdserverpb::watch_server::WatchServer;
use wire::store::members_server::MembersServer;

use calls::Calls;

use crate::engine::Engine;
use crate::mvcc::check::REQUEST_BYTES_MAX;
use crate::peer::Peers;

pub use watch::Sink;

/// The version that clients choose their features by.
pub const VERSION: &str = "3.6.0";
/// What a request may take on the wire: etcd's limit with room for the envelope, so that an
/// oversized request is refused with etcd's own words.
const MESSAGE_BYTES_MAX: usize = REQUEST_BYTES_MAX + 512 * 1024;
/// Nearly all calls are of this service: they go to it without a look at the others.
const KV: &str = "/etcdserverpb.KV/";
/// How long a request waits for somebody to lead, and how often it looks.
const LEADER_TIMEOUT: Duration = Duration::from_secs(5);
const LEADER_CHECK: Duration = Duration::from_millis(20);

/// What the services share.
#[derive(Clone)]
pub struct Services {
    pub(crate) engine: Arc<Engine>,
    pub(crate) ctx: daemon::Context,
    /// Seconds after which an idle watcher is told how far it is.
    pub(crate) progress_s: u64,
    /// Where requests go that only the leader can answer; none where they have been passed on already.
    pub(crate) pass_on: Option<Peers>,
}

impl Services {
    /// Refuses what a member that only listens does not do: all but serializable reads and maintenance.
    pub(crate) fn votes(&self) -> Result<(), Status> {
        let members = self.engine.members.borrow();
        match members.get(self.engine.identity.member) {
            Some(member) if member.is_learner => Err(errors::learner()),
            _ => Ok(()),
        }
    }

    /// Where the leader is, or nothing if that is us. Waits a while if nobody leads.
    pub(crate) async fn leader(&self) -> Result<Option<Channel>, Status> {
        let ours = self.engine.identity.member;
        let looking = async {
            loop {
                let leader = self.engine.leader.load(Ordering::Relaxed);
                if self.engine.keeps_leases() {
                    return Ok(None);
                }
                if leader != 0 && leader != ours {
                    let peers = self.pass_on.as_ref().ok_or_else(errors::not_leader)?;
                    if let Some(channel) = peers.channel(leader) {
                        return Ok(Some(channel));
                    }
                }
                tokio::time::sleep(LEADER_CHECK).await;
            }
        };
        tokio::time::timeout(LEADER_TIMEOUT, looking).await.map_err(|_| errors::no_leader())?
    }
}

/// All services of a member.
#[derive(Clone)]
pub struct Routes {
    kv: KvServer<Services>,
    others: tonic::service::Routes,
    calls: Arc<Calls>,
}

impl<B> Service<http::Request<B>> for Routes
where
    B: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError> + Send,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let method = self.calls.begin(request.uri().path());
        let kv = request.uri().path().starts_with(KV);
        let request = self.calls.hears(request);
        let answer = if kv {
            Either::Left(self.kv.call(request))
        } else {
            Either::Right(self.others.call(request))
        };
        let calls = self.calls.clone();
        Box::pin(answer.map_ok(move |response| match method {
            Some(method) => calls.end(method, response),
            None => response,
        }))
    }
}

/// All services of a member, with health and reflection.
///
/// # Errors
/// When the descriptors of the services cannot be read, which is a mistake of ours.
pub(crate) async fn routes(services: &Services) -> anyhow::Result<Routes> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(wire::DESCRIPTORS)
        .build_v1()?;
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<KvServer<Services>>().await;
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let kv = KvServer::new(services.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(usize::MAX);
    let watch = WatchServer::new(services.clone()).max_encoding_message_size(usize::MAX);
    let maintenance = MaintenanceServer::new(services.clone());
    let asked = services.clone();
    let votes = move |request: Request<()>| asked.votes().map(|()| request);
    let others = tonic::service::Routes::new(InterceptedService::new(watch, votes.clone()))
        .add_service(LeaseServer::with_interceptor(services.clone(), votes.clone()))
        .add_service(ClusterServer::with_interceptor(services.clone(), votes.clone()))
        .add_service(MembersServer::with_interceptor(services.clone(), votes.clone()))
        .add_service(maintenance)
        .add_service(AuthServer::with_interceptor(services.clone(), votes))
        .add_service(health_service)
        .add_service(reflection)
        .prepare();
    Ok(Routes { kv, others, calls: Calls::new(&services.ctx.metrics) })
}

/// What other members and those that join ask of a member.
pub(crate) fn peer_routes(services: &Services, peers: &Peers) -> tonic::service::Routes {
    let services = Services { pass_on: None, ..services.clone() };
    tonic::service::Routes::new(peers.listener())
        .add_service(LeaseServer::new(services.clone()))
        .add_service(ClusterServer::new(services.clone()))
        .add_service(MembersServer::new(services))
        .prepare()
}
