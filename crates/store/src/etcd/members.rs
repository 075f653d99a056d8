//! Our own Members service: changes of several members at once, beside etcd's Cluster service and by the same rules.

use tonic::{Request, Response, Status};
use wire::etcdserverpb::Member;
use wire::store::change_step::Step;
use wire::store::members_client::MembersClient;
use wire::store::members_server::Members;
use wire::store::{ChangeRequest, ChangeResponse};

use super::Services;
use super::cluster::peer_urls;
use super::errors::member_status;
use crate::bootstrap::member_id;
use crate::members::{Change, MemberError, What};

#[tonic::async_trait]
impl Members for Services {
    async fn change(
        &self,
        request: Request<ChangeRequest>,
    ) -> Result<Response<ChangeResponse>, Status> {
        let request = self.admin(request).await?;
        if let Some(leader) = self.leader().await? {
            return MembersClient::new(leader).change(request).await;
        }
        let second = u64::try_from(self.engine.clock.now().as_second()).unwrap_or(0);
        let (mut steps, mut added) = (Vec::new(), Vec::new());
        for step in request.steps {
            steps.push(match step.step.ok_or_else(|| member_status(MemberError::Empty))? {
                Step::Add(new) => {
                    let peer_ur_ls = peer_urls(new.peer_urls)?;
                    let id = member_id(&peer_ur_ls, "", Some(second));
                    added.push(id);
                    let is_learner = new.is_learner;
                    What::Add(Member { id, peer_ur_ls, is_learner, ..Member::default() })
                }
                Step::Promote(id) => What::Promote(id),
                Step::Remove(id) => What::Remove(id),
            });
        }
        self.engine.change(Change::of(steps)).await?;
        Ok(Response::new(ChangeResponse { added }))
    }
}
