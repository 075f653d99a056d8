//! Chaos with real processes: three members, each with a network and a small disk of its own, are killed, stopped, cut off
//! and filled up, while clients read, write, watch and hold leases. Then everything they saw is checked.
//!
//! `SEED=n` chooses the order and the victims (it is printed), `SECONDS=n` how long at least. It takes turns with time
//! itself, so a seed says what is done, not what comes of it.
#![allow(clippy::disallowed_methods, unreachable_pub)] // a test as a whole

#[path = "store_chaos/checks.rs"]
mod checks;
#[path = "store_chaos/clients.rs"]
mod clients;
#[path = "store_chaos/nemesis.rs"]
mod nemesis;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use integration_tests::lab::{Lab, MEMBERS};
use integration_tests::machine;
use integration_tests::members::{PATIENCE, soon};
use testkit::sim::Rng;
use tokio::task::JoinSet;
use wire::etcdserverpb::kv_client::KvClient;
use wire::etcdserverpb::lease_client::LeaseClient;
use wire::etcdserverpb::maintenance_client::MaintenanceClient;
use wire::etcdserverpb::{HashKvRequest, LeaseLeasesRequest, PutRequest};

use checks::Heard;
use clients::{Change, Clients, Place};
use nemesis::Nemesis;

/// The seed of CI.
const SEED: u64 = 1;
/// How many of each do it at the same time.
const WORKERS: usize = 6;
const HOLDERS: usize = 3;
const WATCHERS: usize = 3;
/// What members may warn of, since it was done to them.
const EXPECTED: &[&str] = &["the disk is full, or is no longer"];

fn main() -> ExitCode {
    let lacks = machine::lacks_of(&["root", "iproute2 and nftables"]);
    let test = ("root_store_chaos_shows_clients_nothing_wrong", chaos as fn() -> _);
    machine::run_lacking(&lacks, vec![test])
}

fn chaos() -> anyhow::Result<()> {
    let mut lab = Lab::build()?;
    let done = machine::block_on(torment(&mut lab));
    if done.is_err() {
        for at in 0..MEMBERS {
            eprintln!("== m{at}\n{}", lab.log(at).unwrap_or_default());
        }
    }
    done
}

fn number(name: &str, otherwise: u64) -> anyhow::Result<u64> {
    match std::env::var(name) {
        Ok(said) => said.parse().with_context(|| format!("{name}={said}")),
        Err(_) => Ok(otherwise),
    }
}

async fn torment(lab: &mut Lab) -> anyhow::Result<()> {
    daemon::tls::install_provider();
    let (seed, seconds) = (number("SEED", SEED)?, number("SECONDS", 0)?);
    eprintln!("SEED={seed}");
    let mut rng = Rng::new(seed);
    for at in 0..MEMBERS {
        lab.start(at)?;
    }
    let channels = (0..MEMBERS).map(|at| lab.channel(at)).collect::<Result<_, _>>()?;
    let clients = Clients::new(channels);
    let (mut working, mut watching) = (JoinSet::new(), JoinSet::new());
    for _ in 0..WATCHERS {
        watching.spawn(clients.clone().watch(Place::new(rng.fork())));
    }
    for _ in 0..WORKERS {
        working.spawn(clients.clone().work(Place::new(rng.fork())));
    }
    for _ in 0..HOLDERS {
        working.spawn(clients.clone().hold(Place::new(rng.fork())));
    }
    clients.go_on("the cluster begins", async || Ok(())).await?;

    let began = Instant::now();
    let mut nemesis = Nemesis { lab, clients: &clients, rng, cruel: false };
    nemesis.lag().await?;
    nemesis.round().await?;
    while began.elapsed() < Duration::from_secs(seconds) {
        nemesis.cruel = true;
        nemesis.round().await?;
    }
    clients.stop();
    working.join_all().await;
    let (happened, heard) = settle(&clients, watching).await?;
    let memory = clients.memory();
    eprintln!(
        "{} changes, {} writes acknowledged, {} answers, {} reads of several keys, {} leases",
        happened.len(),
        memory.written.len(),
        memory.stamps.len(),
        memory.ranges.len(),
        memory.leases.len()
    );
    let violations = checks::violations(&memory, &happened, &heard);
    ensure!(violations.is_empty(), "SEED={seed}:\n{}", violations.join("\n"));
    for at in 0..MEMBERS {
        integration_tests::check_log(&lab.log(at)?, EXPECTED).with_context(|| format!("m{at}"))?;
    }
    Ok(())
}

/// Waits until all leases have ended and all members have the same; returns what happened, and what watchers heard.
async fn settle(
    clients: &Clients,
    watching: JoinSet<Heard>,
) -> anyhow::Result<(Vec<Change>, Vec<Heard>)> {
    soon("leases end", async || {
        let mut client = LeaseClient::new(clients.channel(0));
        let left = client.lease_leases(LeaseLeasesRequest {}).await?.into_inner().leases;
        ensure!(left.is_empty(), "{} are left", left.len());
        Ok(())
    })
    .await?;
    let last = soon("a last write", async || {
        let end = Bytes::from_static(b"end");
        let put = PutRequest { key: end.clone(), value: end, ..Default::default() };
        let answer = KvClient::new(clients.channel(0)).put(put).await?.into_inner();
        Ok(answer.header.context("no header")?.revision)
    })
    .await?;
    clients.last(last);
    soon("all have the same", async || {
        let mut hashes = Vec::new();
        for at in 0..MEMBERS {
            let mut client = MaintenanceClient::new(clients.channel(at));
            let answer = client.hash_kv(HashKvRequest { revision: last }).await?.into_inner();
            hashes.push(answer.hash);
        }
        ensure!(hashes.iter().all(|hash| *hash == hashes[0]), "hashes {hashes:?}");
        Ok(())
    })
    .await?;
    let mut told = Vec::new();
    for at in 0..MEMBERS {
        told.push(tokio::time::timeout(PATIENCE, told_by(clients, at, last)).await??);
    }
    for (at, changes) in told.iter().enumerate() {
        ensure!(*changes == told[0], "m{at} tells another history than m0");
    }
    let heard = tokio::time::timeout(PATIENCE, watching.join_all());
    Ok((told.swap_remove(0), heard.await.context("watchers do not catch up")?))
}

/// The whole history, as one member tells it afterwards.
async fn told_by(clients: &Clients, at: usize, last: i64) -> anyhow::Result<Vec<Change>> {
    let mut watch = clients::watch(clients.channel(at), 1).await?;
    let mut changes: Vec<Change> = Vec::new();
    while changes.last().is_none_or(|change| change.0 < last) {
        let news = watch.message().await?.context("the watch ended")?;
        ensure!(!news.canceled, "cancelled: {}", news.cancel_reason);
        changes.extend(news.events.into_iter().map(clients::change));
    }
    Ok(changes)
}
