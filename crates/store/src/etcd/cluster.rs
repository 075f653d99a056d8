//! The Cluster service of a member alone: it can be listed, not changed.

use tonic::{Request, Response, Status};
use wire::etcdserverpb::cluster_server::Cluster;
use wire::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse,
};

use super::Services;
use super::errors::member_status;
use crate::members::MemberError;

fn unsupported() -> Status {
    Status::unimplemented("changing the members of the cluster is not supported yet")
}

impl Services {
    fn itself(&self) -> Member {
        Member {
            id: self.engine.identity.member,
            name: self.settings.name.clone(),
            peer_ur_ls: self.settings.peer_urls.clone(),
            client_ur_ls: self.settings.client_urls.clone(),
            is_learner: false,
        }
    }
}

#[tonic::async_trait]
impl Cluster for Services {
    async fn member_add(
        &self,
        _request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        Err(unsupported())
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        if request.get_ref().id == self.engine.identity.member {
            return Err(unsupported());
        }
        Err(member_status(MemberError::NotFound))
    }

    async fn member_update(
        &self,
        _request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        Err(unsupported())
    }

    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        self.known(request).await?;
        // Members have no revisions.
        let header = Some(self.engine.header(0));
        Ok(Response::new(MemberListResponse { header, members: vec![self.itself()] }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        if request.get_ref().id == self.engine.identity.member {
            let words = "etcdserver: can only promote a learner member";
            return Err(Status::failed_precondition(words));
        }
        Err(member_status(MemberError::NotFound))
    }
}
