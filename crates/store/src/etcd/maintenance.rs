//! The Maintenance service.

use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::Stream;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use wire::etcdserverpb::alarm_request::AlarmAction;
use wire::etcdserverpb::downgrade_request::DowngradeAction;
use wire::etcdserverpb::maintenance_server::Maintenance;
use wire::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeInfo,
    DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse,
    MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest,
    StatusResponse,
};

use super::errors::{no_leader, not_leader, status, wrong_reply};
use super::{LEADER_CHECK, LEADER_TIMEOUT, Services, VERSION};
use crate::backup;
use crate::engine::Ask;
use crate::mvcc::{self, Error, Op, Reply};
use crate::replica::{Input, Refusal};

/// The only version that etcd would go back to from [`VERSION`].
const ONE_BEFORE: (u64, u64) = (3, 5);
/// Parts of a snapshot that may wait for a slow client.
const PARTS_MAX: usize = 16;
/// How long one may wait: nothing that the state has forgotten leaves the disk meanwhile.
const PART_TIMEOUT: Duration = Duration::from_secs(30);
/// A client that takes less on the whole is as bad as one that takes nothing.
const RATE_BYTES_MIN: u64 = 256 << 10;

type Blobs = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Maintenance for Services {
    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        self.votes()?;
        let by = self.by(&request).await?;
        let request = request.into_inner();
        if request.action() == AlarmAction::Get {
            self.engine.turn().await?;
            let applied = self.engine.applied.read();
            applied.auth.known(&by).map_err(Refusal::Auth)?;
            let alarms = applied.mvcc.alarms();
            let alarms = alarms
                .map(|(member_id, alarm)| AlarmMember { member_id, alarm: alarm.into() })
                .collect();
            let header = Some(self.engine.header(applied.mvcc.revision()));
            return Ok(Response::new(AlarmResponse { header, alarms }));
        }
        match self.engine.propose(&by, &Op::Alarm(request)).await? {
            Reply::Alarm(mut response) => {
                self.engine.sign(&mut response.header);
                Ok(Response::new(response))
            }
            _ => Err(wrong_reply()),
        }
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        self.known(request).await?;
        let engine = &self.engine;
        let applied = engine.applied.read();
        let size = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let in_use = applied.mvcc.bytes() as u64;
        let errors = applied
            .mvcc
            .alarms()
            .map(|(member, alarm)| format!("memberID:{member} alarm:{} ", alarm.as_str_name()));
        let leader = engine.leader.load(Ordering::Relaxed);
        let unled = (leader == 0).then(|| no_leader().message().to_owned());
        Ok(Response::new(StatusResponse {
            header: Some(engine.header(applied.mvcc.revision())),
            version: VERSION.to_owned(),
            db_size: size(engine.state.bytes().max(in_use)),
            leader,
            raft_index: engine.committed.load(Ordering::Relaxed),
            raft_term: engine.term.load(Ordering::Relaxed),
            raft_applied_index: applied.mark.index,
            errors: unled.into_iter().chain(errors).collect(),
            db_size_in_use: size(in_use),
            is_learner: applied.members.get(engine.identity.member).is_some_and(|m| m.is_learner),
            storage_version: VERSION.to_owned(),
            db_size_quota: size(engine.quota_bytes),
            downgrade_info: Some(DowngradeInfo::default()),
        }))
    }

    async fn defragment(
        &self,
        request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        self.votes()?;
        self.admin(request).await?;
        // The state's files are cleaned as they are written: there is nothing to do by hand.
        Ok(Response::new(DefragmentResponse { header: Some(self.engine.header_now()) }))
    }

    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        self.votes()?;
        self.admin(request).await?;
        let (hash, revision, _) = hash(self, 0).await?;
        let header = Some(self.engine.header(revision));
        Ok(Response::new(HashResponse { header, hash }))
    }

    async fn hash_kv(
        &self,
        request: Request<HashKvRequest>,
    ) -> Result<Response<HashKvResponse>, Status> {
        self.votes()?;
        let asked = self.admin(request).await?.revision;
        let (hash, revision, compact_revision) = hash(self, asked).await?;
        Ok(Response::new(HashKvResponse {
            header: Some(self.engine.header(revision)),
            hash,
            compact_revision,
            hash_revision: if asked == 0 { revision } else { asked },
        }))
    }

    type SnapshotStream = Blobs;

    async fn snapshot(&self, request: Request<SnapshotRequest>) -> Result<Response<Blobs>, Status> {
        self.admin(request).await?;
        self.engine.turn().await?;
        let engine = self.engine.clone();
        let (sender, receiver) = tokio::sync::mpsc::channel(PARTS_MAX);
        let runtime = tokio::runtime::Handle::current();
        self.ctx.tasks.blocking(move || {
            let mut replaced = engine.replacing.subscribe();
            let (_whole, _held) = (engine.refill.read(), engine.state.hold());
            // The clone shares all keys and values, so that nobody waits for this client.
            let applied = engine.applied.read().clone();
            let (began, mut sent_bytes) = (engine.clock.monotonic(), 0);
            let sent = backup::write(&applied, &*engine.state, |part| {
                sent_bytes += part.blob.len() as u64;
                if trickles(engine.clock.monotonic().saturating_sub(began), sent_bytes) {
                    return Err(io::Error::other("the client is too slow"));
                }
                runtime.block_on(hand_over(part, &sender, &mut replaced))
            });
            if let Err(error) = sent {
                tracing::info!(%error, "a backup was not sent to its end");
            }
        });
        Ok(Response::new(Box::pin(to_the_end(receiver))))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        self.votes()?;
        let target = self.admin(request).await?.target_id;
        let engine = &self.engine;
        let leader = || engine.leader.load(Ordering::Relaxed);
        if leader() != engine.identity.member {
            return Err(not_leader());
        }
        if !engine.applied.read().members.voters().contains(&target) {
            return Err(Status::failed_precondition("etcdserver: bad leader transferee"));
        }
        engine.ask(Ask::Tell(Input::Transfer(target)))?;
        let moving = async {
            while leader() != target {
                tokio::time::sleep(LEADER_CHECK).await;
            }
        };
        if tokio::time::timeout(LEADER_TIMEOUT, moving).await.is_err() {
            let words = "etcdserver: request timed out, leader transfer took too long";
            return Err(Status::unavailable(words));
        }
        Ok(Response::new(MoveLeaderResponse { header: Some(engine.header_now()) }))
    }

    async fn downgrade(
        &self,
        request: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        self.votes()?;
        let request = self.admin(request).await?;
        self.engine.turn().await?;
        downgrade(&request)?;
        let header = Some(self.engine.header_now());
        Ok(Response::new(DowngradeResponse { header, version: VERSION.to_owned() }))
    }
}

/// Checks a downgrade as etcd does. None is ever begun: no older version of this store speaks another protocol.
fn downgrade(request: &DowngradeRequest) -> Result<(), Status> {
    if request.action() == DowngradeAction::Cancel {
        return Err(Status::failed_precondition("etcdserver: no inflight downgrade job"));
    }
    let mut numbers = request.version.split('.').map(str::parse::<u64>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        let words = "etcdserver: wrong downgrade target version format";
        return Err(Status::invalid_argument(words));
    };
    if (major, minor) != ONE_BEFORE {
        return Err(Status::invalid_argument("etcdserver: invalid downgrade target version"));
    }
    if request.action() == DowngradeAction::Enable {
        let words = "etcdserver: this store has no older version to go back to";
        return Err(Status::failed_precondition(words));
    }
    Ok(())
}

/// Whether a client that took so many bytes in this time holds up what it reads from for too long.
fn trickles(took: Duration, bytes: u64) -> bool {
    took > PART_TIMEOUT + Duration::from_secs(bytes / RATE_BYTES_MIN)
}

/// Gives a part to the client, which may be slow, but not while a leader waits to replace what is read.
async fn hand_over(
    part: backup::Part,
    sender: &Sender<backup::Part>,
    replaced: &mut watch::Receiver<bool>,
) -> io::Result<()> {
    tokio::select! {
        sent = tokio::time::timeout(PART_TIMEOUT, sender.send(part)) => match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::other("the client is gone")),
            Err(_) => Err(io::Error::other("the client is too slow")),
        },
        _ = replaced.wait_for(|replaced| *replaced) => {
            Err(io::Error::other("the leader sent another state"))
        }
    }
}

/// The parts, and an error instead of the end if some are missing.
fn to_the_end(
    parts: Receiver<backup::Part>,
) -> impl Stream<Item = Result<SnapshotResponse, Status>> + Send {
    let all = (parts, true);
    futures::stream::unfold(all, |(mut parts, more)| async move {
        if !more {
            return None;
        }
        let Some(part) = parts.recv().await else {
            let words = "etcdserver: the backup was cut short, ask again";
            return Some((Err(Status::unavailable(words)), (parts, false)));
        };
        let backup::Part { blob, remaining_bytes } = part;
        let version = VERSION.to_owned();
        let answer = SnapshotResponse { header: None, remaining_bytes, blob, version };
        Some((Ok(answer), (parts, remaining_bytes > 0)))
    })
}

/// The hash of everything up to a revision (0 is now), that revision and the last compaction.
async fn hash(services: &Services, asked: i64) -> Result<(u32, i64, i64), Status> {
    let state = services.engine.applied.read().mvcc.clone();
    let (revision, compacted) = (state.revision(), state.compacted());
    if asked > revision {
        return Err(status(Error::FutureRevision));
    }
    if asked > 0 && asked < compacted {
        return Err(status(Error::Compacted));
    }
    let at = if asked == 0 { revision } else { asked };
    let engine = services.engine.clone();
    let hashed = services.ctx.tasks.blocking(move || mvcc::hash(&state, &*engine.state, at)).await;
    let hash = hashed.map_err(|error| Status::internal(error.to_string()))?.map_err(status)?;
    Ok((hash, revision, compacted))
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    fn part(remaining_bytes: u64) -> backup::Part {
        backup::Part { blob: bytes::Bytes::from_static(b"x"), remaining_bytes }
    }

    #[test]
    fn a_client_may_be_slow_but_not_trickle() {
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
        assert!(!trickles(PART_TIMEOUT, 0));
        assert!(trickles(minute, 1 << 20));
        assert!(!trickles(minute, 1 << 30));
        assert!(!trickles(hour, 1 << 30));
        assert!(trickles(2 * hour, 1 << 30));
    }

    #[test]
    fn a_downgrade_is_checked_and_never_begun() {
        for (action, version, words) in [
            (DowngradeAction::Validate, "3.5.0", None),
            (DowngradeAction::Validate, "3.5", None),
            (DowngradeAction::Validate, "3.4.0", Some("invalid downgrade target version")),
            (DowngradeAction::Validate, "x", Some("wrong downgrade target version format")),
            (DowngradeAction::Enable, "3.5.0", Some("no older version")),
            (DowngradeAction::Enable, "3.6.0", Some("invalid downgrade target version")),
            (DowngradeAction::Cancel, "", Some("no inflight downgrade job")),
        ] {
            let request = DowngradeRequest { action: action.into(), version: version.into() };
            let refused = downgrade(&request).err().map(|status| status.message().to_owned());
            assert_eq!(refused.is_some(), words.is_some(), "{request:?}");
            assert!(refused.is_none_or(|text| text.contains(words.unwrap_or(""))), "{request:?}");
        }
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_holds_up_no_leader() {
        let (sender, _unread) = tokio::sync::mpsc::channel(1);
        let replacing = watch::Sender::new(false);
        let mut replaced = replacing.subscribe();
        hand_over(part(1), &sender, &mut replaced).await.unwrap();
        let full = hand_over(part(0), &sender, &mut replaced);
        tokio::pin!(full);
        assert!(futures::poll!(&mut full).is_pending());
        replacing.send_replace(true);
        assert!(full.await.is_err());
    }

    #[tokio::test]
    async fn a_backup_that_is_cut_short_ends_with_an_error() {
        for (last, whole) in [(0, true), (1, false)] {
            let (sender, parts) = tokio::sync::mpsc::channel(2);
            sender.send(part(2)).await.unwrap();
            sender.send(part(last)).await.unwrap();
            drop(sender);
            let heard: Vec<_> = to_the_end(parts).collect().await;
            assert_eq!(heard.iter().all(Result::is_ok), whole, "{heard:?}");
        }
    }
}
