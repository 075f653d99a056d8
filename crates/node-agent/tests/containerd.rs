//! Runs a pod on a real, private containerd. Needs root, containerd, runc, CNI plugins and the
//! static images; what a machine lacks is listed as ignored, by name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use node_agent::cni;
use node_agent::containerd::{Containerd, unmount_below};
use node_agent::images;
use node_agent::pod::State;
use node_agent::pod::spec::{ContainerWish, Dns, SandboxWish, Seccomp, Security};
use node_agent::runtime::{Event, Runtime};
use node_agent::tasks::{Command, Process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CNI_BIN: &str = "/usr/lib/cni";

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let lacks = lacks();
    let trial = Trial::test("root_containerd_runs_a_pod_and_leaves_nothing", || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(whole()).map_err(|error| Failed::from(format!("{error:#}")))
    });
    let trial = trial.with_ignored_flag(!lacks.is_empty());
    if !lacks.is_empty() {
        eprintln!("lacking: {}", lacks.join(", "));
    }
    libtest_mimic::run(&arguments, vec![trial]).exit();
}

/// The static images, built beforehand, below the target directory.
fn image(name: &str) -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    let target = exe.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists());
    let triple = format!("{}-unknown-linux-gnu/release", std::env::consts::ARCH);
    target.unwrap_or(Path::new("target")).join(triple).join(name)
}

fn lacks() -> Vec<&'static str> {
    let mut lacks = Vec::new();
    let found = |name: &str| {
        let paths = std::env::var("PATH").unwrap_or_default();
        paths.split(':').any(|dir| Path::new(dir).join(name).exists())
    };
    if !nix::unistd::geteuid().is_root() {
        lacks.push("root");
    }
    if !found("containerd") || !found("runc") {
        lacks.push("containerd and runc");
    }
    if !Path::new(CNI_BIN).join("ptp").exists() {
        lacks.push("CNI plugins");
    }
    if !image("ironclad-pause").exists() || !image("ironclad-demo").exists() {
        lacks.push("static pause and demo images");
    }
    lacks
}

async fn whole() -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let before = traces();
    let containerd =
        Containerd::new(&scratch.path().join("containerd"), "containerd", Path::new(CNI_BIN));
    let outcome = pod(&containerd, scratch.path()).await;
    let stopped = containerd.stop(true).await;
    unmount_below(scratch.path())?;
    node_agent::cgroup::remove("/ironclad-test")?;
    outcome?;
    stopped?;
    ensure!(!containerd.dir.exists(), "files are left");
    let after = traces();
    ensure!(before == after, "left behind: before {before:?}, after {after:?}");
    Ok(())
}

/// What a pod could leave behind: mounts, network namespaces, interfaces, shims, cgroups.
fn traces() -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut traces: Vec<String> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| point.contains("containerd") || point.contains("netns"))
        .map(str::to_owned)
        .collect();
    for dir in ["/var/run/netns", "/sys/class/net", "/sys/fs/cgroup/memory/ironclad-test"] {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        traces.extend(entries.map(|entry| entry.path().display().to_string()));
    }
    traces.sort();
    traces
}

fn sandbox(scratch: &Path) -> SandboxWish {
    SandboxWish {
        name: "web".into(),
        namespace: "default".into(),
        uid: "0f7c".into(),
        hostname: "web".into(),
        log_dir: scratch.join("logs").display().to_string(),
        dns: Some(Dns { servers: vec!["10.96.0.10".into()], ..Dns::default() }),
        cgroup_parent: "/ironclad-test/besteffort/pod0f7c".into(),
        security: Security { seccomp: Seccomp::RuntimeDefault, ..Security::default() },
        ..SandboxWish::default()
    }
}

async fn pod(containerd: &Containerd, scratch: &Path) -> anyhow::Result<()> {
    let channel = containerd.start().await?;
    let range = ["10.213.7.0/24".to_owned()];
    cni::write(&containerd.cni_dir(), &cni::config(&range, &containerd.cni_state_dir(), true))?;
    images::ensure_packed(&channel, images::PAUSE_IMAGE, &image("ironclad-pause")).await?;
    images::ensure_packed(&channel, images::DEMO_IMAGE, &image("ironclad-demo")).await?;
    let runtime = Runtime::new(channel);
    let found = wait_for(async || Ok(runtime.image(images::DEMO_IMAGE).await?)).await?;
    wait_for(async || Ok(runtime.health().await?.trouble.is_empty().then_some(()))).await?;

    let wish = sandbox(scratch);
    let sandbox = runtime.run_sandbox(&wish).await.context("run sandbox")?;
    let container = ContainerWish {
        name: "demo".into(),
        image_id: found.id.clone(),
        env: vec![("GREETING".into(), "Hello from a test".into())],
        log_path: "demo/0.log".into(),
        security: Security { seccomp: Seccomp::RuntimeDefault, ..Security::default() },
        grace_s: 3,
        ..ContainerWish::default()
    };
    let id = runtime.create_container(&sandbox, &container, &wish).await.context("create")?;
    let mut events = runtime.events();
    let exit = async move {
        tokio::time::timeout(Duration::from_secs(60), futures::StreamExt::next(&mut events)).await
    };
    let mut exits = tokio::task::JoinSet::new();
    exits.spawn(exit);
    runtime.start_container(&id).await.context("start")?;

    let seen = runtime.pod("0f7c").await?;
    ensure!(seen.sandboxes.len() == 1 && seen.sandboxes[0].ready, "{seen:?}");
    ensure!(seen.latest("demo").is_some_and(|c| c.state == State::Running), "{seen:?}");
    let ip = seen.sandboxes[0].ips.first().context("no address")?.clone();
    let page = wait_for(async || Ok(fetch(&ip).await.ok())).await?;
    ensure!(page.contains("Hello from a test\npod: web\n"), "{page}");

    exec(&runtime, scratch, &id).await.context("exec")?;
    // A second containerd is not started while one answers: the pod is adopted as it is.
    let adopted = Runtime::new(containerd.start().await?);
    ensure!(adopted.pod("0f7c").await? == seen, "the pod changed when it was adopted");

    runtime.stop_container(&id, Duration::from_secs(10)).await.context("stop")?;
    let event = exits
        .join_next()
        .await
        .context("no task")??
        .context("no exit event")?
        .context("events ended")??;
    ensure!(event == Event::Exit { container: id.clone() }, "{event:?}");
    let ended = wait_for(async || {
        let pod = runtime.pod("0f7c").await?;
        Ok(pod.latest("demo").filter(|c| c.state == State::Exited).cloned())
    })
    .await?;
    ensure!(ended.exit_code == 0, "{ended:?}");
    let log = std::fs::read_to_string(&ended.log_path)?;
    ensure!(log.contains("stdout F listening on port 8080"), "{log}");
    runtime.remove_container(&id).await?;
    runtime.stop_sandbox(&sandbox).await?;
    runtime.remove_sandbox(&sandbox).await?;
    ensure!(runtime.pods().await?.is_empty(), "pods are left");
    Ok(())
}

async fn exec(runtime: &Runtime, scratch: &Path, id: &str) -> anyhow::Result<()> {
    let (code, output) = runtime
        .exec_sync(id, &["/demo".into(), "echo".into(), "hi".into()], Duration::from_secs(5))
        .await?;
    ensure!(code == 0 && output == b"hi\n", "{code} {output:?}");
    let command = Command {
        container: id.to_owned(),
        args: vec!["/demo".into(), "cat".into()],
        stdin: true,
        tty: false,
    };
    let mut process =
        Process::start(runtime.channel(), &command, "exec-1", &scratch.join("exec")).await?;
    let mut stdin = process.stdin.take().context("no stdin")?;
    stdin.write_all(b"through a pipe").await?;
    drop(stdin);
    process.close_stdin().await?;
    let mut output = String::new();
    let mut stdout = process.stdout.take().context("no stdout")?;
    tokio::time::timeout(Duration::from_secs(5), stdout.read_to_string(&mut output)).await??;
    let code = process.waiter().await?;
    process.finish().await;
    ensure!(code == 0 && output == "through a pipe", "{code} {output:?}");
    Ok(())
}

async fn fetch(ip: &str) -> anyhow::Result<String> {
    let mut stream = tokio::net::TcpStream::connect((ip, 8080)).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    Ok(page)
}

async fn wait_for<T>(
    mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    for _ in 0..250 {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("waited for nothing")
}
