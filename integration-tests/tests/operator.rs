//! An operator written with kube-rs, as anybody would write it: a kind of its own, a controller with a finalizer, objects it
//! owns by server-side apply, and a status. It must work here as it does on any Kubernetes.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test as a whole

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use integration_tests::Cluster;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::controller::Action;
use kube::runtime::finalizer::{self, finalizer};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{Controller, watcher};
use kube::{
    Api, Client, Config, CustomResource, CustomResourceExt, Resource as _, ResourceExt as _,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

const FINALIZER: &str = "example.org/farewell";
const MANAGER: &str = "greeter";

/// A greeting that becomes a ConfigMap.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "example.org",
    version = "v1",
    kind = "Greeting",
    namespaced,
    status = "GreetingStatus",
    shortname = "gr",
    printcolumn = r#"{"name":"Text","type":"string","jsonPath":".spec.text"}"#
)]
struct GreetingSpec {
    text: String,
    #[serde(default = "once")]
    #[schemars(range(min = 1, max = 9))]
    times: u32,
}

fn once() -> u32 {
    1
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct GreetingStatus {
    observed_generation: i64,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(String);

impl From<kube::Error> for Failed {
    fn from(error: kube::Error) -> Self {
        Self(error.to_string())
    }
}

async fn reconcile(greeting: Arc<Greeting>, client: Arc<Client>) -> Result<Action, Failed> {
    let namespace = greeting.namespace().unwrap_or_default();
    let greetings: Api<Greeting> = Api::namespaced((*client).clone(), &namespace);
    let done = finalizer(&greetings, FINALIZER, greeting, async |event| match event {
        finalizer::Event::Apply(greeting) => greet(&client, &greeting, &namespace).await,
        finalizer::Event::Cleanup(greeting) => {
            let farewell = ConfigMap {
                metadata: kube::core::ObjectMeta {
                    name: Some(format!("{}-gone", greeting.name_any())),
                    ..Default::default()
                },
                ..Default::default()
            };
            let maps: Api<ConfigMap> = Api::namespaced((*client).clone(), &namespace);
            maps.create(&PostParams::default(), &farewell).await?;
            Ok(Action::await_change())
        }
    });
    done.await.map_err(|error| Failed(error.to_string()))
}

async fn greet(client: &Client, greeting: &Greeting, namespace: &str) -> Result<Action, Failed> {
    let (name, times) = (greeting.name_any(), greeting.spec.times as usize);
    let map = ConfigMap {
        metadata: kube::core::ObjectMeta {
            name: Some(name.clone()),
            owner_references: greeting.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..Default::default()
        },
        data: Some(BTreeMap::from([("text".into(), greeting.spec.text.repeat(times))])),
        ..Default::default()
    };
    let apply = PatchParams::apply(MANAGER).force();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    maps.patch(&name, &apply, &Patch::Apply(&map)).await?;
    let status = json!({
        "apiVersion": Greeting::api_version(&()), "kind": Greeting::kind(&()),
        "status": {"observedGeneration": greeting.metadata.generation}
    });
    let greetings: Api<Greeting> = Api::namespaced(client.clone(), namespace);
    greetings.patch_status(&name, &apply, &Patch::Apply(&status)).await?;
    Ok(Action::await_change())
}

async fn connected(cluster: &Cluster) -> Client {
    let file = Kubeconfig::read_from(cluster.dir().join("admin.kubeconfig")).unwrap();
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

/// Waits until an object is as it should be.
async fn until<K>(api: &Api<K>, name: &str, what: &str, wanted: impl Fn(Option<&K>) -> bool + Send)
where
    K: kube::Resource + Clone + std::fmt::Debug + Send + serde::de::DeserializeOwned + 'static,
{
    let waited =
        tokio::time::timeout(Duration::from_secs(60), await_condition(api.clone(), name, wanted));
    waited.await.unwrap_or_else(|_| panic!("never: {what}")).unwrap();
}

fn says(text: &str) -> impl Fn(Option<&ConfigMap>) -> bool + use<> {
    let text = text.to_owned();
    move |map| map.and_then(|m| m.data.as_ref()?.get("text")).is_some_and(|found| *found == text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_of_kube_rs_works() {
    let cluster = Cluster::new().unwrap();
    cluster.up().unwrap();
    let client = connected(&cluster).await;

    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = "greetings.example.org";
    let apply = PatchParams::apply(MANAGER);
    definitions.patch(name, &apply, &Patch::Apply(Greeting::crd())).await.unwrap();
    let established = await_condition(definitions.clone(), name, conditions::is_crd_established());
    tokio::time::timeout(Duration::from_secs(10), established).await.unwrap().unwrap();

    let greetings: Api<Greeting> = Api::namespaced(client.clone(), "default");
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let controller = Controller::new(greetings.clone(), watcher::Config::default())
        .owns(maps.clone(), watcher::Config::default().streaming_lists());
    let retry =
        |_: Arc<Greeting>, _: &Failed, _: Arc<Client>| Action::requeue(Duration::from_millis(200));
    let operator = tokio::spawn(
        controller.run(reconcile, retry, Arc::new(client.clone())).for_each(|_| async {}),
    );

    // The default of the schema, and its limit.
    let text = |text: &str| GreetingSpec { text: text.into(), times: 1 };
    let hello = serde_json::from_value::<Greeting>(json!({
        "apiVersion": "example.org/v1", "kind": "Greeting",
        "metadata": {"name": "hello"}, "spec": {"text": "hi "}
    }));
    assert_eq!(
        greetings.create(&PostParams::default(), &hello.unwrap()).await.unwrap().spec.times,
        1
    );
    let many = Greeting::new("many", GreetingSpec { times: 10, ..text("x") });
    let refused = greetings.create(&PostParams::default(), &many).await.unwrap_err();
    assert!(refused.to_string().contains("spec.times in body should be less than or equal to 9"));

    until(&maps, "hello", "the map of a new greeting", says("hi ")).await;
    until(&greetings, "hello", "its status", |greeting: Option<&Greeting>| {
        greeting.is_some_and(|g| {
            g.status.as_ref().map(|s| s.observed_generation) == g.metadata.generation
        })
    })
    .await;

    let twice = json!({"spec": {"times": 2}});
    greetings.patch("hello", &PatchParams::default(), &Patch::Merge(twice)).await.unwrap();
    until(&maps, "hello", "the change of a greeting", says("hi hi ")).await;
    // Somebody else's change of what the operator owns is put right, and so is a deletion.
    let other = json!({"data": {"text": "no"}});
    maps.patch("hello", &PatchParams::default(), &Patch::Merge(other)).await.unwrap();
    until(&maps, "hello", "a change undone", says("hi hi ")).await;
    let first = maps.get("hello").await.unwrap().uid();
    maps.delete("hello", &DeleteParams::default()).await.unwrap();
    until(&maps, "hello", "a deletion undone", |map: Option<&ConfigMap>| {
        says("hi hi ")(map) && map.is_some_and(|m| m.uid() != first)
    })
    .await;

    // Many at once, then all of them gone, each after its farewell; what they owned is collected.
    for n in 0..30 {
        let one = Greeting::new(&format!("g{n}"), text("x"));
        greetings.create(&PostParams::default(), &one).await.unwrap();
    }
    until(&maps, "g29", "the last of many", says("x")).await;
    greetings.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    for name in (0..30).map(|n| format!("g{n}")).chain(["hello".to_owned()]) {
        until(&maps, &format!("{name}-gone"), "a farewell", |map| map.is_some()).await;
        until(&greetings, &name, "a greeting gone", |greeting| greeting.is_none()).await;
        until(&maps, &name, "what it owned gone", |map| map.is_none()).await;
    }
    operator.abort();

    // Objects go with their definition.
    greetings.create(&PostParams::default(), &Greeting::new("last", text("x"))).await.unwrap();
    definitions.delete(name, &DeleteParams::default()).await.unwrap();
    until(&definitions, name, "the kind gone", |definition| definition.is_none()).await;
    assert!(greetings.list(&ListParams::default()).await.is_err());
}
