//! Who a member is when it starts for the first time: one of a new cluster, or one that a running cluster has added.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use daemon::tls::ClientTls;
use daemon::{Backoff, Context, Disk as _, SystemDisk};
use wire::etcdserverpb::cluster_client::ClusterClient;
use wire::etcdserverpb::{Member, MemberListRequest};

use crate::applied::Applied;
use crate::bootstrap::{cluster_id, member_id};
use crate::config::Config;
use crate::engine::Identity;
use crate::members::Members;
use crate::snapshot::{self, Mark};

/// A file in a data directory that a restore or an import has not filled yet.
pub(crate) const INCOMPLETE: &str = "incomplete";
/// How long a member may take to answer who belongs to the cluster, and how often all are asked.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const ROUNDS_MAX: usize = 20;
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What a member knows when it opens its data.
#[derive(Debug, Clone)]
pub struct Start {
    /// Who it is.
    pub identity: Identity,
    /// Who belongs to the cluster that it joins; empty where its data say it.
    pub joins: Members,
    /// What it begins with, if there are no data yet.
    pub first: Applied,
}

/// Finds out who this member is, if need be from the others.
///
/// # Errors
/// When its settings contradict its data, or the cluster does not know it.
pub async fn start(
    config: &Config,
    tls: Option<&ClientTls>,
    ctx: &Context,
) -> anyhow::Result<Start> {
    let dir = Path::new(&config.data_dir);
    ensure!(
        !dir.join(INCOMPLETE).exists(),
        "{}: a restore or an import to here did not end; run it again, or remove the directory",
        dir.display()
    );
    let file = dir.join("member");
    let known = read(&file)?;
    // A member that joins is nobody until it got its first snapshot: the addresses of the others are not in its data.
    let joining = config.initial_cluster_state == "existing"
        && snapshot::list(&SystemDisk, &dir.join("snapshots"))?.is_empty();
    let start = if joining {
        join(config, tls, ctx).await?
    } else {
        let (identity, members) = new_cluster(config, known)?;
        if known.is_none() {
            refuse_again(config, identity, tls).await?;
        }
        let first = Applied { members, mark: Mark { index: 1, term: 1 }, ..Applied::default() };
        Start { identity, joins: Members::default(), first }
    };
    match known {
        Some(known) => ensure!(
            known == start.identity,
            "{}: the data are of member {:x} of cluster {:x}, but the settings are of {:x} of {:x}",
            dir.display(),
            known.member,
            known.cluster,
            start.identity.member,
            start.identity.cluster
        ),
        None => write(&file, start.identity)?,
    }
    Ok(start)
}

/// What every member of a new cluster begins with: the same members, at an entry that nobody has to replicate.
fn new_cluster(config: &Config, known: Option<Identity>) -> anyhow::Result<(Identity, Members)> {
    let (token, named) = (&config.initial_cluster_token, config.first_members()?);
    let as_member = |named: crate::bootstrap::Named| Member {
        id: member_id(&named.urls, token, None),
        name: named.name,
        peer_ur_ls: named.urls,
        ..Member::default()
    };
    let mut all: Vec<Member> = named.into_iter().map(as_member).collect();
    let itself = all.iter().find(|member| member.name == config.name).map_or(0, |m| m.id);
    let derived = Identity { cluster: cluster_id(all.iter().map(|m| m.id)), member: itself };
    let identity = match known {
        Some(known) => known,
        // Nobody else has to find the ids of a member that nobody reaches.
        None if config.peer.listen.is_empty() => {
            Identity { cluster: rand::random::<u64>() | 1, member: rand::random::<u64>() | 1 }
        }
        None => derived,
    };
    if let [alone] = &mut all[..] {
        alone.id = identity.member;
    }
    Ok((identity, Members::new(all)))
}

/// Writes who a member of a restored store is, and returns its members. The cluster is another than the one that was
/// saved, and the same for all members that are restored from the same state.
///
/// # Errors
/// When the settings do not say who belongs to it, or the disk fails.
pub fn restored(config: &Config, mark: Mark, revision: i64) -> anyhow::Result<Members> {
    let (identity, members) = new_cluster(config, None)?;
    let saved = mark.index ^ mark.term.rotate_left(32) ^ revision.cast_unsigned().rotate_left(16);
    let cluster = cluster_id([identity.cluster, saved]);
    let dir = Path::new(&config.data_dir);
    SystemDisk.create_dir(dir)?;
    write(&dir.join("member"), Identity { cluster, ..identity })?;
    Ok(members)
}

/// Asks the members of the cluster to join who this one is.
async fn join(config: &Config, tls: Option<&ClientTls>, ctx: &Context) -> anyhow::Result<Start> {
    let itself = config.peer.urls()?;
    let mut pauses = Backoff::new(PAUSE, PAUSE_MAX);
    for _ in 0..ROUNDS_MAX {
        for url in others(config)? {
            match ask(&url, tls).await {
                Err(error) => {
                    tracing::info!(url, error = format!("{error:#}"), "no answer from a member");
                }
                Ok((cluster, members)) => {
                    let found = members.all.iter().find(|member| member.peer_ur_ls == itself);
                    let found = found.with_context(|| {
                        format!(
                            "cluster {cluster:x} has no member at {}; add it first",
                            itself.join(",")
                        )
                    })?;
                    let identity = Identity { cluster, member: found.id };
                    tracing::info!(
                        cluster = format!("{cluster:x}"),
                        member = format!("{:x}", found.id),
                        "joining a cluster"
                    );
                    return Ok(Start { identity, joins: members, first: Applied::default() });
                }
            }
        }
        tokio::select! {
            () = ctx.shutdown.cancelled() => bail!("stopped while joining"),
            () = tokio::time::sleep(pauses.delay()) => {}
        }
    }
    bail!("no member of {} says who belongs to the cluster", config.initial_cluster)
}

/// A member that lost its data has forgotten its votes and must not come back as if it were new.
async fn refuse_again(
    config: &Config,
    identity: Identity,
    tls: Option<&ClientTls>,
) -> anyhow::Result<()> {
    for url in others(config)? {
        // Who does not answer may be new, too.
        let Ok((cluster, members)) = ask(&url, tls).await else { continue };
        ensure!(
            cluster == identity.cluster,
            "{url} is of cluster {cluster:x}, but initial_cluster and its token make {:x}; a member \
             that was added to a cluster needs initial_cluster_state existing",
            identity.cluster
        );
        let known = members.get(identity.member);
        ensure!(
            known.is_some_and(|member| member.client_ur_ls.is_empty()),
            "member {:x} has already been bootstrapped, but its data are gone: remove it from the \
             cluster and add it again",
            identity.member
        );
    }
    Ok(())
}

fn others(config: &Config) -> anyhow::Result<Vec<String>> {
    let named = config.first_members()?;
    Ok(named.into_iter().filter(|n| n.name != config.name).flat_map(|n| n.urls).collect())
}

async fn ask(url: &str, tls: Option<&ClientTls>) -> anyhow::Result<(u64, Members)> {
    let mut client = ClusterClient::new(daemon::channel::connect(url, tls)?);
    let asking = client.member_list(MemberListRequest { linearizable: false });
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, asking).await.context("no answer in time")?;
    let answer = answer.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner();
    let cluster = answer.header.context("an answer without a header")?.cluster_id;
    Ok((cluster, Members::new(answer.members)))
}

fn read(path: &Path) -> anyhow::Result<Option<Identity>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path)?;
    let mut words = text.split_whitespace();
    let mut number = || words.next().and_then(|w| u64::from_str_radix(w, 16).ok());
    if let (Some(1), Some(cluster), Some(member)) = (number(), number(), number()) {
        return Ok(Some(Identity { cluster, member }));
    }
    bail!("{}: not a member file of format 1", path.display());
}

fn write(path: &Path, new: Identity) -> anyhow::Result<()> {
    if let Some(dir) = path.parent() {
        SystemDisk.create_dir(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let text = format!("1 {:016x} {:016x}\n", new.cluster, new.member);
    Ok(SystemDisk.replace(path, text.as_bytes())?)
}
