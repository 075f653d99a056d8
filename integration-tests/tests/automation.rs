//! The cluster from programs in other languages, as people write them: the examples of `docs/grpc.md`, and the Python client of
//! Kubernetes.
#![allow(clippy::disallowed_methods)] // a test as a whole

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, ensure};
use integration_tests::apart::project;
use integration_tests::{Cluster, machine, program};
use libtest_mimic::{Arguments, Failed, Trial};

/// Debian's own interpreter, which finds Debian's modules.
const PYTHON: &str = "/usr/bin/python3";

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trial = |name: &str, modules: &str, test: fn() -> anyhow::Result<()>| {
        Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:#}"))))
            .with_ignored_flag(!python_has(modules))
    };
    let trials = vec![
        trial("python_speaks_grpc_as_the_page_says", "grpc, google.protobuf", examples),
        trial("python_client_of_kubernetes_finds_a_cluster", "kubernetes", python_client),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn python_has(modules: &str) -> bool {
    let import = format!("import {modules}");
    Command::new(PYTHON).args(["-c", &import]).output().is_ok_and(|o| o.status.success())
}

/// The part of the page that says what both examples print.
fn expected() -> anyhow::Result<String> {
    let page = std::fs::read_to_string(project("docs/grpc.md"))?;
    let (_, rest) = page.split_once("Both print the same:\n\n```text\n").context("no such part")?;
    let (text, _) = rest.split_once("```").context("no end")?;
    Ok(text.to_owned())
}

fn examples() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    cluster.up()?;
    let pki = |file: &str| cluster.dir().join("pki").join(file).display().to_string();
    let files = [pki("ca.crt"), pki("admin.crt"), pki("admin.key")];
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let address = cluster.address();
    let expected = expected()?;

    let stubs = tempfile::tempdir()?;
    let made = stubs.path().display().to_string();
    let plugin = machine::output("sh", &["-c", "command -v grpc_python_plugin"])?;
    machine::output(
        "protoc",
        &[
            "-I",
            &project("proto/apiserver").display().to_string(),
            &format!("--python_out={made}"),
            &format!("--grpc_out={made}"),
            &format!("--plugin=protoc-gen-grpc={}", plugin.trim()),
            "objects.proto",
        ],
    )?;
    let python = Command::new(PYTHON)
        .env("PYTHONPATH", &made)
        .arg(project("docs/examples/objects.py"))
        .arg(&address)
        .args(&files)
        .output()?;
    let said = String::from_utf8_lossy(&python.stderr);
    ensure!(python.status.success(), "{said}");
    ensure!(python.stdout == expected.as_bytes(), "{}", String::from_utf8_lossy(&python.stdout));

    let rust = program("examples/objects")?.display().to_string();
    let url = format!("https://{address}");
    let said = machine::output(&rust, &[&[url.as_str()][..], &files].concat())?;
    ensure!(said == expected, "{said}");
    Ok(())
}

fn python_client() -> anyhow::Result<()> {
    let cluster = Cluster::new()?;
    cluster.up()?;
    let script: PathBuf = project("integration-tests/tests/automation/kubernetes_client.py");
    let output = Command::new("timeout")
        .args(["120", PYTHON])
        .arg(script)
        .arg(project("docs/examples/hello.yaml"))
        .env("KUBECONFIG", cluster.dir().join("admin.kubeconfig"))
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
