//! A store of several members as real processes: they are killed, handed over, added and removed while clients write.
#![allow(clippy::disallowed_methods)] // a test as a whole

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration_tests::clients::{Writers, agree, channel, count, has_all, leader, put, status};
use integration_tests::machine;
use integration_tests::members::{Members, etcdctl, soon};
use libtest_mimic::{Arguments, Failed, Trial};
use wire::etcdserverpb::cluster_client::ClusterClient;
use wire::etcdserverpb::lease_client::LeaseClient;
use wire::etcdserverpb::maintenance_client::MaintenanceClient;
use wire::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseTimeToLiveRequest, MemberAddRequest,
    MemberListRequest, MemberPromoteRequest, MemberRemoveRequest, StatusRequest,
};

/// The first members.
const FIRST: [usize; 3] = [0, 1, 2];
/// A hand-over takes less than an election: nobody waits for a leader that is gone.
const HAND_OVER_MAX: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each has three processes that sync a disk.
    arguments.test_threads = Some(1);
    let trial = |name: &str, test: fn() -> anyhow::Result<()>| {
        Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:#}"))))
    };
    let trials = vec![
        trial("store_members_are_killed_and_nothing_is_lost", || machine::block_on(killed())),
        trial("store_is_saved_and_restored_elsewhere", || machine::block_on(restored())),
        trial("store_members_come_and_go", || machine::block_on(come_and_go())),
        trial("store_members_are_known_by_their_authority", || machine::block_on(strangers())),
        trial("etcdctl_looks_at_a_cluster_and_changes_it", || machine::block_on(by_etcdctl()))
            .with_ignored_flag(!has_etcdctl()),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn has_etcdctl() -> bool {
    std::process::Command::new("etcdctl").arg("version").output().is_ok()
}

fn three() -> anyhow::Result<Members> {
    let mut members = Members::prepare(4)?;
    for at in FIRST {
        members.begin(at, "new", &FIRST)?;
    }
    Ok(members)
}

async fn killed() -> anyhow::Result<()> {
    let mut members = three()?;
    let endpoints: Vec<String> = FIRST.iter().map(|at| members.endpoint(*at)).collect();
    let writers = Writers::start(&endpoints);
    writers.go_on("the cluster begins").await?;
    for at in FIRST {
        members.kill(at)?;
        writers.go_on(&format!("without member {at}")).await?;
        members.start(at)?;
        writers.go_on(&format!("with member {at} again")).await?;
    }
    // And whoever leads, twice: the followers that are killed first may have been none.
    for _ in 0..2 {
        let at = leader(&members, &FIRST).await?;
        members.kill(at)?;
        writers.go_on("without its leader").await?;
        members.start(at)?;
        soon("it is back", async || status(&members.endpoint(at)).await).await?;
    }
    let written = writers.stop().await;
    for endpoint in &endpoints {
        has_all(endpoint, &written).await?;
    }
    agree(&members, &FIRST).await?;
    for at in FIRST {
        members.kill(at)?;
    }
    for at in FIRST {
        members.start(at)?;
    }
    for endpoint in &endpoints {
        has_all(endpoint, &written).await?;
    }
    agree(&members, &FIRST).await?;
    leases(&endpoints).await?;
    // A member that has forgotten its votes does not vote again.
    members.kill(0)?;
    members.lose(0)?;
    members.start(0)?;
    ensure!(!members.ended(0).await?.success(), "it runs without its data");
    ensure!(members.log(0)?.contains("has already been bootstrapped"), "it does not say why");
    members.check_logs(&["unfinished write"])
}

/// A lease is granted, renewed and looked at through different members.
async fn leases(endpoints: &[String]) -> anyhow::Result<()> {
    let at = |at: usize| channel(&endpoints[at]).map(LeaseClient::new);
    let grant = LeaseGrantRequest { ttl: 600, id: 7 };
    soon("a lease is granted", async || Ok(at(0)?.lease_grant(grant).await?)).await?;
    for through in 0..endpoints.len() {
        let request = tokio_stream::iter([LeaseKeepAliveRequest { id: 7 }]);
        let answer = at(through)?.lease_keep_alive(request).await?.into_inner().message().await?;
        ensure!(
            answer.as_ref().is_some_and(|a| a.ttl == 600),
            "renewed through {through}: {answer:?}"
        );
        let asked = LeaseTimeToLiveRequest { id: 7, keys: false };
        let left = at(through)?.lease_time_to_live(asked).await?.into_inner();
        ensure!((590..=600).contains(&left.ttl), "seen through {through}: {left:?}");
    }
    Ok(())
}

async fn come_and_go() -> anyhow::Result<()> {
    let mut members = three()?;
    let first = leader(&members, &FIRST).await?;
    for number in 0..200 {
        put(&members.endpoint(first), &format!("data/{number:03}"), "x").await?;
    }

    // A leader that ends hands over, and writes go on at once.
    let began = Instant::now();
    members.terminate(first)?;
    let others: Vec<usize> = FIRST.into_iter().filter(|at| *at != first).collect();
    let next = leader(&members, &others).await?;
    put(&members.endpoint(others[0]), "data/after", "x").await?;
    ensure!(began.elapsed() < HAND_OVER_MAX, "the hand-over took {:?}", began.elapsed());
    ensure!(members.ended(first).await?.success(), "it did not end well");
    ensure!(members.log(first)?.contains("handed leadership over"), "nobody took over");
    members.start(first)?;
    soon("it is back", async || status(&members.endpoint(first)).await).await?;

    // A new member learns from a snapshot, through a member that does not lead, and is promoted.
    let follower = members.endpoint(first);
    let peer_ur_ls = vec![members.peer_url(3)];
    let add = MemberAddRequest { peer_ur_ls, is_learner: true };
    let mut again = add.clone();
    again.peer_ur_ls.push("https://127.0.0.1:1".to_owned());
    let mut cluster = ClusterClient::new(channel(&follower)?);
    let added = cluster.member_add(add).await?.into_inner();
    let new = added.member.context("no member")?;
    ensure!(new.is_learner && added.members.len() == 4, "added {:?}", added.members);
    let again = cluster.member_add(again).await.err().context("it was added twice")?;
    ensure!(again.message() == "etcdserver: Peer URLs already exists", "{again}");
    members.begin(3, "existing", &[0, 1, 2, 3])?;
    let all = [0, 1, 2, 3];
    soon("it has caught up", async || {
        let status = status(&members.endpoint(3)).await?;
        ensure!(status.is_learner, "it votes already");
        Ok(())
    })
    .await?;
    let refused = count(&members.endpoint(3), "data/").await.err().context("a learner read")?;
    ensure!(format!("{refused}").contains("rpc not supported for learner"), "{refused}");
    ensure!(members.log(3)?.contains("begin again from a snapshot"), "no snapshot came");
    soon("it is promoted", async || {
        Ok(cluster.clone().member_promote(MemberPromoteRequest { id: new.id }).await?)
    })
    .await?;
    soon("it serves", async || {
        let found = count(&members.endpoint(3), "data/").await?;
        ensure!(found == 201, "{found} keys");
        Ok(())
    })
    .await?;
    agree(&members, &all).await?;

    // The leader itself is removed, and ends.
    let listed = cluster.member_list(MemberListRequest { linearizable: true }).await?.into_inner();
    let next_name = Members::name(next);
    let leaving = listed.members.iter().find(|m| m.name == next_name).context("no such member")?.id;
    cluster.member_remove(MemberRemoveRequest { id: leaving }).await?;
    members.ended(next).await?;
    let said = members.log(next)?;
    ensure!(said.contains("removed from the cluster"), "it does not say why it ended:\n{said}");
    let left: Vec<usize> = all.into_iter().filter(|at| *at != next).collect();
    leader(&members, &left).await?;
    soon("writes go on", async || put(&members.endpoint(3), "data/last", "x").await).await?;
    agree(&members, &left).await?;
    // It does not come back either.
    members.start(next)?;
    ensure!(!members.ended(next).await?.success(), "a removed member runs");
    members.check_logs(&["removed from the cluster"])
}

async fn by_etcdctl() -> anyhow::Result<()> {
    let mut members = three()?;
    leader(&members, &FIRST).await?;
    let all = members.endpoints();
    soon("all have told their addresses", async || {
        let listed = etcdctl(&all, &["member", "list"])?;
        ensure!(listed.len() == 3 && listed.iter().all(|m| m[1] == "started"), "{listed:?}");
        ensure!(listed.iter().all(|m| m[4].starts_with("http://127.0.0.1:")), "{listed:?}");
        Ok(())
    })
    .await?;
    let status = etcdctl(&members.endpoint(0), &["endpoint", "status", "--cluster"])?;
    ensure!(status.len() == 3, "{status:?}");
    let follower = status.iter().find(|s| s[4] == "false").context("all lead")?[1].clone();
    etcdctl(&all, &["move-leader", &follower])?;
    let status = etcdctl(&all, &["endpoint", "status"])?;
    let leads = |s: &&Vec<String>| s[4] == "true";
    ensure!(status.iter().find(leads).is_some_and(|s| s[1] == follower), "{status:?}");
    etcdctl(&members.endpoint(1), &["put", "key", "value"])?;
    let read = etcdctl(&members.endpoint(2), &["get", "key"])?.concat();
    ensure!(read == ["key", "value"], "{read:?}");

    let url = format!("--peer-urls={}", members.peer_url(3));
    etcdctl(&all, &["member", "add", "m3", &url])?;
    members.begin(3, "existing", &[0, 1, 2, 3])?;
    let new = soon("the new member is started", async || {
        let listed = etcdctl(&all, &["member", "list"])?;
        let new = listed.into_iter().find(|m| m[2] == "m3" && m[1] == "started");
        new.context("not started yet")
    })
    .await?;
    soon("it answers", async || etcdctl(&members.endpoint(3), &["get", "key"])).await?;
    let hashes = etcdctl(&members.endpoint(0), &["endpoint", "hashkv", "--cluster"])?;
    ensure!(hashes.len() == 4 && hashes.iter().all(|h| h[1] == hashes[0][1]), "{hashes:?}");
    etcdctl(&all, &["member", "remove", &new[0]])?;
    members.ended(3).await?;
    let left = etcdctl(&all, &["member", "list"])?;
    ensure!(left.len() == 3, "{left:?}");
    members.check_logs(&["removed from the cluster"])
}

/// A peer with a certificate of another authority, or none, is no member, and both sides say so.
async fn strangers() -> anyhow::Result<()> {
    daemon::tls::install_provider();
    let mut members = Members::prepare(3)?;
    let theirs = members.authority("theirs")?;
    members.begin(0, "new", &FIRST)?;
    members.begin(1, "new", &FIRST)?;
    members.begin_known_by(2, "new", &FIRST, "theirs")?;
    leader(&members, &[0, 1]).await?;
    soon("two write", async || put(&members.endpoint(0), "key", "x").await).await?;
    soon("both sides say that they do not know each other", async || {
        let (ours, stranger) = (members.log(0)?, members.log(2)?);
        ensure!(ours.contains("TLS handshake failed"), "the listening side:\n{ours}");
        ensure!(!stranger.contains("reached a member"), "it was reached:\n{stranger}");
        ensure!(stranger.contains("cannot reach a member"), "the calling side:\n{stranger}");
        Ok(())
    })
    .await?;
    ensure!(put(&members.endpoint(2), "key", "y").await.is_err(), "a stranger wrote");

    let read = |file: &str| std::fs::read_to_string(theirs.with_file_name("pki").join(file));
    let stranger = |file: &str| std::fs::read_to_string(theirs.join(file));
    let own = (read("node-m.crt")?, read("node-m.key")?);
    let foreign = (stranger("node-m.crt")?, stranger("node-m.key")?);
    for (identity, taken) in [(Some(own), true), (Some(foreign), false), (None, false)] {
        let tls = daemon::tls::ClientTls { ca: read("ca.crt")?, identity, server_name: None };
        let channel = daemon::channel::connect(&members.peer_url(0), Some(&tls))?;
        let listed = ClusterClient::new(channel).member_list(MemberListRequest::default()).await;
        ensure!(listed.is_ok() == taken, "taken: {taken}, but {listed:?}");
    }
    members.check_logs(&[])
}

/// A backup of one cluster becomes another, whose revisions are beyond all that were ever seen.
async fn restored() -> anyhow::Result<()> {
    let members = three()?;
    let endpoint = members.endpoint(1);
    soon("a first write", async || put(&endpoint, "kept/0", "x").await).await?;
    for n in 1..30 {
        put(&endpoint, &format!("kept/{n}"), "x").await?;
    }
    let dir = tempfile::tempdir()?;
    let (file, data) = (dir.path().join("backup"), dir.path().join("data"));
    let (file, data) = (file.display().to_string(), format!("data_dir={}", data.display()));
    let tool = integration_tests::program("ironclad-store")?.display().to_string();
    if has_etcdctl() {
        etcdctl(&endpoint, &["snapshot", "save", &file])?;
        machine::output(&tool, &["snapshot", "verify", &file])?;
        std::fs::remove_file(&file)?;
    }
    let listen = endpoint.rsplit('/').next().unwrap_or(&endpoint);
    let from = format!("client.listen={listen}");
    machine::output(&tool, &["snapshot", "save", &file, "--set", &from])?;
    let cut = std::fs::read(&file)?;
    std::fs::write(format!("{file}.cut"), &cut[..cut.len() - 1])?;
    let refused = machine::output(&tool, &["snapshot", "verify", &format!("{file}.cut")]);
    ensure!(refused.is_err(), "a cut backup is called whole");
    let restore = ["snapshot", "restore", &file, "--raise", "5000", "--set", &data];
    machine::output(&tool, &restore)?;
    ensure!(machine::output(&tool, &restore).is_err(), "restored over a store");
    drop(members);

    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let listen = format!("client.listen=127.0.0.1:{port}");
    let mut child = std::process::Command::new(&tool)
        .args(["--set", &data, "--set", &listen, "--set", "client.tls=none"])
        .stderr(std::process::Stdio::null())
        .spawn()?;
    let endpoint = format!("http://127.0.0.1:{port}");
    let looked = async {
        let found = soon("the restored store answers", async || count(&endpoint, "kept/").await);
        ensure!(found.await? == 30, "keys are missing");
        let status = MaintenanceClient::new(channel(&endpoint)?).status(StatusRequest {}).await?;
        let revision = status.into_inner().header.map_or(0, |header| header.revision);
        ensure!(revision > 5000, "revision {revision}");
        put(&endpoint, "kept/new", "x").await
    }
    .await;
    child.kill()?;
    child.wait()?;
    looked
}
