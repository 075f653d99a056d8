//! One member: the product's core, state, leases and watchers, in the shell of the simulation.
//!
//! What the product's shell does with threads, sockets and the machine's clock happens here in one
//! step after another. The planted bugs are in this shell, so the product needs no switch for them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use daemon::Disk as _;
use store::applied::{Applied, Round};
use store::lessor::Lessor;
use store::log::{self, Sizes};
use store::members::{Change, Members};
use store::mvcc::{Changes, Error, Op, Reply, Revision};
use store::node::{Node, Outgoing, Start};
use store::recovery::{Recovery, recover};
use store::replica::{Committed, Input, Refusal, Replica, Said, Work};
use store::snapshot::{self, Mark};
use store::watch::{Hub, Watch};
use testkit::sim::{Cut, Rng, SimDisk};
use wire::etcdserverpb::{LeaseRevokeRequest, Member as Known, RangeRequest, RangeResponse};
use wire::mvccpb::Event;

const SIZES: Sizes = Sizes { segment_bytes: 8 << 10, ahead_bytes: 2 << 10 };
const LOG: &str = "/member/log";
const SNAPSHOTS: &str = "/member/snapshots";
/// Entries after which a member makes a snapshot.
const SNAPSHOT_ENTRIES: u64 = 20;
/// Bytes of history that a watcher behind gets at once.
const HISTORY_BYTES: usize = 512;
/// The ticket of the end of a lease, which the member proposes itself, with the lease's id.
const OWN: u64 = 1 << 63;

/// A mistake that the simulation must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Syncs are acknowledged before they are done.
    EarlyAcknowledgement,
    /// A leader answers reads without asking whether it still leads.
    StaleRead,
    /// A watcher that was behind a compaction goes on after it as if nothing were missing.
    LostWatchEvent,
    /// A follower ends leases whose renewals it never saw.
    FollowerExpiry,
    /// A snapshot says it has one entry more than it has.
    ShortSnapshot,
    /// Members that a joint change lets go are switched off as if only the majority of those that stay counted.
    OneMajority,
    /// The network repeats proposals on their way to the leader, as the product's transport never does.
    RepeatedProposal,
}

/// What a client asks.
#[derive(Debug, Clone)]
pub enum Request {
    /// The newest state of some keys.
    Range(RangeRequest),
    /// A change.
    Change(Op),
    /// A change of members.
    Members(Change),
    /// A longer life for a lease.
    KeepAlive(i64),
}

/// What it hears.
#[derive(Debug, Clone)]
pub enum Heard {
    /// The keys.
    Range(Result<RangeResponse, Error>),
    /// What the change did.
    Changed(Result<Reply, Refusal>),
    /// Whether the lease lives on.
    Alive(bool),
    /// Nothing happened and nothing will; ask somebody else.
    Refused,
}

/// What a watcher hears.
#[derive(Debug, Clone)]
pub enum News {
    /// These events.
    Events(Vec<Event>),
    /// The revisions before this one are compacted; its watch is over.
    Compacted(i64),
}

/// A message with the snapshot file that must come before it.
#[derive(Debug, Clone)]
pub struct Parcel {
    /// Whom it is for.
    pub to: u64,
    /// The message.
    pub bytes: Bytes,
    /// The file, if there is one.
    pub file: Option<(Mark, Bytes)>,
}

/// What a step did to the world.
#[derive(Debug, Default)]
pub struct Effects {
    /// To other members.
    pub parcels: Vec<Parcel>,
    /// To clients, by ticket.
    pub answers: Vec<(u64, Heard)>,
    /// To watchers.
    pub news: Vec<(u64, News)>,
    /// Entries applied, and what they changed.
    pub applied: Vec<(Committed, Option<Changes>)>,
    /// How long the disk took.
    pub busy: Duration,
}

enum Place {
    Level,
    Behind(i64),
}

/// A running member.
pub struct Member {
    disk: SimDisk,
    bug: Option<Bug>,
    core: Replica<SimDisk>,
    /// The applied state, and for a planted bug the one before the last entry.
    pub applied: Applied,
    before: Option<Applied>,
    saved: Mark,
    lessor: Lessor,
    hub: Hub<u64>,
    watchers: BTreeMap<u64, (Watch, Place)>,
    reads: BTreeMap<u64, Request>,
    /// What the next step takes first.
    later: Vec<Input>,
    rng: Rng,
}

/// What a member of a new cluster finds on its disk: the same members on each.
pub fn found(disk: &SimDisk, ids: &[u64]) {
    let members = Members::new(ids.iter().map(|id| known(*id, false)).collect());
    let applied = Applied { members, mark: Mark { index: 1, term: 1 }, ..Applied::default() };
    snapshot::save(disk, Path::new(SNAPSHOTS), &applied, &()).expect("a new disk takes it");
}

/// A member as the others know it.
pub fn known(id: u64, is_learner: bool) -> Known {
    let (name, peer_ur_ls) = (format!("m{id}"), vec![format!("m{id}")]);
    Known { id, name, is_learner, peer_ur_ls, ..Known::default() }
}

impl Member {
    /// Starts a member on what its disk holds.
    pub fn start(
        disk: &SimDisk,
        id: u64,
        bug: Option<Bug>,
        (mut rng, now): (Rng, Duration),
    ) -> io::Result<Self> {
        let (logs, snapshots) = ((Path::new(LOG), SIZES), Path::new(SNAPSHOTS));
        let recovered = recover(disk, logs, snapshots, None).map_err(io::Error::other)?;
        let Recovery { applied, log, vote, before, entries, .. } = recovered;
        let (members, mark) = (applied.members.clone(), applied.mark);
        let start = Start {
            id,
            seats: members.seats(),
            vote,
            before,
            entries,
            applied: mark.index,
            seed: rng.number(),
        };
        let node = Node::new(start).map_err(io::Error::other)?;
        let core = Replica::new((id, rng.number()), node, log, members, mark.index);
        Ok(Self {
            disk: disk.clone(),
            bug,
            core,
            hub: Hub::new(applied.mvcc.revision()),
            before: (bug == Some(Bug::ShortSnapshot)).then(|| applied.clone()),
            lessor: Lessor::new(applied.mvcc.leases(), now),
            applied,
            saved: mark,
            watchers: BTreeMap::new(),
            reads: BTreeMap::new(),
            later: Vec::new(),
            rng,
        })
    }

    /// Whether it believes to lead.
    pub fn leads(&self) -> bool {
        self.core.node().leads()
    }

    /// The newest term it knows.
    pub fn term(&self) -> u64 {
        self.core.node().term()
    }

    /// Whether it counts the time of leases: it leads, and has given all of them their life again.
    fn keeps_leases(&self) -> bool {
        self.leads() && self.applied.mark.term == self.term()
    }

    /// Takes what came in, at `now` on its own clock.
    pub fn step(&mut self, mut inputs: Vec<Input>, now: Duration) -> io::Result<Effects> {
        inputs.append(&mut self.later);
        inputs.extend(self.expired(now));
        let mut effects = Effects::default();
        let mut outgoing = Vec::new();
        let output = self.core.step(inputs, &mut |message| outgoing.push(message));
        let output = output.map_err(io::Error::other)?;
        for message in outgoing {
            effects.parcels.extend(self.pack(message)?);
        }
        for (ticket, refusal) in output.lost {
            if ticket & OWN != 0 {
                self.lessor.retry((ticket ^ OWN).cast_signed());
            }
            // Whoever waited in vain cannot know what happened.
            if !matches!(refusal, Refusal::Timeout | Refusal::LeaderLost) {
                effects.answers.push((ticket, Heard::Refused));
            }
        }
        for work in output.work {
            match work {
                Work::Apply(entries) => self.apply(entries, now, &mut effects)?,
                Work::Install(mark) => self.install(mark, now)?,
            }
        }
        for ticket in output.reads {
            self.answer_read(ticket, now, &mut effects);
        }
        self.catch_up(&mut effects);
        self.snapshot(output.wants_snapshot)?;
        effects.busy = self.disk.take_busy();
        Ok(effects)
    }

    /// A message has arrived with the file that it is about, which must be durable before.
    pub fn arrive(&self, mark: Mark, file: &[u8], bytes: Bytes) -> io::Result<Input> {
        let pieces = file.chunks(1000).map(Bytes::copy_from_slice);
        let members = snapshot::receive(&self.disk, Path::new(SNAPSHOTS), mark, pieces)?;
        Ok(Input::Arrived(mark, members, bytes))
    }

    /// What a client's request puts in; or the answer at once.
    pub fn ask(&mut self, ticket: u64, request: Request) -> Result<Input, Box<Heard>> {
        match request {
            Request::Change(op) => Ok(Input::Propose(ticket, op.encode())),
            Request::Members(change) => Ok(Input::Change(ticket, change)),
            Request::Range(range) if self.bug == Some(Bug::StaleRead) && self.leads() => {
                Err(Box::new(Heard::Range(self.applied.mvcc.range(&(), &range))))
            }
            Request::KeepAlive(_) if !self.leads() => Err(Box::new(Heard::Refused)),
            request => {
                self.reads.insert(ticket, request);
                Ok(Input::Read(ticket))
            }
        }
    }

    /// What it is and what it sees, for those who debug a seed.
    pub fn describe(&self) -> String {
        let node = self.core.node();
        format!(
            "leader {} term {} committed {} applied {:?} saved {:?} {:?} removed {:?}",
            node.leader(),
            node.term(),
            node.committed(),
            self.applied.mark,
            self.saved,
            self.applied.members.seats(),
            self.applied.members.removed
        )
    }

    /// Adds a watcher that has heard everything before `next`.
    pub fn watch(&mut self, watcher: u64, watch: Watch, next: i64) {
        self.watchers.insert(watcher, (watch, Place::Behind(next)));
    }

    /// Every watcher has heard everything that is applied here.
    pub fn all_level(&self) -> bool {
        self.watchers.values().all(|(_, place)| matches!(place, Place::Level))
    }

    fn pack(&mut self, message: Outgoing) -> io::Result<Option<Parcel>> {
        let Outgoing { to, bytes, snapshot } = message;
        let Some(mark) = snapshot else { return Ok(Some(Parcel { to, bytes, file: None })) };
        match self.disk.read(&path(mark)) {
            Ok(file) => Ok(Some(Parcel { to, bytes, file: Some((mark, file.into())) })),
            // A newer one has taken its place; the core is told that nothing arrived.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.later.push(Input::SnapshotSent(to, false));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn expired(&mut self, now: Duration) -> Vec<Input> {
        let follows = self.bug == Some(Bug::FollowerExpiry);
        if !self.keeps_leases() && !follows {
            return Vec::new();
        }
        let term = self.term();
        let revoke = |id: i64| {
            let ticket = OWN | id.cast_unsigned();
            let op = Op::Revoke(LeaseRevokeRequest { id }).encode();
            if follows { Input::Propose(ticket, op) } else { Input::Lead(ticket, term, op) }
        };
        self.lessor.expired(now).into_iter().map(revoke).collect()
    }

    fn apply(
        &mut self,
        entries: Vec<Committed>,
        now: Duration,
        effects: &mut Effects,
    ) -> io::Result<()> {
        let mut round = Round::default();
        let mut leads_anew = false;
        for committed in entries {
            if self.bug == Some(Bug::ShortSnapshot) {
                self.before = Some(self.applied.clone());
            }
            let known = round.changes.len();
            leads_anew |= matches!(committed.what, Said::Nothing);
            let reply = self.applied.apply(&committed, &(), &mut round);
            let reply = reply.map_err(io::Error::other)?.map(Heard::Changed);
            effects.answers.extend(committed.ticket.zip(reply));
            effects.applied.push((committed, round.changes.get(known).cloned()));
        }
        self.lessor.note(&round.leases, leads_anew, now);
        self.publish(&round.changes, effects);
        Ok(())
    }

    fn install(&mut self, mark: Mark, now: Duration) -> io::Result<()> {
        self.applied = snapshot::load(&self.disk, &path(mark))?;
        self.lessor = Lessor::new(self.applied.mvcc.leases(), now);
        self.saved = mark;
        for behind in self.hub.jump(self.applied.mvcc.revision()) {
            self.watchers.insert(behind.stream, (behind.watch, Place::Behind(behind.next)));
        }
        Ok(())
    }

    fn publish(&mut self, changes: &[Changes], effects: &mut Effects) {
        let rng = &mut self.rng;
        let news = &mut effects.news;
        let header = self.applied.mvcc.header();
        let behind = self.hub.publish(header, changes, |watcher, responses| {
            // Now and then a stream is full.
            if rng.chance(10) {
                return false;
            }
            news.extend(responses.into_iter().map(|r| (*watcher, News::Events(r.events))));
            true
        });
        for lost in behind {
            self.watchers.insert(lost.stream, (lost.watch, Place::Behind(lost.next)));
        }
    }

    fn answer_read(&mut self, ticket: u64, now: Duration, effects: &mut Effects) {
        let heard = match self.reads.remove(&ticket) {
            Some(Request::Range(range)) => Heard::Range(self.applied.mvcc.range(&(), &range)),
            Some(Request::KeepAlive(id)) if self.keeps_leases() => {
                Heard::Alive(self.lessor.renew(id, now).is_some())
            }
            _ => Heard::Refused,
        };
        effects.answers.push((ticket, heard));
    }

    fn catch_up(&mut self, effects: &mut Effects) {
        let behind = |(id, (_, place)): (&u64, &(Watch, Place))| match place {
            Place::Behind(next) => Some((*id, *next)),
            Place::Level => None,
        };
        let behind: Vec<(u64, i64)> = self.watchers.iter().filter_map(behind).collect();
        for (id, next) in behind {
            let Some((watch, _)) = self.watchers.remove(&id) else { continue };
            let next = match self.history(next) {
                Ok((changes, reached)) => {
                    let events = changes.iter().flat_map(|changes| changes.events.iter());
                    let events: Vec<Event> =
                        events.filter(|e| watch.wants(e)).map(|e| watch.view(e)).collect();
                    if !events.is_empty() {
                        effects.news.push((id, News::Events(events)));
                    }
                    reached
                }
                Err(compacted) if self.bug == Some(Bug::LostWatchEvent) => compacted,
                Err(compacted) => {
                    effects.news.push((id, News::Compacted(compacted)));
                    continue;
                }
            };
            let place =
                self.hub.join(&watch, next, &id).map_or(Place::Behind(next), |_| Place::Level);
            self.watchers.insert(id, (watch, place));
        }
    }

    /// Some changes from a revision on, and the first revision after them.
    fn history(&self, from: i64) -> Result<(Vec<Changes>, i64), i64> {
        if from < self.applied.mvcc.compacted() {
            return Err(self.applied.mvcc.compacted());
        }
        let found =
            self.applied.mvcc.recent(from, HISTORY_BYTES).unwrap_or_else(|| self.archived(from));
        let next = found.last().map_or(self.applied.mvcc.revision() + 1, |last| last.main + 1);
        Ok((found, next.max(from)))
    }

    /// What memory does not have after a restart; the product reads it from its archive.
    fn archived(&self, from: i64) -> Vec<Changes> {
        let mut all: BTreeMap<i64, Vec<Event>> = BTreeMap::new();
        let add = |at: Revision, event: &Event| {
            if at.main >= from {
                all.entry(at.main).or_default().push(event.clone());
            }
            Ok(())
        };
        self.applied.mvcc.records(&(), add).expect("memory has every value");
        all.into_iter().map(|(main, events)| Changes { main, events: events.into() }).collect()
    }

    fn snapshot(&mut self, wanted: bool) -> io::Result<()> {
        let mark = self.applied.mark;
        let due = mark.index >= self.saved.index + SNAPSHOT_ENTRIES;
        if due || (wanted && mark > self.saved) {
            let dir = Path::new(SNAPSHOTS);
            let mut applied = self.before.as_ref().unwrap_or(&self.applied).clone();
            applied.mark = mark;
            match snapshot::save(&self.disk, dir, &applied, &()) {
                Err(error) if log::is_full(&error) => return Ok(()),
                saved => saved?,
            };
            self.saved = mark;
            if let [_, (older, _), ..] = snapshot::list(&self.disk, dir)?[..] {
                self.later.push(Input::Release(older));
            }
        }
        if due || wanted {
            // What was offered before may be gone now.
            self.later.push(Input::Snapshot(self.saved));
        }
        Ok(())
    }
}

fn path(mark: Mark) -> PathBuf {
    Path::new(SNAPSHOTS).join(snapshot::file_name(mark))
}

/// A cut, drawn.
pub fn cut(rng: &mut Rng) -> Cut {
    match rng.within(0..4) {
        0 => Cut::Lost,
        1 => Cut::Landed,
        _ => Cut::Torn(rng.fork()),
    }
}
