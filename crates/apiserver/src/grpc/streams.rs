//! The node service as clients see it: each call is authorized like its REST form and passed on to the node that it is
//! about.

use std::pin::Pin;
use std::sync::Arc;

use api::error::ApiError;
use auth::User;
use futures::{Stream, StreamExt as _};
use tonic::{Request as Call, Response as Reply, Status, Streaming};
use wire::apiserver as pb;
use wire::apiserver::node_server::Node;

use super::{Service, status, user};
use crate::layers::rbac::Attributes;
use crate::nodes::Place;
use crate::request::{Action, Request};

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A client's further messages after the first; a client that goes away ends them.
fn rest<T: Send + 'static>(first: T, input: Streaming<T>) -> impl Stream<Item = T> + Send {
    let more = input.take_while(|m| std::future::ready(m.is_ok()));
    futures::stream::once(std::future::ready(first)).chain(more.filter_map(async |m| m.ok()))
}

fn no_start() -> Status {
    status(&ApiError::bad_request("a start message comes first"))
}

impl Service {
    /// Authorizes `subresource` of a pod and finds where it runs.
    async fn pod(
        &self,
        user: Arc<User>,
        subresource: &str,
        namespace: &str,
        name: &str,
        container: Option<&str>,
    ) -> Result<Place, Status> {
        let request = Request {
            user,
            resource: self.api.resource("", "v1", "pods"),
            subresource: subresource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            action: Action::Get { version: String::new() },
        };
        let verb = if subresource == "log" { "get" } else { "create" };
        let run = async {
            let ask = Attributes { verb, ..request.attributes() };
            self.api.authorizer.check(&request.user, &ask)?;
            self.api.place(&request, container).await
        };
        run.await.map_err(|error| status(&error))
    }

    async fn session(
        &self,
        call: Call<Streaming<pb::ExecInput>>,
        subresource: &str,
    ) -> Result<(Place, impl Stream<Item = pb::ExecInput> + Send + use<>), Status> {
        let user = user(&call)?;
        let mut input = call.into_inner();
        let Some(pb::exec_input::Input::Start(mut start)) =
            input.message().await?.and_then(|m| m.input)
        else {
            return Err(no_start());
        };
        let (namespace, name) = (start.namespace.clone(), start.pod.clone());
        let place = self.pod(user, subresource, &namespace, &name, Some(&start.container)).await?;
        start.uid.clone_from(&place.uid);
        start.container.clone_from(&place.container);
        let first = pb::ExecInput { input: Some(pb::exec_input::Input::Start(start)) };
        Ok((place, rest(first, input)))
    }

    fn node_check(&self, user: &User, verb: &str, what: &str, node: &str) -> Result<(), Status> {
        let ask = Attributes {
            verb,
            resource: "nodes",
            subresource: what,
            name: node,
            ..Attributes::default()
        };
        self.api.authorizer.check(user, &ask).map_err(|error| status(&error))
    }

    fn agent(&self, node: &str) -> Result<crate::nodes::Agent, Status> {
        self.api.nodes.client(node).map_err(|error| status(&error))
    }
}

/// What an agent says is passed on, as the error it would be at the REST door.
fn failed(from: &Status) -> Status {
    status(&crate::nodes::agent_error(from))
}

fn streamed<T: 'static>(stream: Streaming<T>) -> Reply<Streamed<T>> {
    Reply::new(Box::pin(stream.map(|item| item.map_err(|error| failed(&error)))))
}

#[tonic::async_trait]
impl Node for Service {
    type LogsStream = Streamed<pb::LogChunk>;
    type ExecStream = Streamed<pb::ExecOutput>;
    type AttachStream = Streamed<pb::ExecOutput>;
    type PortForwardStream = Streamed<pb::PortForwardOutput>;

    async fn logs(&self, call: Call<pb::LogsRequest>) -> Result<Reply<Self::LogsStream>, Status> {
        let user = user(&call)?;
        let ask = call.into_inner();
        let place = self.pod(user, "log", &ask.namespace, &ask.pod, Some(&ask.container)).await?;
        let mut agent = self.agent(&place.node)?;
        let ask = pb::LogsRequest { uid: place.uid, container: place.container, ..ask };
        Ok(streamed(agent.logs(ask).await.map_err(|e| failed(&e))?.into_inner()))
    }

    async fn exec(
        &self,
        call: Call<Streaming<pb::ExecInput>>,
    ) -> Result<Reply<Self::ExecStream>, Status> {
        let (place, input) = self.session(call, "exec").await?;
        let mut agent = self.agent(&place.node)?;
        Ok(streamed(agent.exec(input).await.map_err(|e| failed(&e))?.into_inner()))
    }

    async fn attach(
        &self,
        call: Call<Streaming<pb::ExecInput>>,
    ) -> Result<Reply<Self::AttachStream>, Status> {
        let (place, input) = self.session(call, "attach").await?;
        let mut agent = self.agent(&place.node)?;
        Ok(streamed(agent.attach(input).await.map_err(|e| failed(&e))?.into_inner()))
    }

    async fn port_forward(
        &self,
        call: Call<Streaming<pb::PortForwardInput>>,
    ) -> Result<Reply<Self::PortForwardStream>, Status> {
        use pb::port_forward_input::Input;
        let user = user(&call)?;
        let mut input = call.into_inner();
        let Some(Input::Start(mut start)) = input.message().await?.and_then(|m| m.input) else {
            return Err(no_start());
        };
        let place = self.pod(user, "portforward", &start.namespace, &start.pod, None).await?;
        start.uid = place.uid;
        let mut agent = self.agent(&place.node)?;
        let input = rest(pb::PortForwardInput { input: Some(Input::Start(start)) }, input);
        Ok(streamed(agent.port_forward(input).await.map_err(|e| failed(&e))?.into_inner()))
    }

    async fn stats(&self, call: Call<pb::StatsRequest>) -> Result<Reply<pb::StatsReply>, Status> {
        let user = user(&call)?;
        let ask = call.into_inner();
        self.node_check(&user, "get", "stats", &ask.node)?;
        self.agent(&ask.node)?.stats(ask).await.map_err(|e| failed(&e))
    }

    /// As the kubelet's own API, what changes a node needs `nodes/proxy`.
    async fn load_image(
        &self,
        call: Call<Streaming<pb::LoadImageInput>>,
    ) -> Result<Reply<pb::LoadImageReply>, Status> {
        use pb::load_image_input::Input;
        let user = user(&call)?;
        let mut input = call.into_inner();
        let Some(Input::Node(node)) = input.message().await?.and_then(|m| m.input) else {
            return Err(status(&ApiError::bad_request("the node's name comes first")));
        };
        self.node_check(&user, "create", "proxy", &node)?;
        let mut agent = self.agent(&node)?;
        let input = rest(pb::LoadImageInput { input: Some(Input::Node(node)) }, input);
        agent.load_image(input).await.map_err(|e| failed(&e))
    }
}
