//! The node service over a real, private containerd: logs, exec, port-forward, stats. Needs root,
//! containerd, runc, CNI plugins and the static images; what a machine lacks is listed as ignored.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use daemon::Context;
use libtest_mimic::{Arguments, Failed, Trial};
use node_agent::containerd::{Containerd, unmount_below};
use node_agent::pod::spec::{ContainerWish, NodeFacts, SandboxWish, Seccomp, Security};
use node_agent::runtime::Runtime;
use node_agent::serve::NodeService;
use node_agent::{cgroup, cni, images};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use wire::apiserver as pb;
use wire::apiserver::exec_input::Input;
use wire::apiserver::exec_output::Output;
use wire::apiserver::node_client::NodeClient;

const CNI_BIN: &str = "/usr/lib/cni";
const CGROUP: &str = "/ironclad-serve-test";
const UID: &str = "5e7e";
const PATIENCE: Duration = Duration::from_secs(10);

type Client = NodeClient<daemon::Channel>;

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let lacks = lacks();
    let trial = Trial::test("root_containerd_node_service_serves_a_pod", || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(whole()).map_err(|error| Failed::from(format!("{error:#}")))
    });
    if !lacks.is_empty() {
        eprintln!("lacking: {}", lacks.join(", "));
    }
    libtest_mimic::run(&arguments, vec![trial.with_ignored_flag(!lacks.is_empty())]).exit();
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
    let paths = std::env::var("PATH").unwrap_or_default();
    let found = |name: &str| paths.split(':').any(|dir| Path::new(dir).join(name).exists());
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
    let dir = scratch.path().join("containerd");
    let containerd = Containerd::new(&dir, "containerd", Path::new(CNI_BIN));
    let ctx = Context::new(CancellationToken::new());
    let outcome = served(&containerd, scratch.path(), &ctx).await;
    ctx.shutdown.cancel();
    let stopped = containerd.stop(true).await;
    unmount_below(scratch.path())?;
    cgroup::remove(CGROUP)?;
    outcome?;
    stopped?;
    let left = std::fs::read_dir(scratch.path().join("exec"))?.count();
    ensure!(left == 0, "{left} directories of commands are left");
    Ok(())
}

async fn served(containerd: &Containerd, scratch: &Path, ctx: &Context) -> anyhow::Result<()> {
    let channel = containerd.start().await?;
    let range = ["10.213.8.0/24".to_owned()];
    cni::write(&containerd.cni_dir(), &cni::config(&range, &containerd.cni_state_dir(), false))?;
    images::ensure_packed(&channel, images::PAUSE_IMAGE, &image("ironclad-pause")).await?;
    images::ensure_packed(&channel, images::DEMO_IMAGE, &image("ironclad-demo")).await?;
    let runtime = Runtime::new(channel);
    let found = wait_for(async || Ok(runtime.image(images::DEMO_IMAGE).await?)).await?;
    wait_for(async || Ok(runtime.health().await?.trouble.is_empty().then_some(()))).await?;
    let id = start_pod(&runtime, scratch, &found.id).await?;

    let node = NodeFacts { name: "n1".into(), ..NodeFacts::default() };
    let service = NodeService::new(runtime.clone(), ctx.clone(), scratch.join("exec"), &node);
    let routes = tonic::service::Routes::new(service.server());
    let client = NodeClient::new(daemon::channel::in_memory(routes, ()));

    logs(client.clone()).await.context("logs")?;
    exec(client.clone()).await.context("exec")?;
    port_forward(client.clone()).await.context("port-forward")?;
    stats(client.clone()).await.context("stats")?;
    follow_to_the_end(client, &runtime, &id).await.context("follow")
}

async fn start_pod(runtime: &Runtime, scratch: &Path, image: &str) -> anyhow::Result<String> {
    let security = || Security { seccomp: Seccomp::RuntimeDefault, ..Security::default() };
    let wish = SandboxWish {
        name: "web".into(),
        namespace: "default".into(),
        uid: UID.into(),
        hostname: "web".into(),
        log_dir: scratch.join("logs").display().to_string(),
        cgroup_parent: format!("{CGROUP}/besteffort/pod{UID}"),
        security: security(),
        ..SandboxWish::default()
    };
    let sandbox = runtime.run_sandbox(&wish).await.context("run sandbox")?;
    let container = ContainerWish {
        name: "demo".into(),
        image_id: image.to_owned(),
        env: vec![("GREETING".into(), "Hello from a test".into())],
        log_path: "demo/0.log".into(),
        security: security(),
        grace_s: 3,
        ..ContainerWish::default()
    };
    let id = runtime.create_container(&sandbox, &container, &wish).await.context("create")?;
    runtime.start_container(&id).await.context("start")?;
    Ok(id)
}

fn log_request() -> pb::LogsRequest {
    pb::LogsRequest { namespace: "default".into(), pod: "web".into(), ..Default::default() }
}

async fn logs(mut client: Client) -> anyhow::Result<()> {
    let text = wait_for(async || {
        let mut stream = client.logs(log_request()).await?.into_inner();
        let mut text = Vec::new();
        while let Some(chunk) = stream.message().await? {
            text.extend_from_slice(&chunk.data);
        }
        let text = String::from_utf8(text)?;
        Ok((!text.is_empty()).then_some(text))
    })
    .await?;
    ensure!(text.contains("listening on port 8080\n"), "{text}");
    let absent = pb::LogsRequest { previous: true, ..log_request() };
    let status = client.logs(absent).await.err().context("there is no previous container")?;
    ensure!(status.message().contains("previous terminated container \"demo\""), "{status}");
    let absent = pb::LogsRequest { pod: "other".into(), ..log_request() };
    let status = client.logs(absent).await.err().context("there is no such pod")?;
    ensure!(status.code() == tonic::Code::NotFound, "{status}");
    Ok(())
}

fn start(command: &[&str], stdin: bool) -> pb::ExecInput {
    let start = pb::exec_input::Start {
        namespace: "default".into(),
        pod: "web".into(),
        uid: UID.into(),
        container: "demo".into(),
        command: command.iter().map(ToString::to_string).collect(),
        stdin,
        stdout: true,
        stderr: true,
        tty: false,
    };
    pb::ExecInput { input: Some(Input::Start(start)) }
}

/// Output and exit code of a command.
async fn run(mut client: Client, input: Vec<pb::ExecInput>) -> anyhow::Result<(String, i32)> {
    // The caller's half stays open, as an interactive one's does.
    let input = tokio_stream::iter(input).chain(tokio_stream::pending());
    let mut stream = client.exec(input).await?.into_inner();
    let (mut text, mut code) = (Vec::new(), None);
    let whole = async {
        while let Some(message) = stream.message().await? {
            match message.output {
                Some(Output::Stdout(data) | Output::Stderr(data)) => text.extend_from_slice(&data),
                Some(Output::ExitCode(exit)) => code = Some(exit),
                None => {}
            }
        }
        Ok::<_, tonic::Status>(())
    };
    tokio::time::timeout(PATIENCE, whole).await.context("the command does not end")??;
    Ok((String::from_utf8(text)?, code.context("no exit code")?))
}

async fn exec(client: Client) -> anyhow::Result<()> {
    let said = run(client.clone(), vec![start(&["/demo", "echo", "hi"], false)]).await?;
    ensure!(said == ("hi\n".to_owned(), 0), "{said:?}");
    let large = "x".repeat(300_000);
    let input = vec![
        start(&["/demo", "cat"], true),
        pb::ExecInput { input: Some(Input::Stdin(large.clone().into_bytes().into())) },
        pb::ExecInput { input: Some(Input::StdinClosed(true)) },
    ];
    let said = run(client.clone(), input).await.context("with input")?;
    ensure!(said == (large, 0), "{} bytes, code {}", said.0.len(), said.1);
    let (_, code) = run(client.clone(), vec![start(&["/demo", "exit", "7"], false)]).await?;
    ensure!(code == 7, "exit code {code}");
    let missing = run(client, vec![start(&["/no-such-program"], false)]).await;
    let error = missing.err().context("there is no such program")?.to_string();
    ensure!(error.contains("no such file"), "{error}");
    Ok(())
}

async fn port_forward(mut client: Client) -> anyhow::Result<()> {
    use pb::port_forward_input::{Input, Start};
    let (namespace, pod, uid) = ("default".into(), "web".into(), UID.into());
    let start = Start { namespace, pod, uid, port: 8080 };
    let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let input = [Input::Start(start), Input::Data(request.as_bytes().into())];
    let input = input.map(|input| pb::PortForwardInput { input: Some(input) });
    let input = tokio_stream::iter(input).chain(tokio_stream::pending());
    let mut stream = client.port_forward(input).await?.into_inner();
    let mut page = Vec::new();
    while let Some(message) = tokio::time::timeout(PATIENCE, stream.message()).await?? {
        page.extend_from_slice(&message.data);
    }
    let page = String::from_utf8(page)?;
    ensure!(page.contains("Hello from a test"), "{page}");
    let (namespace, pod, uid) = ("default".into(), "web".into(), UID.into());
    let input = Input::Start(Start { namespace, pod, uid, port: 1 });
    let input = tokio_stream::once(pb::PortForwardInput { input: Some(input) });
    let status = client.port_forward(input).await.err().context("nothing listens there")?;
    ensure!(status.message().contains("failed to connect to localhost:1"), "{status}");
    Ok(())
}

async fn stats(mut client: Client) -> anyhow::Result<()> {
    let reply = client
        .stats(pb::StatsRequest { page: "resource".into(), ..Default::default() })
        .await?
        .into_inner();
    let page = String::from_utf8(reply.body.to_vec())?;
    let metric = "container_memory_working_set_bytes{container=\"demo\",namespace=\"default\"";
    ensure!(page.contains(metric), "{page}");
    let reply = client
        .stats(pb::StatsRequest { page: "summary".into(), ..Default::default() })
        .await?
        .into_inner();
    let page: serde_json::Value = serde_json::from_slice(&reply.body)?;
    ensure!(page["pods"][0]["podRef"]["name"] == "web", "{page}");
    Ok(())
}

async fn follow_to_the_end(mut client: Client, runtime: &Runtime, id: &str) -> anyhow::Result<()> {
    let follow = pb::LogsRequest { follow: true, tail_lines: Some(0), ..log_request() };
    let mut stream = client.logs(follow).await?.into_inner();
    runtime.stop_container(id, PATIENCE).await?;
    let mut text = Vec::new();
    while let Some(chunk) = tokio::time::timeout(PATIENCE, stream.message()).await?? {
        text.extend_from_slice(&chunk.data);
    }
    let text = String::from_utf8(text)?;
    ensure!(!text.is_empty() && !text.contains("listening"), "{text}");
    let status = client.exec(tokio_stream::once(start(&["/demo"], false))).await.err();
    let status = status.context("it does not run any more")?;
    ensure!(status.message().contains("is not running"), "{status}");
    Ok(())
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
