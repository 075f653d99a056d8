//! The cache, the controller loop and leader election against an API server in memory.

use std::sync::Arc;
use std::time::Duration;

use client::{Action, Cache, Client, Controller, Executor, Key, Plan, Recorder, Select, Wake};
use client::{act, cache, controller, lease};
use daemon::Context;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use testkit::fake_api::FakeApi;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

struct Sets;

struct Seen {
    set: Arc<ReplicaSet>,
    pods: Vec<Arc<Pod>>,
}

impl Controller for Sets {
    const NAME: &'static str = "sets";
    type Seen = Seen;
    const WAKES: &'static [Wake] = &[Wake::own("ReplicaSet"), Wake::owner_of("Pod")];

    fn observe(cache: &Cache, key: &Key) -> Option<Seen> {
        let set = cache.at::<ReplicaSet>(key)?;
        let pods = cache.find::<Pod>("owner", set.metadata.uid.as_deref().unwrap_or_default());
        Some(Seen { set, pods })
    }

    fn reconcile(seen: &Seen, _: Timestamp) -> Plan {
        let wanted = seen.set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
        let wanted = usize::try_from(wanted).unwrap_or(0);
        let mut pod = Pod::default();
        pod.metadata.namespace.clone_from(&seen.set.metadata.namespace);
        pod.metadata.generate_name = seen.set.metadata.name.as_ref().map(|n| format!("{n}-"));
        pod.metadata.owner_references = Some(vec![act::controlled_by(&*seen.set)]);
        Plan::new()
            .each(seen.pods.len()..wanted, |_| Action::create(&pod))
            .each(seen.pods.iter().skip(wanted), |pod| Action::delete(&**pod))
            .status(&*seen.set, json!({"replicas": seen.pods.len()}))
    }
}

fn start(api: &FakeApi) -> (Cache, Context, Client) {
    let ctx = Context::new(CancellationToken::new());
    let client = Client::new(api.channel(), "test");
    let cache = Cache::builder(client.clone())
        .kind(Select::<ReplicaSet>::all())
        .kind(Select::<Pod>::all().index("owner", cache::owner_uids))
        .start(&ctx);
    (cache, ctx, client)
}

fn run_sets(api: &FakeApi) -> Context {
    let (cache, ctx, client) = start(api);
    let executor = Executor::new(client, Recorder::silent());
    let leading = ctx.shutdown.clone();
    ctx.tasks.job(controller::run::<Sets>(cache, executor, ctx.clone(), leading));
    ctx
}

fn put_set(api: &FakeApi, replicas: i32) {
    let meta = json!({"name": "web", "namespace": "d"});
    api.put("apps", "replicasets", json!({"metadata": meta, "spec": {"replicas": replicas}}));
}

async fn settles(api: &FakeApi, pods: usize) {
    let done = api.until(|api| {
        let set = api.get("apps", "replicasets", "d", "web").unwrap_or_default();
        api.all("", "pods").len() == pods && set["status"]["replicas"] == json!(pods)
    });
    tokio::time::timeout(PATIENCE, done).await.expect("it settles");
}

#[tokio::test]
async fn a_controller_settles_without_overshooting() {
    let api = FakeApi::new();
    let ctx = run_sets(&api);
    put_set(&api, 5);
    settles(&api, 5).await;
    assert_eq!(
        api.revision(),
        1 + 5 + 2,
        "a set, five pods, a status before and after: nothing twice"
    );
    put_set(&api, 2);
    settles(&api, 2).await;
    api.remove("", "pods", "d", "web-2");
    settles(&api, 2).await;
    ctx.shutdown.cancel();
    ctx.tasks.join().await.expect("parts end cleanly");
}

#[tokio::test]
async fn a_controller_survives_lost_watches_and_lost_history() {
    let api = FakeApi::new();
    let ctx = run_sets(&api);
    put_set(&api, 3);
    settles(&api, 3).await;
    api.cut();
    put_set(&api, 4);
    settles(&api, 4).await;
    api.expire();
    api.cut();
    put_set(&api, 1);
    settles(&api, 1).await;
    ctx.shutdown.cancel();
}

#[tokio::test]
async fn a_relist_reports_what_went_unseen() {
    let api = FakeApi::new();
    api.put("", "pods", json!({"metadata": {"name": "a", "namespace": "d"}}));
    api.put("", "pods", json!({"metadata": {"name": "b", "namespace": "d"}}));
    let (cache, ctx, _client) = start(&api);
    cache.synced().await;
    assert_eq!(cache.count::<Pod>(), 2);
    api.cut();
    api.remove("", "pods", "d", "a");
    api.expire();
    let mut changes = cache.changes();
    while cache.count::<Pod>() != 1 {
        let changed = tokio::time::timeout(PATIENCE, changes.changed()).await;
        changed.expect("in time").expect("the cache lives");
    }
    assert!(cache.get::<Pod>("d", "b").is_some());
    ctx.shutdown.cancel();
}

#[tokio::test]
async fn errors_say_what_they_are() {
    let api = FakeApi::new();
    let client = Client::new(api.channel(), "test");
    assert!(client.get::<Pod>("d", "none").await.expect_err("there is none").is_not_found());
    let pod: Pod =
        serde_json::from_value(json!({"metadata": {"name": "a", "namespace": "d"}})).expect("pod");
    let made = client.create(&pod).await.expect("created");
    assert_eq!(made.metadata.resource_version.as_deref(), Some("1"));
    assert!(client.create(&pod).await.expect_err("there is one").is_already_exists());
    let how = client::transport::Delete { uid: "other".into(), ..Default::default() };
    assert!(client.delete::<Pod>("d", "a", how).await.expect_err("not that one").is_conflict());
}

#[tokio::test]
async fn one_leads_and_hands_over() {
    let api = FakeApi::new();
    let client = Client::new(api.channel(), "test");
    let (led, mut leaders) = tokio::sync::mpsc::unbounded_channel();
    let mut contexts = Vec::new();
    for name in ["one", "two"] {
        let ctx = Context::new(CancellationToken::new());
        let (client, led, ctx2) = (client.clone(), led.clone(), ctx.clone());
        ctx.tasks.job(async move {
            let mut election = lease::Election::new("kube-system", "test", name.to_owned());
            election.period = Duration::from_millis(20);
            lease::lead(&client, &election, &ctx2, |leading| {
                let led = led.clone();
                async move {
                    led.send(name).expect("the test listens");
                    leading.cancelled().await;
                }
            })
            .await;
        });
        contexts.push((name, ctx));
    }
    let first = leaders.recv().await.expect("one leads");
    let (_, ctx) = contexts.iter().find(|(name, _)| *name == first).expect("it is one of them");
    ctx.shutdown.cancel();
    let second = tokio::time::timeout(PATIENCE, leaders.recv()).await.expect("given back");
    assert_ne!(second, Some(first));
    contexts.iter().for_each(|(_, ctx)| ctx.shutdown.cancel());
}
