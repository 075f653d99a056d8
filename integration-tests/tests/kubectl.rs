//! A cluster as a person at a terminal meets it: through `ironclad`'s own commands, and through kubectl's streams.
#![allow(clippy::disallowed_methods)] // a test as a whole

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context as _, ensure};
use integration_tests::load::fetch;
use integration_tests::{Cluster, machine, program};

fn main() -> ExitCode {
    let paths = std::env::var("PATH").unwrap_or_default();
    let mut tests: Vec<machine::Test> =
        vec![("root_node_answers_ironclad", || machine::block_on(async { commands() }))];
    if paths.split(':').any(|dir| Path::new(dir).join("kubectl").exists()) {
        tests.push(("root_node_answers_kubectl", || machine::block_on(streams())));
    } else {
        eprintln!("lacking: kubectl, so root_node_answers_kubectl is left out");
    }
    machine::run(tests)
}

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers:
    - {name: c, image: "mine:1", imagePullPolicy: Never, ports: [{containerPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: shell}
spec:
  restartPolicy: Never
  containers:
    - {name: c, image: "mine:1", imagePullPolicy: Never, args: [cat], stdin: true, stdinOnce: true}
"#;

/// A terminal at a cluster.
struct Terminal {
    cluster: Cluster,
}

/// What a command has done.
#[derive(Debug)]
struct Done {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Done {
    fn says(self, text: &str) -> anyhow::Result<Self> {
        ensure!(self.out.contains(text), "not {text:?} but {self:?}");
        Ok(self)
    }
}

impl Terminal {
    /// A cluster with the pods, of an image that was loaded from a file.
    fn open() -> anyhow::Result<Self> {
        let cluster = Cluster::with_node()?;
        cluster.up()?;
        let terminal = Self { cluster };
        let demo = std::fs::read(machine::images().join("ironclad-demo"))?;
        let archive = node_agent::images::pack("mine:1", &demo, "demo")?;
        let (tar, yaml) = (terminal.path("mine.tar"), terminal.path("pods.yaml"));
        archive.write(std::fs::File::create(&tar)?)?;
        std::fs::write(&yaml, PODS)?;
        let loaded = terminal.ironclad(&["image", "load", &tar.to_string_lossy()], "")?;
        loaded.says("docker.io/library/mine:1 loaded into node n1")?;
        let applied = terminal.ironclad(&["apply", "-f", &yaml.to_string_lossy()], "")?;
        applied.says("pod/web created")?.says("pod/shell created")?;
        let ready = ["wait", "--for=condition=Ready", "pod/web", "pod/shell"];
        terminal.ironclad(&ready, "")?.says("pod/web condition met")?;
        Ok(terminal)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.cluster.dir().join(name)
    }

    fn ironclad(&self, words: &[&str], input: &str) -> anyhow::Result<Done> {
        let dir = self.cluster.dir().to_string_lossy().into_owned();
        // What follows a double dash is the container's.
        let at = words.iter().position(|word| *word == "--").unwrap_or(words.len());
        let (before, after) = words.split_at(at);
        let words = [before, &["--data-dir", &dir], after].concat();
        run(Command::new(program("ironclad")?).args(words), input)
    }

    fn kubectl(&self, words: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(self.path("admin.kubeconfig")).args(words);
        command
    }
}

fn run(command: &mut Command, input: &str) -> anyhow::Result<Done> {
    let mut child = start(command)?;
    child.stdin.take().context("no input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    Ok(Done {
        code: output.status.code(),
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8(output.stderr)?,
    })
}

fn start(command: &mut Command) -> anyhow::Result<Child> {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    piped.spawn().with_context(|| format!("{command:?}"))
}

fn commands() -> anyhow::Result<()> {
    let terminal = Terminal::open()?;
    let ironclad = |words: &[&str]| terminal.ironclad(words, "");
    let yaml = terminal.path("pods.yaml");
    ironclad(&["apply", "-f", &yaml.to_string_lossy()])?.says("pod/web unchanged")?;

    let table = ironclad(&["get", "pods", "-l", "app=web"])?;
    let table =
        table.says("NAME   READY   STATUS    RESTARTS   AGE\nweb    1/1     Running   0")?;
    ensure!(table.out.lines().count() == 2, "{table:?}");
    let name = "jsonpath={.items[*].metadata.name}";
    ensure!(ironclad(&["get", "pods", "-o", name])?.out == "shell web");
    let missing = ironclad(&["get", "pods", "none"])?;
    ensure!(missing.code == Some(1), "{missing:?}");
    ensure!(
        missing.err == "Error from server (NotFound): pods \"none\" not found\n",
        "{missing:?}"
    );

    ironclad(&["logs", "web"])?.says("listening on port 8080\n")?;
    let logs = ironclad(&["logs", "web", "--previous"])?;
    ensure!(logs.code == Some(1) && logs.err.contains("previous terminated container"), "{logs:?}");
    ironclad(&["exec", "web", "--", "/demo", "echo", "a", "b"])?.says("a b\n")?;
    let copied = terminal.ironclad(&["exec", "-i", "web", "--", "/demo", "cat"], "through")?;
    ensure!(copied.out == "through" && copied.code == Some(0), "{copied:?}");
    let failed = ironclad(&["exec", "web", "--", "/demo", "exit", "7"])?;
    ensure!(failed.code == Some(7), "{failed:?}");
    ensure!(failed.err == "command terminated with exit code 7\n", "{failed:?}");

    let pod = ironclad(&["describe", "pod", "web"])?.says("Status:           Running\n")?;
    pod.says("Events:\n")?.says("Started container c\n")?;
    ironclad(&["describe", "node", "n1"])?.says("Non-terminated Pods:")?;

    ironclad(&["delete", "pod", "web", "--now"])?.says("pod \"web\" deleted\n")?;
    ensure!(ironclad(&["get", "pod", "web"])?.code == Some(1), "deleted, and still there");
    Ok(())
}

async fn streams() -> anyhow::Result<()> {
    let terminal = Terminal::open()?;
    // As kubectl does it now, and as it did before WebSocket.
    for (websockets, text) in [("true", "new"), ("false", "old")] {
        let set = |mut command: Command| {
            command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets);
            command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets);
            command
        };
        let copy = ["exec", "-i", "web", "--", "/demo", "cat"];
        let copied = run(&mut set(terminal.kubectl(&copy)), text)?;
        ensure!(copied.out == text && copied.code == Some(0), "{copied:?}");
        let exit = ["exec", "web", "--", "/demo", "exit", "3"];
        let failed = run(&mut set(terminal.kubectl(&exit)), "")?;
        ensure!(failed.code == Some(3), "{failed:?}");

        let mut child = start(&mut set(terminal.kubectl(&["port-forward", "pod/web", ":8080"])))?;
        let pages = forwarded(&mut child).await;
        child.kill()?;
        child.wait()?;
        pages.with_context(|| format!("port-forward with websockets={websockets}"))?;
    }
    let path = "/api/v1/namespaces/default/pods/web/proxy/readyz";
    run(&mut terminal.kubectl(&["get", "--raw", path]), "")?.says("ok")?;
    attached(&terminal)
}

/// Two connections through one port-forward.
async fn forwarded(child: &mut Child) -> anyhow::Result<()> {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().context("no output")?).read_line(&mut line)?;
    let address = line.strip_prefix("Forwarding from ").and_then(|rest| rest.split(' ').next());
    let address = address.with_context(|| format!("unexpected: {line:?}"))?;
    for _ in 0..2 {
        let page = fetch(address, "/").await?;
        ensure!(page.contains("pod: web"), "{page}");
    }
    Ok(())
}

/// Input goes to the container, its output comes back, and the end of the input is its end.
fn attached(terminal: &Terminal) -> anyhow::Result<()> {
    let mut child = start(&mut terminal.kubectl(&["attach", "-i", "shell"]))?;
    let mut input = child.stdin.take().context("no input")?;
    input.write_all(b"hello\n")?;
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().context("no output")?).read_line(&mut line)?;
    ensure!(line == "hello\n", "{line:?}");
    drop(input);
    let status = child.wait()?;
    ensure!(status.success(), "attach ended with {status}");
    let phase = "--for=jsonpath={.status.phase}=Succeeded";
    terminal.ironclad(&["wait", phase, "pod/shell"], "")?.says("pod/shell condition met")?;
    Ok(())
}
