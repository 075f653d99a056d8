//! Pods on a machine with cgroup v2 alone, as every current distribution has it: limits, out of memory, and nothing left.
//!
//! Runs in a virtual machine, and so is the program on both sides: without arguments of its own it is the test, with
//! `inside` it is what the test runs in there.
#![allow(clippy::disallowed_methods)] // a test as a whole

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration_tests::{Cluster, Seen, container, machine, uid, vm};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

/// Emulated processors are some twenty times slower.
const LIMIT: Duration = Duration::from_secs(420);
const INSIDE: &str = "inside";
const MIB: u64 = 1 << 20;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(INSIDE) {
        return match machine::block_on(inside()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    machine::run_lacking(
        &vm::lacks(),
        vec![("root_node_qemu_holds_pods_to_their_limits_under_cgroup_v2", || {
            println!("{}", vm::run(INSIDE, LIMIT)?);
            Ok(())
        })],
    )
}

fn pod(name: &str, resources: &Value, command: &[&str]) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": name, "image": "ironclad/demo:0.1.0", "imagePullPolicy": "IfNotPresent",
                "command": command, "resources": resources,
            }],
        },
    })
}

/// What the kernel says of a cgroup.
fn says(group: &Path, file: &str) -> anyhow::Result<String> {
    let path = group.join(file);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(text.trim().to_owned())
}

/// The one cgroup whose path ends with this name.
fn group(name: &str) -> anyhow::Result<PathBuf> {
    let found = machine::cgroups(&[name.to_owned()]);
    let mut own = found
        .iter()
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().contains(name)));
    own.next().cloned().with_context(|| format!("no cgroup of {name}"))
}

async fn running(seen: &Seen, name: &str) -> anyhow::Result<Value> {
    seen.until(&format!("{name} runs"), |seen| {
        let pod = seen.one::<Pod>("default", name)?;
        (pod["status"]["phase"] == "Running").then_some(pod)
    })
    .await
}

async fn inside() -> anyhow::Result<()> {
    ensure!(Path::new("/sys/fs/cgroup/cgroup.controllers").exists(), "not cgroup v2");
    machine::output("ip", &["link", "set", "lo", "up"])?;
    let cluster = Cluster::with_node()?;
    cluster.up()?;
    let seen = cluster.seen().await?;
    let fixed = json!({"cpu": "500m", "memory": "64Mi"});
    let sleep = &["/demo", "sleep", "600"];
    let guaranteed = pod("guaranteed", &json!({"requests": fixed, "limits": fixed}), sleep);
    let burstable = json!({"requests": {"cpu": "250m"}, "limits": {"memory": "48Mi"}});
    seen.create::<Pod>(guaranteed).await?;
    seen.create::<Pod>(pod("burstable", &burstable, sleep)).await?;
    seen.create::<Pod>(pod("besteffort", &json!({}), sleep)).await?;
    let greedy =
        pod("greedy", &json!({"limits": {"memory": "32Mi"}}), &["/demo", "cat", "/dev/zero"]);
    seen.create::<Pod>(greedy).await?;

    let mut uids = Vec::new();
    // Of the pod's group and of the container's in it: time of a core, its share, memory.
    for (name, class, max, weight, memory) in [
        ("guaranteed", "/pod", "50000 100000", Some("20"), 64 * MIB),
        ("burstable", "/burstable/pod", "max 100000", Some("10"), 48 * MIB),
        ("besteffort", "/besteffort/pod", "max 100000", Some("1"), 0),
    ] {
        let pod = running(&seen, name).await?;
        uids.push(uid(&pod).to_owned());
        let of_pod = group(uid(&pod))?;
        ensure!(of_pod.display().to_string().contains(class), "{name} is at {}", of_pod.display());
        let id = container(&pod, name)["containerID"].as_str().context("no container")?;
        let of_container = group(id.rsplit('/').next().unwrap_or(id))?;
        ensure!(
            of_container.starts_with(&of_pod),
            "{} is not in the pod's",
            of_container.display()
        );
        let memory = if memory == 0 { "max".to_owned() } else { memory.to_string() };
        for group in [&of_pod, &of_container] {
            let found =
                (says(group, "cpu.max")?, says(group, "cpu.weight")?, says(group, "memory.max")?);
            println!("{}: {found:?}", group.display());
            ensure!(found.0 == max, "{name}: cpu.max is {}, not {max}", found.0);
            ensure!(weight.is_none_or(|w| w == found.1), "{name}: cpu.weight is {}", found.1);
            ensure!(found.2 == memory, "{name}: memory.max is {}, not {memory}", found.2);
        }
        ensure!(
            !says(&of_container, "cgroup.procs")?.is_empty(),
            "{name}: nothing runs in its cgroup"
        );
    }
    let greedy = seen
        .until("the greedy pod fails", |seen| {
            let pod = seen.one::<Pod>("default", "greedy")?;
            (pod["status"]["phase"] == "Failed").then_some(pod)
        })
        .await?;
    uids.push(uid(&greedy).to_owned());
    let ended = &container(&greedy, "greedy")["state"]["terminated"];
    ensure!(ended["reason"] == "OOMKilled" && ended["exitCode"] == 137, "ended as {ended}");

    drop(seen);
    cluster.purge()?;
    let left = machine::cgroups(&uids);
    ensure!(left.is_empty(), "cgroups are left: {left:?}");
    Ok(())
}
