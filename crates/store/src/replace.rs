//! `ironclad-store member replace`: another machine takes a member's place, without a majority that is weaker on the way.
//!
//! The new member listens until it has caught up; then one joint change promotes it and lets the old one go. Every step looks
//! at the members first, so that the command can be given again after anything.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use daemon::Channel;
use daemon::config::{load, parse_args};
use tonic::Status;
use wire::etcdserverpb::cluster_client::ClusterClient;
use wire::etcdserverpb::{Member, MemberListRequest};
use wire::store::change_step::Step;
use wire::store::members_client::MembersClient;
use wire::store::{ChangeRequest, ChangeStep, NewMember};

use crate::bootstrap::check_url;
use crate::config::Config;
use crate::members::MemberError;

/// How often the members are asked, how long an answer may take, and for how long nobody may answer.
const PAUSE: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const SILENT_ROUNDS_MAX: u32 = 30;
const HELP: &str = "\
usage: ironclad-store member replace OLD_ID --peer-urls URL[,URL] [--endpoints URL[,URL]] [SETTINGS]

Adds a learner at the peer URLs, waits until it runs and has caught up, then promotes it and removes the member OLD_ID in
one joint change. Start the new member as soon as the command says so. It may be given again if it was interrupted.
Without --endpoints the member at client.listen is asked; if that is the old one, name another. SETTINGS are --config FILE
and --set KEY=VALUE, as for the daemon; client.files are the certificates. When users are on, they must be those of root.";

/// Runs a `member` subcommand.
///
/// # Errors
/// When the words make no sense, or what they ask for fails.
pub fn run(words: &[String]) -> anyhow::Result<()> {
    let [verb, old, rest @ ..] = words else { bail!("{HELP}") };
    ensure!(verb == "replace", "{HELP}");
    let old = u64::from_str_radix(old, 16).with_context(|| format!("member id {old:?}"))?;
    let (mut urls, mut endpoints, mut settings) = (Vec::new(), Vec::new(), Vec::new());
    let mut rest = rest.iter();
    while let Some(word) = rest.next() {
        let list = match word.as_str() {
            "--peer-urls" => &mut urls,
            "--endpoints" => &mut endpoints,
            _ => {
                settings.push(word.clone());
                continue;
            }
        };
        let value = rest.next().with_context(|| format!("{word} needs a value"))?;
        list.extend(value.split(',').map(str::to_owned));
    }
    ensure!(!urls.is_empty(), "{HELP}");
    let mut urls: Vec<String> = urls.iter().map(|url| check_url(url)).collect::<Result<_, _>>()?;
    urls.sort();
    let config = load::<Config>("store", &parse_args(settings)?)?.daemon;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async { replace(&Cluster::new(&config, endpoints)?, old, &urls).await })
}

async fn replace(cluster: &Cluster, old: u64, urls: &[String]) -> anyhow::Result<()> {
    let mut told = false;
    let mut silent = 0;
    loop {
        match cluster.advance(old, urls).await {
            Ok(State::Done) => break,
            Ok(State::Added(id)) => {
                println!(
                    "added member {id:x}; start it now at {} with initial_cluster_state existing",
                    urls.join(",")
                );
                silent = 0;
            }
            Ok(State::Waiting(why)) => {
                if !told {
                    println!("waiting: {why}");
                }
                (told, silent) = (true, 0);
            }
            // A leader that leaves is replaced in between, and its last answer may be lost.
            Err(status) if is_passing(&status) && silent < SILENT_ROUNDS_MAX => silent += 1,
            Err(status) => bail!("{}", status.message()),
        }
        tokio::time::sleep(PAUSE).await;
    }
    println!("member {old:x} is gone; its machine can be switched off");
    Ok(())
}

fn is_passing(status: &Status) -> bool {
    matches!(status.code(), tonic::Code::Unavailable | tonic::Code::DeadlineExceeded)
}

/// How far it is.
enum State {
    Added(u64),
    Waiting(String),
    Done,
}

/// What is to be done next.
#[derive(Debug, PartialEq)]
enum Next {
    Refuse(MemberError),
    Add,
    Swap(u64),
    Wait,
    Done,
}

/// What members that are so still need.
fn next(members: &[Member], old: u64, urls: &[String]) -> Next {
    let new = members.iter().find(|member| member.peer_ur_ls == urls);
    let is_old = members.iter().any(|member| member.id == old);
    match new {
        Some(new) if new.id == old => Next::Refuse(MemberError::AddressExists),
        Some(new) if new.is_learner && is_old => Next::Swap(new.id),
        // The change is taken; the cluster lets go of it when it can.
        Some(_) if is_old => Next::Wait,
        Some(new) if !new.is_learner => Next::Done,
        None if is_old => Next::Add,
        _ => Next::Refuse(MemberError::NotFound),
    }
}

struct Cluster {
    channels: Vec<Channel>,
}

impl Cluster {
    fn new(config: &Config, mut endpoints: Vec<String>) -> anyhow::Result<Self> {
        let is_tls = config.client.tls == "files";
        if endpoints.is_empty() {
            let scheme = if is_tls { "https" } else { "http" };
            endpoints.push(format!("{scheme}://{}", config.client.listen));
        }
        let tls = if is_tls { config.client.files.client()? } else { None };
        let channels: Result<_, _> =
            endpoints.iter().map(|url| daemon::channel::connect(url, tls.as_ref())).collect();
        Ok(Self { channels: channels? })
    }

    /// Does what is next, if it can be done now.
    async fn advance(&self, old: u64, urls: &[String]) -> Result<State, Status> {
        let members = self.members().await?;
        let steps = match next(&members, old, urls) {
            Next::Done => return Ok(State::Done),
            Next::Wait => return Ok(State::Waiting("the old member is being let go".to_owned())),
            Next::Refuse(error) => return Err(crate::etcd::errors::member_status(error)),
            Next::Add => vec![Step::Add(NewMember { peer_urls: urls.to_vec(), is_learner: true })],
            Next::Swap(new) => vec![Step::Promote(new), Step::Remove(old)],
        };
        let steps = steps.into_iter().map(|step| ChangeStep { step: Some(step) }).collect();
        let request = ChangeRequest { steps };
        let changed = self.ask(async |channel| {
            let mut client = MembersClient::new(channel);
            client.change(request.clone()).await
        });
        match changed.await {
            Ok(answer) => Ok(match answer.added.first() {
                Some(id) => State::Added(*id),
                None => State::Waiting("the old member is being let go".to_owned()),
            }),
            Err(status) if status.message() == MemberError::LearnerNotReady.to_string() => {
                Ok(State::Waiting("the new member has not caught up".to_owned()))
            }
            Err(status) => Err(status),
        }
    }

    async fn members(&self) -> Result<Vec<Member>, Status> {
        let listed = self.ask(async |channel| {
            ClusterClient::new(channel).member_list(MemberListRequest { linearizable: true }).await
        });
        Ok(listed.await?.members)
    }

    /// Asks one member after another until one can be reached.
    async fn ask<T>(
        &self,
        call: impl AsyncFn(Channel) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, Status> {
        let mut last = Status::unavailable("no endpoints");
        for channel in &self.channels {
            let answered = tokio::time::timeout(ANSWER_TIMEOUT, call(channel.clone())).await;
            match answered.map_err(|_| Status::deadline_exceeded("no answer in time")) {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) | Err(status) if is_passing(&status) => last = status,
                Ok(Err(status)) | Err(status) => return Err(status),
            }
        }
        Err(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_follows_from_the_members() {
        let member = |id: u64, is_learner| Member {
            id,
            is_learner,
            peer_ur_ls: vec![format!("http://m{id}:1")],
            ..Member::default()
        };
        let urls = ["http://m4:1".to_owned()];
        for (members, expected) in [
            (vec![member(1, false), member(2, false)], Next::Add),
            (vec![member(1, false), member(4, true)], Next::Swap(4)),
            (vec![member(1, false), member(4, false)], Next::Wait),
            (vec![member(2, false), member(4, false)], Next::Done),
            (vec![member(2, false)], Next::Refuse(MemberError::NotFound)),
            (vec![member(2, false), member(4, true)], Next::Refuse(MemberError::NotFound)),
        ] {
            assert_eq!(next(&members, 1, &urls), expected, "{members:?}");
        }
        assert_eq!(next(&[member(4, false)], 4, &urls), Next::Refuse(MemberError::AddressExists));
    }
}
