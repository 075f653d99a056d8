//! What happens to the members.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use daemon::Channel;
use integration_tests::lab::{Cut, Lab, MEMBERS};
use integration_tests::members::{PATIENCE, soon};
use nix::sys::signal::Signal;
use testkit::sim::Rng;
use tokio::task::JoinSet;
use wire::etcdserverpb::alarm_request::AlarmAction;
use wire::etcdserverpb::kv_client::KvClient;
use wire::etcdserverpb::maintenance_client::MaintenanceClient;
use wire::etcdserverpb::{AlarmMember, AlarmRequest, AlarmType, DeleteRangeRequest, StatusRequest};

use super::clients::{ANSWER_TIMEOUT, Clients};

/// How long a fault lasts at least once writes go on beside it, in milliseconds.
const HOLD_MS: std::ops::Range<u64> = 500..3000;
/// How long there is no room at all.
const FULL: Duration = Duration::from_secs(2);

/// More entries than members keep at hand for one that lags, and how many clients write them.
const LAG_ENTRIES: usize = 2 * store::replica::KEPT_ENTRIES;
const LAG_CLIENTS: usize = 64;

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Kill(Who),
    Stop(Who),
    Cut(Who, Cut),
    FullDisk,
    KillAll,
}

/// Whom it meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Leader,
    Anyone,
}

/// Each kind, in the order in which a seed does not put them.
pub const FAULTS: [Fault; 11] = [
    Fault::Kill(Who::Leader),
    Fault::Kill(Who::Anyone),
    Fault::Stop(Who::Leader),
    Fault::Stop(Who::Anyone),
    Fault::Cut(Who::Leader, Cut::Both),
    Fault::Cut(Who::Leader, Cut::Deaf),
    Fault::Cut(Who::Leader, Cut::Mute),
    Fault::Cut(Who::Anyone, Cut::Both),
    Fault::Cut(Who::Anyone, Cut::Mute),
    Fault::FullDisk,
    Fault::KillAll,
];

/// Has the machines and the dice.
pub struct Nemesis<'a> {
    pub lab: &'a mut Lab,
    pub clients: &'a Clients,
    pub rng: Rng,
    /// Now and then another member is killed on top.
    pub cruel: bool,
}

impl Nemesis<'_> {
    /// All kinds of faults, one after the other; all is well again after each.
    pub async fn round(&mut self) -> anyhow::Result<()> {
        let mut faults = FAULTS.to_vec();
        while !faults.is_empty() {
            let fault = faults.swap_remove(self.rng.place(faults.len()));
            let at = match fault {
                Fault::Kill(who) | Fault::Stop(who) | Fault::Cut(who, _) => self.whom(who).await?,
                Fault::FullDisk | Fault::KillAll => self.rng.place(MEMBERS),
            };
            eprintln!("{fault:?} of m{at}");
            self.strike(fault, at).await.with_context(|| format!("{fault:?} of m{at}"))?;
        }
        Ok(())
    }

    async fn strike(&mut self, fault: Fault, at: usize) -> anyhow::Result<()> {
        match fault {
            Fault::Kill(_) => self.lab.kill(at)?,
            Fault::Stop(_) => self.lab.signal(at, Signal::SIGSTOP)?,
            Fault::Cut(_, cut) => self.lab.cut(at, cut)?,
            Fault::FullDisk => return self.full_disk(at).await,
            Fault::KillAll => {
                for member in 0..MEMBERS {
                    self.lab.kill(member)?;
                }
                for member in 0..MEMBERS {
                    self.lab.start(member)?;
                }
                return self.clients.go_on("all were killed", async || Ok(())).await;
            }
        }
        self.clients.go_on("the others go on", async || Ok(())).await?;
        if self.cruel && self.rng.chance(40) {
            let other = (at + 1 + self.rng.place(MEMBERS - 1)) % MEMBERS;
            eprintln!("and m{other} is killed");
            self.lab.kill(other)?;
            self.lab.start(other)?;
        }
        tokio::time::sleep(Duration::from_millis(self.rng.within(HOLD_MS))).await;
        match fault {
            Fault::Kill(_) => self.lab.start(at)?,
            Fault::Stop(_) => self.lab.signal(at, Signal::SIGCONT)?,
            _ => self.lab.join(at)?,
        }
        self.clients.go_on("all is well again", async || Ok(())).await?;
        let clients = self.clients;
        soon("it is back", async || status(clients, at).await.map(drop)).await
    }

    /// A member is killed, and comes back when its place in the others' logs is gone: it has to begin again from a snapshot.
    pub async fn lag(&mut self) -> anyhow::Result<()> {
        let at = self.rng.place(MEMBERS);
        eprintln!("m{at} lags behind");
        self.lab.kill(at)?;
        let clients = self.clients;
        clients.go_on("the others go on", async || Ok(())).await?;
        let left = Arc::new(AtomicUsize::new(LAG_ENTRIES));
        let mut writing = JoinSet::new();
        for client in 0..LAG_CLIENTS {
            let (left, through) = (left.clone(), (at + 1 + client % (MEMBERS - 1)) % MEMBERS);
            writing.spawn(entries(KvClient::new(clients.channel(through)), left));
        }
        tokio::time::timeout(PATIENCE, writing.join_all()).await.context("entries")?;
        self.lab.start(at)?;
        soon("it begins again from a snapshot", async || {
            status(clients, at).await?;
            ensure!(self.lab.log(at)?.contains("begin again from a snapshot"), "it did not");
            Ok(())
        })
        .await
    }

    /// There is less room than a member wants, then none at all, then enough again.
    async fn full_disk(&mut self, at: usize) -> anyhow::Result<()> {
        let (clients, refused) = (self.clients, self.clients.refused.load(Ordering::Relaxed));
        self.lab.fill(at, Lab::reserve_bytes() / 2)?;
        soon("writes are refused", async || {
            ensure!(clients.refused.load(Ordering::Relaxed) > refused, "none was");
            Ok(())
        })
        .await?;
        ensure!(!alarms(clients).await?.is_empty(), "no alarm");
        self.lab.fill(at, 0)?;
        tokio::time::sleep(FULL).await;
        self.lab.free(at)?;
        let lab = &mut *self.lab;
        clients
            .go_on("there is room again", async || {
                if let Some(how) = lab.ended(at)? {
                    eprintln!("m{at} had ended: {how}");
                    lab.start(at)?;
                }
                for alarm in alarms(clients).await? {
                    alarm_call(clients, AlarmAction::Deactivate, alarm).await?;
                }
                Ok(())
            })
            .await?;
        soon("it is back", async || {
            // It may have ended only now, with what it could not write before.
            if lab.ended(at)?.is_some() {
                lab.start(at)?;
            }
            status(clients, at).await.map(drop)
        })
        .await
    }

    async fn whom(&mut self, who: Who) -> anyhow::Result<usize> {
        match who {
            Who::Leader => leader(self.clients).await,
            Who::Anyone => Ok(self.rng.place(MEMBERS)),
        }
    }
}

/// Entries of the log that change nothing: deletes of what is not there.
async fn entries(mut client: KvClient<Channel>, left: Arc<AtomicUsize>) {
    let take = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
    while take().is_ok() {
        let delete = DeleteRangeRequest { key: "nothing".into(), ..Default::default() };
        if client.delete_range(delete).await.is_err() {
            left.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What a member says of itself: its id, the leader's, and the term.
async fn status(clients: &Clients, at: usize) -> anyhow::Result<(u64, u64, u64)> {
    let mut client = MaintenanceClient::new(clients.channel(at));
    let asking = client.status(StatusRequest {});
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, asking).await??.into_inner();
    let own = answer.header.as_ref().map_or(0, |header| header.member_id);
    Ok((own, answer.leader, answer.raft_term))
}

/// Who leads in the newest term, once somebody does.
async fn leader(clients: &Clients) -> anyhow::Result<usize> {
    soon("somebody leads", async || {
        let mut leads = None;
        for at in 0..MEMBERS {
            let Ok((own, leader, term)) = status(clients, at).await else { continue };
            if own == leader {
                leads = leads.max(Some((term, at)));
            }
        }
        leads.map(|(_, at)| at).context("nobody leads")
    })
    .await
}

async fn alarms(clients: &Clients) -> anyhow::Result<Vec<AlarmMember>> {
    alarm_call(clients, AlarmAction::Get, AlarmMember::default()).await
}

/// Through the first member that answers.
async fn alarm_call(
    clients: &Clients,
    action: AlarmAction,
    of: AlarmMember,
) -> anyhow::Result<Vec<AlarmMember>> {
    let alarm = if of.alarm == 0 { AlarmType::None.into() } else { of.alarm };
    let request = AlarmRequest { action: action.into(), member_id: of.member_id, alarm };
    let mut last = anyhow::anyhow!("nobody was asked");
    for at in 0..MEMBERS {
        let mut client = MaintenanceClient::new(clients.channel(at));
        match tokio::time::timeout(ANSWER_TIMEOUT, client.alarm(request)).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner().alarms),
            Ok(Err(status)) => last = status.into(),
            Err(late) => last = late.into(),
        }
    }
    Err(last)
}
