//! The Cluster service: who belongs to the cluster, and changes of that.

use tonic::{Request, Response, Status};
use wire::etcdserverpb::cluster_client::ClusterClient;
use wire::etcdserverpb::cluster_server::Cluster;
use wire::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse,
};

use super::Services;
use crate::bootstrap::{check_url, member_id};
use crate::members::{Change, What};

impl Services {
    async fn change(&self, what: What) -> Result<Vec<Member>, Status> {
        self.engine.change(Change::of([what])).await?;
        Ok(self.engine.applied.read().members.all.clone())
    }
}

/// Peer URLs as members keep them, in order.
pub(super) fn peer_urls(urls: Vec<String>) -> Result<Vec<String>, Status> {
    let checked: Result<Vec<String>, _> = urls.iter().map(|url| check_url(url)).collect();
    let mut urls = checked.unwrap_or_default();
    if urls.is_empty() {
        return Err(Status::invalid_argument("etcdserver: given member URLs are invalid"));
    }
    urls.sort();
    Ok(urls)
}

#[tonic::async_trait]
impl Cluster for Services {
    async fn member_add(
        &self,
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        let request = self.admin(request).await?;
        let urls = peer_urls(request.peer_ur_ls.clone())?;
        if let Some(leader) = self.leader().await? {
            return ClusterClient::new(leader).member_add(request).await;
        }
        let second = u64::try_from(self.engine.clock.now().as_second()).unwrap_or(0);
        let member = Member {
            id: member_id(&urls, "", Some(second)),
            peer_ur_ls: urls,
            is_learner: request.is_learner,
            ..Member::default()
        };
        let members = self.change(What::Add(member.clone())).await?;
        let header = Some(self.engine.header(0));
        Ok(Response::new(MemberAddResponse { header, member: Some(member), members }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let request = self.admin(request).await?;
        if let Some(leader) = self.leader().await? {
            return ClusterClient::new(leader).member_remove(request).await;
        }
        let members = self.change(What::Remove(request.id)).await?;
        let header = Some(self.engine.header(0));
        Ok(Response::new(MemberRemoveResponse { header, members }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let request = self.admin(request).await?;
        let urls = peer_urls(request.peer_ur_ls.clone())?;
        if let Some(leader) = self.leader().await? {
            return ClusterClient::new(leader).member_update(request).await;
        }
        let moved = Member { id: request.id, peer_ur_ls: urls, ..Member::default() };
        let members = self.change(What::Move(moved)).await?;
        let header = Some(self.engine.header(0));
        Ok(Response::new(MemberUpdateResponse { header, members }))
    }

    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        let request = self.known(request).await?;
        if request.linearizable {
            self.engine.turn().await?;
        }
        // Members have no revisions.
        let header = Some(self.engine.header(0));
        let members = self.engine.applied.read().members.all.clone();
        Ok(Response::new(MemberListResponse { header, members }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let request = self.admin(request).await?;
        if let Some(leader) = self.leader().await? {
            return ClusterClient::new(leader).member_promote(request).await;
        }
        let members = self.change(What::Promote(request.id)).await?;
        let header = Some(self.engine.header(0));
        Ok(Response::new(MemberPromoteResponse { header, members }))
    }
}
