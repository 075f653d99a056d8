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
        tests.push(("root_control_plane_knows_kubectls_verbs", || {
            machine::block_on(async { verbs() })
        }));
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
    attached(&terminal)?;
    debugged(&terminal)
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

/// A container is added to a running pod, and shares its processes with the one that is looked at.
fn debugged(terminal: &Terminal) -> anyhow::Result<()> {
    let image = ["--image=mine:1", "--image-pull-policy=Never", "--container=dbg", "--target=c"];
    let words = [&["debug", "-i", "web"][..], &image, &["--arguments-only", "--", "cat"]].concat();
    let mut child = start(&mut terminal.kubectl(&words))?;
    let mut input = child.stdin.take().context("no input")?;
    input.write_all(b"looked\n")?;
    // kubectl says first what it is about to do.
    let mut lines = BufReader::new(child.stdout.as_mut().context("no output")?).lines();
    ensure!(lines.any(|line| line.is_ok_and(|line| line == "looked")), "nothing came back");
    // Process 1 is that of the other container.
    let processes = ["exec", "web", "-c", "dbg", "--", "/demo", "cat", "/proc/1/cmdline"];
    let first = run(&mut terminal.kubectl(&processes), "")?;
    ensure!(first.code == Some(0) && !first.out.contains("cat"), "{first:?}");
    drop(input);
    child.wait()?;
    let named = "--for=jsonpath={.status.ephemeralContainerStatuses[0].name}=dbg";
    terminal.ironclad(&["wait", named, "pod/web"], "")?.says("pod/web condition met")?;
    Ok(())
}

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {part: a}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: "web:1", ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, labels: {part: a}}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"#;
const EXTRA: &str = r#"
---
apiVersion: v1
kind: ConfigMap
metadata: {name: extra, labels: {part: a}}
data: {a: "1"}
"#;
const NODE: &str = r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "far"}}"#;
const ROLE: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: default}
rules: [{apiGroups: [""], resources: [pods], verbs: [get, list]}]
"#;
const KUSTOMIZATION: &str = r#"
namePrefix: z-
configMapGenerator: [{name: gen, literals: [x=y]}]
"#;

/// Commands in their order and a part of what each prints; one that begins with `!` must fail, with that among its errors.
/// `WEB`, `MORE` and so on stand for files.
const VERBS: &[(&str, &str)] = &[
    ("apply -f MORE", "configmap/extra created"),
    ("!diff -f WEB3", "+  replicas: 3"),
    ("diff -f WEB", ""),
    (
        "apply -f WEB3 --prune -l part=a --prune-allowlist=core/v1/ConfigMap",
        "configmap/extra pruned",
    ),
    ("apply view-last-applied deployment/web", "replicas: 3"),
    ("replace -f WEB", "service/web replaced"),
    ("replace -f WEB", "deployment.apps/web replaced"),
    ("edit service web", "service/web edited"),
    ("get service -l part=b -o name", "service/web"),
    ("apply --server-side --field-manager=other -f WEB3 --force-conflicts", "serverside-applied"),
    ("!apply --server-side --field-manager=third -f WEB", "conflict with \"other\""),
    ("autoscale deployment web --min=1 --max=5 --cpu-percent=80", "autoscaled"),
    ("get hpa web", "Deployment/web"),
    ("label deployment web x=y", "labeled"),
    ("annotate deployment web x=y", "annotated"),
    ("scale deployment web --replicas=4", "scaled"),
    ("wait --for=jsonpath={.status.replicas}=4 deployment/web", "condition met"),
    ("set image deployment/web c=web:2", "image updated"),
    ("set env deployment/web A=b", "env updated"),
    ("set resources deployment web --requests=cpu=10m", "resource requirements updated"),
    (
        "wait --for=jsonpath={.metadata.annotations.deployment\\.kubernetes\\.io/revision}=4 deployment/web",
        "met",
    ),
    ("rollout history deployment/web", "REVISION"),
    ("rollout history deployment/web --revision=2", "web:2"),
    ("rollout undo deployment/web --to-revision=1", "rolled back"),
    ("wait --for=jsonpath={.spec.template.spec.containers[0].image}=web:1 deployment/web", "met"),
    ("rollout pause deployment/web", "paused"),
    ("rollout resume deployment/web", "resumed"),
    ("rollout restart deployment/web", "restarted"),
    ("expose deployment web --name=again --port=81 --target-port=8080", "service/again exposed"),
    (
        "patch deployment web -p {\"spec\":{\"template\":{\"spec\":{\"containers\":[{\"name\":\"d\",\"image\":\"d:1\"}]}}}}",
        "patched",
    ),
    ("patch deployment web --type=merge -p {\"spec\":{\"replicas\":1}}", "patched"),
    (
        "patch deployment web --type=json -p [{\"op\":\"remove\",\"path\":\"/metadata/labels/x\"}]",
        "patched",
    ),
    ("get deployment web -o jsonpath={.spec.template.spec.containers[*].name}", "d c"),
    ("run one --image=web:1 --port=8080 --expose", "pod/one created"),
    ("create quota q --hard=pods=100", "created"),
    ("create rolebinding rb --clusterrole=view --user=ann", "created"),
    ("auth can-i list pods --as ann", "yes"),
    ("!auth can-i delete pods --as ann", "no"),
    ("auth whoami", "system:masters"),
    ("auth reconcile -f ROLE", "reconciled"),
    ("create token default", "ey"),
    ("create secret generic s --from-literal=a=b", "created"),
    ("create ingress i --rule=a.example/*=web:80", "created"),
    ("create priorityclass pc --value=5", "created"),
    ("create poddisruptionbudget p --selector=app=web --min-available=1", "created"),
    ("create cronjob cj --image=web:1 --schedule=*/5_*_*_*_*", "created"),
    ("create -f NODE", "node/far created"),
    ("taint node far k=v:NoSchedule", "tainted"),
    ("cordon far", "cordoned"),
    ("uncordon far", "uncordoned"),
    ("drain far --ignore-daemonsets", "drained"),
    ("describe node far", "Unschedulable:      true"),
    ("explain pod.spec.containers.livenessProbe", "livenessProbe <Probe>"),
    ("explain deployment --recursive", "progressDeadlineSeconds"),
    ("api-resources", "deploy"),
    ("api-versions", "apps/v1"),
    ("cluster-info", "control plane"),
    ("events", "ScalingReplicaSet"),
    ("kustomize DIR", "z-gen-"),
    ("apply -k DIR", "configmap/z-gen-"),
    ("delete -k DIR", "deleted"),
    ("get all --show-labels", "deployment.apps/web"),
    ("get pods -o wide --sort-by=.metadata.name", "web"),
    ("get --raw /readyz?verbose", "readyz check passed"),
    ("!get pods nothing", "pods \"nothing\" not found"),
    ("!create -f NODE", "nodes \"far\" already exists"),
    ("!delete deployment web --cascade=wrong", "invalid cascade value"),
    ("delete deployment web --cascade=orphan", "deleted"),
    ("get replicaset -l app=web -o name", "replicaset"),
    ("delete all --all --wait=false", "deleted"),
];

/// What a person does at a control plane without a node.
fn verbs() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    cluster.up()?;
    let terminal = Terminal { cluster };
    let three = WEB.replace("replicas: 2", "replicas: 3");
    let more = format!("{WEB}{EXTRA}");
    std::fs::create_dir(terminal.path("kustomize"))?;
    let files = [
        ("WEB3", "web3.yaml", three.as_str()),
        ("WEB", "web.yaml", WEB),
        ("MORE", "more.yaml", &more),
        ("NODE", "node.json", NODE),
        ("ROLE", "role.yaml", ROLE),
        ("DIR", "kustomize/kustomization.yaml", KUSTOMIZATION),
    ];
    for (_, file, text) in files {
        std::fs::write(terminal.path(file), text)?;
    }
    let file = |word: &str| -> Option<String> {
        let (_, file, _) = files.iter().find(|(name, _, _)| *name == word)?;
        let path = terminal.path(file);
        let path = if word == "DIR" { path.parent()?.to_owned() } else { path };
        Some(path.to_string_lossy().into_owned())
    };
    for (line, wanted) in VERBS {
        let (fails, line) = line.strip_prefix('!').map_or((false, *line), |line| (true, line));
        let words = line.split(' ').map(|w| file(w).unwrap_or_else(|| w.replace('_', " ")));
        let words: Vec<String> = words.collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = terminal.kubectl(&words);
        command.env("KUBE_EDITOR", "sed -i s/part:.a/part:\\ b/").env("KUBECTL_TIMEOUT", "30s");
        let done = run(&mut command, "")?;
        let printed = done.out.contains(wanted) || (fails && done.err.contains(wanted));
        ensure!(printed && (done.code != Some(0)) == fails, "kubectl {line}: {done:#?}");
    }
    Ok(())
}
