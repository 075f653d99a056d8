//! A store takes over the data of a real etcd.
#![allow(clippy::disallowed_methods)] // a test as a whole

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use integration_tests::members::{etcdctl, soon};
use integration_tests::{check_log, machine, program};
use libtest_mimic::{Arguments, Failed, Trial};
use wire::etcdserverpb::auth_client::AuthClient;
use wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use wire::etcdserverpb::kv_client::KvClient;
use wire::etcdserverpb::lease_client::LeaseClient;
use wire::etcdserverpb::request_op::Request as Operation;
use wire::etcdserverpb::watch_client::WatchClient;
use wire::etcdserverpb::watch_request::RequestUnion;
use wire::etcdserverpb::{
    AuthenticateRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseLeasesRequest,
    LeaseTimeToLiveRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest,
    WatchCreateRequest, WatchRequest,
};

const KEYS: usize = 3000;
/// Writes in one transaction, of the 128 that etcd takes.
const WRITES: usize = 100;
const LEASES: [(i64, i64); 3] = [(0x11, 600), (0x22, 3600), (0x33, 100_000)];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let has_etcd = Command::new("etcd").arg("--version").output().is_ok()
        && Command::new("etcdctl").arg("version").output().is_ok();
    let trial = |name: &str, test: fn() -> anyhow::Result<()>| {
        Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:#}"))))
            .with_ignored_flag(!has_etcd)
    };
    let trials = vec![
        trial("store_imports_the_data_of_an_etcd", || machine::block_on(keys_and_leases())),
        trial("store_imports_the_users_of_an_etcd", || machine::block_on(users())),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A process that is killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn ports<const COUNT: usize>() -> anyhow::Result<[u16; COUNT]> {
    // All are held at the same time, so that no port comes twice.
    let mut held = Vec::new();
    let mut ports = [0; COUNT];
    for port in &mut ports {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}

/// An etcd, and where it is.
async fn etcd(dir: &Path) -> anyhow::Result<(Running, String)> {
    let [client, peer] = ports()?;
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let child = Command::new("etcd")
        .arg("--data-dir")
        .arg(dir.join("etcd"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(dir.join("etcd.log"))?)
        .spawn()
        .context("etcd")?;
    let running = Running(child);
    soon("etcd answers", async || everything(&client).await).await?;
    Ok((running, client))
}

fn tool(words: &[&str]) -> anyhow::Result<String> {
    machine::output(&program("ironclad-store")?.display().to_string(), words)
}

/// Starts a store on data that were imported.
fn start(dir: &Path, data: &str) -> anyhow::Result<(Running, String)> {
    let [port] = ports()?;
    let listen = format!("client.listen=127.0.0.1:{port}");
    let child = Command::new(program("ironclad-store")?)
        .args(["--set", data, "--set", &listen])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(dir.join("store.log"))?)
        .spawn()?;
    Ok((Running(child), format!("http://127.0.0.1:{port}")))
}

fn channel(endpoint: &str) -> anyhow::Result<daemon::Channel> {
    daemon::channel::connect(endpoint, None)
}

fn put(key: String, value: &[u8], lease: i64) -> PutRequest {
    let (key, value) = (Bytes::from(key), Bytes::copy_from_slice(value));
    PutRequest { key, value, lease, ..PutRequest::default() }
}

async fn everything(endpoint: &str) -> anyhow::Result<RangeResponse> {
    let zero = Bytes::from_static(&[0]);
    let request = RangeRequest { key: zero.clone(), range_end: zero, ..RangeRequest::default() };
    let mut client = KvClient::new(channel(endpoint)?).max_decoding_message_size(usize::MAX);
    Ok(client.range(request).await?.into_inner())
}

/// Leases with the life that was granted.
async fn leases(endpoint: &str) -> anyhow::Result<Vec<(i64, i64)>> {
    let mut client = LeaseClient::new(channel(endpoint)?);
    let listed = client.lease_leases(LeaseLeasesRequest {}).await?.into_inner().leases;
    let mut found = Vec::new();
    for lease in listed {
        let asked = LeaseTimeToLiveRequest { id: lease.id, keys: false };
        let answer = client.lease_time_to_live(asked).await?.into_inner();
        ensure!(answer.ttl > 0 && answer.ttl <= answer.granted_ttl, "{answer:?}");
        found.push((answer.id, answer.granted_ttl));
    }
    found.sort_unstable();
    Ok(found)
}

/// Keys of all kinds: written once and often, alone and together, with leases and without, small, large and gone.
async fn fill(endpoint: &str) -> anyhow::Result<()> {
    let mut lease = LeaseClient::new(channel(endpoint)?);
    for (id, ttl) in LEASES {
        lease.lease_grant(LeaseGrantRequest { id, ttl }).await?;
    }
    let mut kv = KvClient::new(channel(endpoint)?);
    let wanted: Vec<usize> = (0..KEYS).collect();
    for together in wanted.chunks(WRITES) {
        let operation = |n: &usize| {
            let lease = LEASES.get(n % 7).map_or(0, |(id, _)| *id);
            let put = put(format!("/registry/pods/{n:05}"), &[b'v'; 200], lease);
            RequestOp { request: Some(Operation::RequestPut(put)) }
        };
        let success = together.iter().map(operation).collect();
        kv.txn(TxnRequest { success, ..TxnRequest::default() }).await?;
    }
    for n in 0..200 {
        kv.put(put(format!("/registry/pods/{:05}", n % 50), &[b'w'; 10], 0)).await?;
    }
    kv.put(put("large".into(), &[7; 1 << 20], 0)).await?;
    kv.put(put("empty".into(), &[], LEASES[0].0)).await?;
    let (key, range_end) = ("/registry/pods/01".into(), "/registry/pods/02".into());
    kv.delete_range(DeleteRangeRequest { key, range_end, prev_kv: false }).await?;
    // Again, so that its version begins at one.
    kv.put(put("/registry/pods/01000".into(), b"again", 0)).await?;
    let key = Bytes::from_static(b"/registry/pods/02000");
    kv.delete_range(DeleteRangeRequest { key, ..DeleteRangeRequest::default() }).await?;
    Ok(())
}

async fn keys_and_leases() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (source, from) = etcd(dir.path()).await?;
    fill(&from).await?;
    let data = format!("data_dir={}", dir.path().join("data").display());
    killed(dir.path(), &data).await?;
    tool(&["import", "--from", &from, "--set", &data])?;
    let again = tool(&["import", "--from", &from, "--set", &data]);
    ensure!(again.is_err(), "imported over a store");
    let (before, lives) = (everything(&from).await?, leases(&from).await?);
    drop(source);

    let (_store, endpoint) = start(dir.path(), &data)?;
    let after = soon("the store answers", async || everything(&endpoint).await).await?;
    let revision = |r: &RangeResponse| r.header.as_ref().map_or(0, |header| header.revision);
    let (old, new) = (revision(&before), revision(&after));
    ensure!(before.kvs.len() == KEYS + 2 - 1000, "{} keys to import", before.kvs.len());
    ensure!(before.kvs == after.kvs, "the keys are others");
    ensure!(new == old + 1, "revision {new} after {old}");
    ensure!(lives == LEASES && leases(&endpoint).await? == lives, "the leases are others");

    // Who saw the old revision cannot go on from it, but from the one after it.
    let watch = |start_revision: i64| WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
            key: "new".into(),
            start_revision,
            ..WatchCreateRequest::default()
        })),
    };
    let mut client = WatchClient::new(channel(&endpoint)?);
    let (asks, asked) = tokio::sync::mpsc::channel(2);
    asks.send(watch(old)).await?;
    let asked = tokio_stream::wrappers::ReceiverStream::new(asked);
    let mut heard = client.watch(asked).await?.into_inner();
    ensure!(heard.message().await?.is_some_and(|m| m.created), "the watch does not begin");
    let end = heard.message().await?.context("no end")?;
    ensure!(end.canceled && end.compact_revision == new, "{end:?}");
    asks.send(watch(new)).await?;
    ensure!(heard.message().await?.is_some_and(|m| m.created), "the watch does not begin");
    // Revisions and versions go on where they were.
    let mut kv = KvClient::new(channel(&endpoint)?);
    let is_fifth = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Version.into(),
        key: "/registry/pods/00000".into(),
        target_union: Some(TargetUnion::Version(5)),
        ..Compare::default()
    };
    let success =
        vec![RequestOp { request: Some(Operation::RequestPut(put("new".into(), b"", 0))) }];
    let txn = TxnRequest { compare: vec![is_fifth], success, ..TxnRequest::default() };
    ensure!(kv.txn(txn).await?.into_inner().succeeded, "a version is another");
    let event = heard.message().await?.context("no event")?;
    let at = event.events.first().and_then(|e| e.kv.as_ref()).map(|kv| kv.mod_revision);
    ensure!(at == Some(new + 1), "{event:?}");
    check_log(&std::fs::read_to_string(dir.path().join("store.log"))?, &[])
}

/// An import that is killed leaves a directory in which no store starts, and in which an import can begin again.
async fn killed(dir: &Path, data: &str) -> anyhow::Result<()> {
    // It takes connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let from = format!("http://{}", silent.local_addr()?);
    let mut import = Running(
        Command::new(program("ironclad-store")?)
            .args(["import", "--from", &from, "--set", data])
            .stdin(Stdio::null())
            .spawn()?,
    );
    soon("the import has begun", async || {
        ensure!(dir.join("data/incomplete").exists(), "not yet");
        Ok(())
    })
    .await?;
    import.0.kill()?;
    import.0.wait()?;
    let (mut store, _) = start(dir, data)?;
    let status = soon("it ends", async || store.0.try_wait()?.context("it runs")).await?;
    ensure!(!status.success(), "it took half an import for its data");
    let log = std::fs::read_to_string(dir.join("store.log"))?;
    ensure!(log.contains("did not end; run it again"), "it does not say why:\n{log}");
    Ok(())
}

async fn users() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (source, from) = etcd(dir.path()).await?;
    let ctl = |words: &[&str]| etcdctl(&from, words);
    ctl(&["put", "/app/a", "1"])?;
    ctl(&["user", "add", "root:secret"])?;
    ctl(&["user", "grant-role", "root", "root"])?;
    ctl(&["user", "add", "app:other"])?;
    ctl(&["role", "add", "reader"])?;
    ctl(&["role", "grant-permission", "reader", "read", "/app/", "/app0"])?;
    ctl(&["user", "grant-role", "app", "reader"])?;
    ctl(&["auth", "enable"])?;

    let data = format!("data_dir={}", dir.path().join("data").display());
    let password = dir.path().join("password");
    std::fs::write(&password, "wrong\n")?;
    let password_file = password.display().to_string();
    let refused = |words: &[&str], why: &str| {
        let all = [&["import", "--from", &from, "--set", &data], words].concat();
        let said = tool(&all).err().map(|error| format!("{error:#}")).context("not refused")?;
        ensure!(said.contains(why), "{words:?}: {said}");
        Ok(())
    };
    refused(&[], "--user and --password-file")?;
    let login = ["--user", "root", "--password-file", &password_file];
    refused(&login, "log in as root: etcdserver: authentication failed")?;
    std::fs::write(&password, "secret\n")?;
    refused(&login, "need new ones: app;")?;
    tool(
        &[&["import", "--from", &from, "--set", &data, "--without-passwords"], &login[..]].concat(),
    )?;
    drop(source);

    let (_store, endpoint) = start(dir.path(), &data)?;
    let log_in = async |name: &str, password: &str| {
        let (name, password) = (name.to_owned(), password.to_owned());
        let mut client = AuthClient::new(channel(&endpoint)?);
        let answer = client.authenticate(AuthenticateRequest { name, password }).await?;
        anyhow::Ok(answer.into_inner().token)
    };
    soon("root logs in", async || log_in("root", "secret").await).await?;
    ensure!(log_in("app", "other").await.is_err(), "a password was made up");
    ensure!(log_in("app", "").await.is_err(), "no password is one");
    ensure!(everything(&endpoint).await.is_err(), "a stranger reads");
    let as_root = |words: &[&str]| etcdctl(&endpoint, &[&["--user=root:secret"], words].concat());
    let role = as_root(&["role", "get", "reader"])?.concat().concat();
    ensure!(role.contains("[/app/, /app0)") || role.contains("[/app//app0)"), "{role}");
    let user = as_root(&["user", "get", "app"])?.concat().concat();
    ensure!(user.contains("Roles: reader"), "{user}");
    let read = as_root(&["get", "/app/a"])?.concat();
    ensure!(read == ["/app/a", "1"], "{read:?}");
    Ok(())
}
