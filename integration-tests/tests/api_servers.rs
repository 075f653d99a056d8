//! API servers as real processes over one store: what one writes the others read at once, clients that behave badly harm
//! nobody, and nothing acknowledged is lost when they are killed.
#![allow(clippy::disallowed_methods)] // a test as a whole

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hyper::Method;
use integration_tests::machine;
use integration_tests::members::{PATIENCE, soon};
use integration_tests::servers::{Events, Rest, Servers, Target};
use libtest_mimic::{Arguments, Failed, Trial};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// Clients that write and read at the same time, and how often each does.
const CLIENTS: usize = 8;
const ROUNDS: usize = 25;
/// Writes that must be acknowledged between one kill and the next.
const WRITES_BETWEEN: usize = 40;
/// Connections of each kind that say half of what they should.
const HALVES: usize = 60;
/// Watches that see nothing, and watches whose client does not read (`SLOW=1000` for more of them).
const IDLE: usize = 1000;
const SLOW: usize = 100;
/// What the slow ones miss: so many objects of that size.
const LARGE: usize = 100;
const LARGE_BYTES: usize = 100 << 10;
/// What a server may need for all of that. Were it queued, it would be a gigabyte.
const GROWTH_MIB_MAX: u64 = 300;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each has processes that sync a disk, and measures memory.
    arguments.test_threads = Some(1);
    let trial = |name: &str, test: fn() -> anyhow::Result<()>| {
        Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:#}"))))
    };
    let trials = vec![
        trial("api_servers_read_what_others_wrote", || machine::block_on(consistent())),
        trial("api_servers_compact_history", || machine::block_on(compacted())),
        trial("api_servers_are_killed_and_nothing_is_lost", || machine::block_on(killed())),
        trial("api_server_bounds_what_is_half_sent", || machine::block_on(halves())),
        trial("api_server_bounds_bodies", || machine::block_on(bodies())),
        trial("api_server_bounds_watches", || machine::block_on(watches())),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn map(name: &str, value: &str) -> String {
    let metadata = json!({"name": name});
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"key": value}})
        .to_string()
}

async fn create(rest: &Rest, name: &str, value: &str) -> anyhow::Result<()> {
    let (code, answer) = rest.ask(Method::POST, MAPS, map(name, value)).await?;
    ensure!(code == 201, "create {name}: {code} {answer}");
    Ok(())
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn version(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned()
}

/// What one server acknowledged, the other one shows: by name, in a list, and after a change.
/// What was newest an interval ago is forgotten; what is there stays.
async fn compacted() -> anyhow::Result<()> {
    let mut servers = Servers::prepare(2)?;
    servers.settings.push("store.compaction_interval_s=1".into());
    servers.start_store()?;
    for at in 0..2 {
        servers.start_server(at)?;
        servers.ready(at).await?;
    }
    let rest = servers.rest(0).await?;
    for name in ["a", "b", "c"] {
        create(&rest, name, "first").await?;
    }
    let (_, page) = rest.ask(Method::GET, &format!("{MAPS}?limit=1"), "").await?;
    let token = page["metadata"]["continue"].as_str().context("one page")?.to_owned();
    let change = json!({"data": {"key": "second"}}).to_string();
    let (code, answer) = rest.ask(Method::PATCH, &format!("{MAPS}/a"), change).await?;
    ensure!(code == 200, "{code} {answer}");
    let next = format!("{MAPS}?limit=1&continue={token}");
    let too_old = async || {
        let (code, answer) = rest.ask(Method::GET, &next, "").await?;
        ensure!(code == 410 && answer["reason"] == "Expired", "{code} {answer}");
        Ok(())
    };
    soon("the page is too old", too_old).await?;
    let (code, all) = rest.ask(Method::GET, MAPS, "").await?;
    let names: Vec<String> = all["items"].as_array().into_iter().flatten().map(name).collect();
    ensure!(
        code == 200 && ["a", "b", "c"].iter().all(|n| names.iter().any(|x| x == n)),
        "{names:?}"
    );
    create(&servers.rest(1).await?, "d", "first").await
}

async fn consistent() -> anyhow::Result<()> {
    let servers = Servers::start(2).await?;
    let links = [servers.rest(0).await?, servers.rest(1).await?];
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (writer, reader) = (links[client % 2].clone(), links[(client + 1) % 2].clone());
        clients.spawn(async move {
            for round in 0..ROUNDS {
                let name = format!("c{client}-{round}");
                let path = format!("{MAPS}/{name}");
                create(&writer, &name, "first").await?;
                let (code, found) = reader.ask(Method::GET, &path, "").await?;
                ensure!(code == 200 && found["data"]["key"] == "first", "{name}: {code} {found}");
                let change = json!({"data": {"key": "second"}}).to_string();
                let (code, changed) = reader.ask(Method::PATCH, &path, change).await?;
                ensure!(code == 200, "{name}: {code} {changed}");
                let (_, list) = writer.ask(Method::GET, MAPS, "").await?;
                let items = list["items"].as_array().context("no items")?;
                let shown = items.iter().find(|item| item["metadata"]["name"] == name.as_str());
                ensure!(
                    shown.is_some_and(|map| map["data"]["key"] == "second"),
                    "{name} in a list"
                );
                let (code, _) = writer.ask(Method::DELETE, &path, "").await?;
                ensure!(code == 200, "{name}: {code}");
                let (code, _) = reader.ask(Method::GET, &path, "").await?;
                ensure!(code == 404, "{name} is still there: {code}");
            }
            Ok(())
        });
    }
    while let Some(done) = clients.join_next().await {
        done??;
    }
    Ok(())
}

/// What clients know while daemons are killed under them.
#[derive(Default)]
struct Known {
    acknowledged: Mutex<BTreeSet<String>>,
    stop: AtomicBool,
}

/// Writes until told to stop, through whichever server answers.
async fn write(client: usize, targets: Vec<Target>, known: Arc<Known>) -> anyhow::Result<()> {
    let (mut link, mut turn) = (None, client);
    for number in 0.. {
        if known.stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("w{client}-{number}");
        let written = async {
            let rest = match link.take() {
                Some(rest) => rest,
                None => targets[turn % targets.len()].rest().await?,
            };
            create(&rest, &name, "x").await?;
            anyhow::Ok(rest)
        };
        match written.await {
            Ok(rest) => {
                known.acknowledged.lock().insert(name);
                link = Some(rest);
            }
            Err(_) => {
                turn += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    Ok(())
}

/// Follows the maps from `from` on, and goes on where it was whenever the watch ends.
async fn follow(
    target: Target,
    from: String,
    seen: Arc<Mutex<BTreeSet<String>>>,
    expired: Arc<AtomicUsize>,
) {
    let mut at = from;
    loop {
        let session = async {
            let rest = target.rest().await?;
            let path = format!("{MAPS}?watch=1&allowWatchBookmarks=true&resourceVersion={at}");
            let mut events = Events::watch(&rest, &path).await?;
            loop {
                let event = events.next().await?;
                if event["type"] == "ERROR" {
                    ensure!(event["object"]["code"] == 410, "{event}");
                    expired.fetch_add(1, Ordering::Relaxed);
                    let (_, list) = rest.ask(Method::GET, MAPS, "").await?;
                    seen.lock().extend(list["items"].as_array().into_iter().flatten().map(name));
                    at = version(&list);
                    return anyhow::Ok(());
                }
                at = version(&event["object"]);
                if event["type"] == "ADDED" {
                    ensure!(seen.lock().insert(name(&event["object"])), "twice: {event}");
                }
            }
        };
        if session.await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Kill -9 of each server and of the store while clients write and watch.
async fn killed() -> anyhow::Result<()> {
    let mut servers = Servers::start(2).await?;
    let targets = vec![servers.target(0, "h2")?, servers.target(1, "h2")?];
    let (_, list) = servers.rest(0).await?.ask(Method::GET, MAPS, "").await?;
    let known = Arc::new(Known::default());
    let (mut writers, mut watchers) = (JoinSet::new(), JoinSet::new());
    for client in 0..CLIENTS {
        writers.spawn(write(client, targets.clone(), known.clone()));
    }
    let expired = Arc::new(AtomicUsize::new(0));
    let mut seen = Vec::new();
    for target in &targets {
        let mine = Arc::new(Mutex::new(BTreeSet::new()));
        watchers.spawn(follow(target.clone(), version(&list), mine.clone(), expired.clone()));
        seen.push(mine);
    }
    let more = async |what: &str| {
        let before = known.acknowledged.lock().len();
        let written = async || {
            let now = known.acknowledged.lock().len();
            ensure!(now >= before + WRITES_BETWEEN, "{now} of {before} and more");
            Ok(())
        };
        soon(what, written).await
    };
    for at in 0..2 {
        more("clients write").await?;
        servers.kill_server(at)?;
        more("clients write through the other one").await?;
        servers.start_server(at)?;
        servers.ready(at).await?;
        more("clients write to both").await?;
        servers.kill_store()?;
        servers.start_store()?;
    }
    more("clients write at last").await?;
    known.stop.store(true, Ordering::Relaxed);
    while let Some(done) = writers.join_next().await {
        done??;
    }
    let acknowledged = known.acknowledged.lock().clone();
    for (at, seen) in seen.iter().enumerate() {
        let rest = servers.rest(at).await?;
        let (_, list) = rest.ask(Method::GET, MAPS, "").await?;
        let there: BTreeSet<String> =
            list["items"].as_array().into_iter().flatten().map(name).collect();
        let lost: Vec<&String> = acknowledged.difference(&there).collect();
        ensure!(lost.is_empty(), "server {at} lost {lost:?}");
        let all_seen = async || {
            let missing = acknowledged.difference(&*seen.lock()).count();
            ensure!(missing == 0, "{missing} of {} not seen", acknowledged.len());
            Ok(())
        };
        soon("the watcher has seen all", all_seen).await?;
    }
    println!("{} writes, {} watches expired", acknowledged.len(), expired.load(Ordering::Relaxed));
    Ok(())
}

/// Others are served while `during` is as it is.
async fn unharmed(rest: &Rest, during: &str) -> anyhow::Result<()> {
    for number in 0..20 {
        let name = format!("{during}-{number}");
        create(rest, &name, "x").await?;
        let (code, _) = rest.ask(Method::DELETE, &format!("{MAPS}/{name}"), "").await?;
        ensure!(code == 200, "{name}: {code}");
    }
    Ok(())
}

/// Reads until the server ends the connection.
async fn ended(mut io: impl tokio::io::AsyncRead + Unpin, what: &str) -> anyhow::Result<()> {
    let mut rest = Vec::new();
    // A reset is an end as well. Half a head may stay as long as an idle connection, which is 90 s.
    let end = tokio::time::timeout(2 * PATIENCE, io.read_to_end(&mut rest)).await;
    end.map(drop).with_context(|| format!("{what} is still open"))
}

/// Handshakes, headers and bodies of which the second half never comes.
async fn halves() -> anyhow::Result<()> {
    let servers = Servers::start(1).await?;
    let (rest, target) = (servers.rest(0).await?, servers.target(0, "http/1.1")?);
    unharmed(&rest, "before").await?;
    let before = servers.resident_mib(0)?;
    let (mut handshakes, mut heads, mut bodies) = (Vec::new(), Vec::new(), Vec::new());
    let name = "x".repeat(8 << 10);
    let head = format!("GET /api HTTP/1.1\r\nHost: x\r\nX-Half: {name}");
    let body = format!("POST {MAPS} HTTP/1.1\r\nHost: x\r\nContent-Length: 2097152\r\n\r\n");
    for _ in 0..HALVES {
        let mut half = tokio::net::TcpStream::connect(servers.address(0)).await?;
        half.write_all(b"\x16\x03\x01\x02\x00\x01\x00").await?;
        handshakes.push(half);
        let mut half = target.dial().await?;
        half.write_all(head.as_bytes()).await?;
        half.flush().await?;
        heads.push(half);
        let mut half = target.dial().await?;
        half.write_all(body.as_bytes()).await?;
        // One that is refused is closed before we have said all.
        let _said = half.write_all(&vec![b' '; 1 << 20]).await;
        let _said = half.flush().await;
        bodies.push(half);
    }
    unharmed(&rest, "meanwhile").await?;
    let after = servers.resident_mib(0)?;
    ensure!(after < before + GROWTH_MIB_MAX, "{before} MiB became {after} MiB");
    println!("{before} MiB before, {after} MiB with {HALVES} of each kind");
    for half in handshakes {
        ended(half, "half a handshake").await?;
    }
    for half in heads {
        ended(half, "half a head").await?;
    }
    drop(bodies);
    unharmed(&rest, "after").await
}

/// Bodies that are too large, too deep, or many small things.
async fn bodies() -> anyhow::Result<()> {
    let servers = Servers::start(1).await?;
    let rest = servers.rest(0).await?;
    unharmed(&rest, "before").await?;
    let before = servers.resident_mib(0)?;
    let open = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":"#;
    let many = format!("{open}[{}0]}}", "0,".repeat(1_400_000));
    let cases = [
        ("too large", " ".repeat((3 << 20) + 1), 413),
        ("too deep", format!("{open}{}", "[".repeat(1 << 20)), 400),
        ("deep objects", format!("{open}{}", r#"{"a":"#.repeat(1 << 18)), 400),
        ("many items", many, 400),
        ("cut off", format!("{open}{{"), 400),
    ];
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let rest = if client % 2 == 0 { rest.clone() } else { servers.rest(0).await? };
        let cases = cases.clone();
        clients.spawn(async move {
            for (what, body, wanted) in cases {
                let (code, _) = rest.ask(Method::POST, MAPS, body).await.context(what)?;
                // Together they may be more than there is room for.
                ensure!(code == wanted || code == 429, "{what}: {code}");
            }
            Ok(())
        });
    }
    unharmed(&servers.rest(0).await?, "meanwhile").await?;
    while let Some(done) = clients.join_next().await {
        done??;
    }
    for (what, body, wanted) in cases {
        let (code, _) = rest.ask(Method::POST, MAPS, body).await.context(what)?;
        ensure!(code == wanted, "{what}: {code}, not {wanted}");
    }
    let after = servers.resident_mib(0)?;
    ensure!(after < before + GROWTH_MIB_MAX, "{before} MiB became {after} MiB");
    println!("{before} MiB before, {after} MiB after");
    Ok(())
}

/// Watches of which nobody takes notice.
async fn watches() -> anyhow::Result<()> {
    let servers = Servers::start(1).await?;
    let rest = servers.rest(0).await?;
    unharmed(&rest, "before").await?;
    let before = servers.resident_mib(0)?;
    let idle = servers.rest(0).await?;
    let mut held = Vec::new();
    for _ in 0..IDLE {
        held.push(idle.open(Method::GET, "/api/v1/secrets?watch=1&resourceVersion=0", "").await?);
    }
    let with_idle = servers.resident_mib(0)?;
    let (_, list) = rest.ask(Method::GET, MAPS, "").await?;
    let path = format!("{MAPS}?watch=1&resourceVersion={}", version(&list));
    let mut quick = Events::watch(&servers.rest(0).await?, &path).await?;
    let mut slow = Vec::new();
    let slow_ones = std::env::var("SLOW").ok().and_then(|n| n.parse().ok()).unwrap_or(SLOW);
    for _ in 0..slow_ones {
        let link = servers.rest(0).await?;
        slow.push((Events::watch(&link, &path).await?, link));
    }
    let began = Instant::now();
    let value = "x".repeat(LARGE_BYTES);
    for number in 0..LARGE {
        create(&rest, &format!("large-{number:03}"), &value).await?;
        let event = tokio::time::timeout(PATIENCE, quick.next()).await.context("no event")??;
        ensure!(name(&event["object"]) == format!("large-{number:03}"), "another: {number}");
    }
    let with_slow = servers.resident_mib(0)?;
    println!(
        "{before} MiB, {with_idle} MiB with {IDLE} idle, {with_slow} MiB with {slow_ones} slow, {:?}",
        began.elapsed()
    );
    ensure!(with_slow < before + GROWTH_MIB_MAX, "{before} MiB became {with_slow} MiB");
    // Who reads again at last has missed nothing.
    let (mut late, _link) = slow.pop().context("no slow one")?;
    for number in 0..LARGE {
        let event = tokio::time::timeout(PATIENCE, late.next()).await.context("no event")??;
        ensure!(name(&event["object"]) == format!("large-{number:03}"), "another: {number}");
    }
    unharmed(&rest, "after").await
}
