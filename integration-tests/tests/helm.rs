//! Helm 4 itself, with a chart of everything that charts are made of: installed, upgraded, rolled back, pruned and removed, by
//! server-side apply and by three-way patches as Helm 3 did it.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use client::{Client, Patch};
use hyper::Method;
use integration_tests::apart::project;
use integration_tests::servers::{Rest, Target};
use integration_tests::{Cluster, Fleet, machine};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};

/// Debian's interpreter: all that is needed of it is that it calls a library.
const PYTHON: &str = "/usr/bin/python3";
const NAMESPACE: &str = "shop";
/// What the chart makes whatever its values.
const ALWAYS: [&str; 15] = [
    "api/v1/namespaces/shop/serviceaccounts/shop",
    "api/v1/namespaces/shop/secrets/shop",
    "api/v1/namespaces/shop/configmaps/shop",
    "api/v1/namespaces/shop/services/shop",
    "api/v1/namespaces/shop/persistentvolumeclaims/shop",
    "apis/rbac.authorization.k8s.io/v1/namespaces/shop/roles/shop",
    "apis/rbac.authorization.k8s.io/v1/namespaces/shop/rolebindings/shop",
    "apis/rbac.authorization.k8s.io/v1/clusterroles/shop-reader",
    "apis/rbac.authorization.k8s.io/v1/clusterrolebindings/shop-reader",
    "apis/apps/v1/namespaces/shop/deployments/shop",
    "apis/apps/v1/namespaces/shop/statefulsets/shop-db",
    "apis/apps/v1/namespaces/shop/daemonsets/shop-agent",
    "apis/batch/v1/namespaces/shop/cronjobs/shop",
    "apis/policy/v1/namespaces/shop/poddisruptionbudgets/shop",
    "apis/scheduling.k8s.io/v1/priorityclasses/shop",
];
/// What it makes only with `extra`.
const EXTRA: [&str; 4] = [
    "apis/shop.example.org/v1/namespaces/shop/coupons/shop",
    "apis/networking.k8s.io/v1/namespaces/shop/ingresses/shop",
    "apis/networking.k8s.io/v1/namespaces/shop/networkpolicies/shop",
    "apis/autoscaling/v2/namespaces/shop/horizontalpodautoscalers/shop",
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let lacking = !library().exists();
    let trial = |name: &str, server_side: bool| {
        let test = move || machine::block_on(release(server_side));
        Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:#}"))))
            .with_ignored_flag(lacking)
    };
    let trials = vec![
        trial("helm_releases_by_server_side_apply", true),
        trial("helm_releases_by_three_way_patches", false),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Where `fetch_helm` of `deploy/packages.sh` puts it.
fn library() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
    cache.join("ironclad-helm/libhelm_sdkpy.so")
}

struct Helm<'c>(&'c Cluster);

impl Helm<'_> {
    /// Runs an action on the release; the error is what Helm says.
    fn run(&self, action: &str, arguments: &[String]) -> anyhow::Result<Value> {
        let output = Command::new("timeout")
            .args(["120", PYTHON])
            .arg(project("integration-tests/tests/helm/helm.py"))
            .arg(library())
            .arg(self.0.dir().join("admin.kubeconfig"))
            .args([NAMESPACE, action, "shop"])
            .args(arguments)
            .output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn apply(&self, action: &str, values: &Value, options: &Value) -> anyhow::Result<Value> {
        let chart = project("integration-tests/tests/helm/chart").display().to_string();
        let mut all = json!({
            "create_namespace": true, "wait": true, "wait_for_jobs": true, "timeout_seconds": 60,
            "disable_openapi_validation": false, "server_side_apply": "auto",
        });
        for (key, value) in options.as_object().into_iter().flatten() {
            all[key] = value.clone();
        }
        self.run(action, &[chart, values.to_string(), all.to_string()])
    }
}

async fn get(rest: &Rest, path: &str) -> anyhow::Result<Option<Value>> {
    let (code, body) = rest.ask(Method::GET, &format!("/{path}"), "").await?;
    ensure!(code == 200 || code == 404, "{path}: {code} {body}");
    Ok((code == 200).then_some(body))
}

async fn there(rest: &Rest, paths: &[&str], wanted: bool) -> anyhow::Result<()> {
    for path in paths {
        let found = get(rest, path).await?;
        // What Helm has deleted may be on its way out.
        let found = found.filter(|o| o["metadata"]["deletionTimestamp"].is_null());
        ensure!(found.is_some() == wanted, "{path}: there is {found:?}");
    }
    Ok(())
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(|item| item["name"].as_str()).collect()
}

/// What the values decide, in words: replicas, containers, variables, ports, those of the service, data.
async fn shape(rest: &Rest) -> anyhow::Result<String> {
    let web = get(rest, ALWAYS[9]).await?.context("no deployment")?;
    let pod = &web["spec"]["template"]["spec"];
    let service = get(rest, ALWAYS[3]).await?.context("no service")?;
    let map = get(rest, ALWAYS[2]).await?.context("no map")?;
    ensure!(
        web["status"]["updatedReplicas"] == web["spec"]["replicas"]
            && web["status"]["availableReplicas"] == web["spec"]["replicas"],
        "Helm did not wait: {}",
        web["status"]
    );
    Ok(format!(
        "{} {:?} {:?} {:?} {:?} {}",
        web["spec"]["replicas"],
        names(&pod["containers"]),
        names(&pod["containers"][0]["env"]),
        names(&pod["containers"][0]["ports"]),
        names(&service["spec"]["ports"]),
        map["data"]
    ))
}

const FIRST: &str = r#"2 ["web"] ["GREETING", "MOTTO", "RELEASE"] ["http", "more"] ["http", "more"] {"greeting":"hello","motto":"buy more"}"#;

async fn release(server_side: bool) -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    cluster.up()?;
    let _fleet = Fleet::start(cluster.dir(), &["--count", "2", "--run", "300ms"])?;
    let pki = cluster.dir().join("pki");
    let rest = Target::new(&cluster.address(), &pki, "admin", "h2")?.rest().await?;
    let (helm, client) = (Helm(&cluster), cluster.client()?);

    let how = json!({"server_side_apply": server_side.to_string()});
    let done = helm.apply("install", &json!({}), &how)?;
    ensure!(done["info"]["status"] == "deployed", "{done}");
    there(&rest, &ALWAYS, true).await?;
    there(&rest, &EXTRA, true).await?;
    ensure!(shape(&rest).await? == FIRST, "{}", shape(&rest).await?);
    let address = get(&rest, ALWAYS[3]).await?.context("no service")?["spec"]["clusterIP"].clone();
    let hook = get(&rest, "apis/batch/v1/namespaces/shop/jobs/shop-prepare").await?;
    ensure!(hook.is_none(), "a hook that succeeded is deleted: {hook:?}");

    by_hand(&client).await?;
    let other = json!({"replicas": 3, "greeting": "bye", "extra": false, "sidecar": true});
    // Server-side, what was changed by hand is a conflict unless it is forced.
    let mut options = json!({});
    if server_side {
        let refused = helm.apply("upgrade", &other, &options).err().map(|e| e.to_string());
        let said = refused.context("hand-made changes were overwritten")?;
        ensure!(said.contains("conflict with \"test\""), "{said}");
        options = json!({"force_conflicts": true});
    }
    let done = helm.apply("upgrade", &other, &options)?;
    ensure!(done["info"]["status"] == "deployed", "{done}");
    there(&rest, &ALWAYS, true).await?;
    there(&rest, &EXTRA, false).await?;
    // The variable and the label of another hand stay.
    let wanted = r#"3 ["web", "sidecar"] ["BY", "GREETING", "RELEASE"] ["http"] ["http"] {"greeting":"bye","mine":"yes"}"#;
    ensure!(shape(&rest).await? == wanted, "{}", shape(&rest).await?);

    // One that the API server refuses in the middle is undone by Helm.
    let bad = json!({"replicas": -1, "greeting": "oops"});
    let mut back = options.clone();
    back["rollback_on_failure"] = json!(true);
    let said = helm.apply("upgrade", &bad, &back).err().context("an upgrade to -1 replicas")?;
    ensure!(said.to_string().contains("spec.percent: Invalid value: -10"), "{said}");
    ensure!(shape(&rest).await? == wanted, "{}", shape(&rest).await?);

    options["reset_values"] = json!(true);
    let done = helm.apply("upgrade", &json!({}), &options)?;
    ensure!(done["info"]["status"] == "deployed", "{done}");
    there(&rest, &EXTRA, true).await?;
    let first = FIRST.replace(r#"["GREETING""#, r#"["BY", "GREETING""#);
    let first = first.replace(r#""hello","#, r#""hello","mine":"yes","#);
    ensure!(shape(&rest).await? == first, "{}", shape(&rest).await?);
    let now = get(&rest, ALWAYS[3]).await?.context("no service")?;
    ensure!(now["spec"]["clusterIP"] == address, "the service has another address: {now}");

    let history = helm.run("history", &[])?;
    let states: Vec<&str> = history
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|r| r["info"]["status"].as_str())
        .collect();
    ensure!(states.last() == Some(&"deployed") && states.contains(&"failed"), "{states:?}");

    helm.run("uninstall", &[])?;
    there(&rest, &ALWAYS, false).await?;
    there(&rest, &EXTRA, false).await?;
    gone(&rest).await
}

/// What somebody does to a release with kubectl.
async fn by_hand(client: &Client) -> anyhow::Result<()> {
    let env = json!([{"name": "BY", "value": "hand"}]);
    let patch = json!({
        "spec": {
            "replicas": 4,
            "template": {"spec": {"containers": [{"name": "web", "env": env}]}},
        },
    });
    client.patch::<Deployment>(NAMESPACE, "shop", "", Patch::Strategic(patch)).await?;
    let patch = json!({"data": {"greeting": "hi", "mine": "yes"}});
    client.patch::<ConfigMap>(NAMESPACE, "shop", "", Patch::Merge(patch)).await?;
    Ok(())
}

/// The pods of a removed release end, too.
async fn gone(rest: &Rest) -> anyhow::Result<()> {
    for _ in 0..300 {
        let pods = get(rest, "api/v1/namespaces/shop/pods").await?.context("no list")?;
        if pods["items"] == json!([]) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("pods are left")
}
