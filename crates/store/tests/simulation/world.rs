//! A cluster, its clients and its misfortunes, one event after another. The same seed gives the
//! same world.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use bytes::Bytes;
use daemon::Disk as _;
use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};
use store::members::{Change, What};
use store::mvcc::{Changes, Op};
use store::replica::{Committed, Input, Said};
use store::snapshot::Mark;
use store::watch::Watch;
use testkit::sim::network::Weather;
use testkit::sim::{Agenda, Network, Rng, SimDisk};
use wire::etcdserverpb::WatchCreateRequest;
use wire::mvccpb::Event as Happening;

use super::clients::{Memory, Pending, RATE_PERCENT_MAX};
use super::counts::Counts;
use super::member::{Bug, Effects, Heard, Member, News, Parcel, Request, cut, found, known};

const TICK: Duration = Duration::from_millis(100);
const CLIENTS: usize = 4;
const WATCHERS: u64 = 2;
/// How long things go wrong, how long clients go on after that, and when all must be quiet.
const TROUBLE: Duration = Duration::from_secs(10);
const BUSY: Duration = Duration::from_secs(15);
const END: Duration = Duration::from_secs(19);
const PATIENCE: Duration = Duration::from_secs(2);
/// More space than a member can use up.
const PLENTY: u64 = 1 << 40;

enum Event {
    Tick(u64),
    Deliver {
        from: u64,
        parcel: Parcel,
    },
    SnapshotSent {
        at: u64,
        to: u64,
        arrived: bool,
    },
    Promote(Vec<u64>, Vec<u64>),
    Client(usize),
    Timeout(usize, u64),
    Answer(u64, Heard),
    Trouble,
    /// In the middle of a joint change.
    Amid,
    Heal,
    Restart(u64),
    Watch(u64),
}

/// A machine with its disk and its clock; the member on it may be down.
struct Machine {
    disk: SimDisk,
    /// Its clock: where it began and how fast it is.
    began: Duration,
    rate_percent: u64,
    member: Option<Member>,
    busy_until: Duration,
}

impl Machine {
    fn new(rng: &mut Rng) -> Self {
        Self {
            disk: SimDisk::default(),
            began: Duration::from_secs(rng.within(0..1000)),
            rate_percent: rng.within(200 - RATE_PERCENT_MAX..RATE_PERCENT_MAX + 1),
            member: None,
            busy_until: Duration::ZERO,
        }
    }

    fn now(&self, now: Duration) -> Duration {
        self.began + now * u32::try_from(self.rate_percent).unwrap_or(100) / 100
    }
}

struct Client {
    rng: Rng,
    pending: Option<Pending>,
}

/// What a watcher has heard.
#[derive(Default)]
pub struct Listener {
    /// The member that serves it.
    at: Option<u64>,
    /// The first revision that it has not heard.
    next: i64,
    /// Every event, in order.
    pub heard: Vec<Happening>,
    /// Revisions that it was told are compacted.
    pub missed: Vec<(i64, i64)>,
}

/// The world.
pub struct World {
    agenda: Agenda<Event>,
    rng: Rng,
    network: Network,
    machines: BTreeMap<u64, Machine>,
    clients: Vec<Client>,
    tickets: u64,
    bug: Option<Bug>,
    pub memory: Memory,
    pub listeners: BTreeMap<u64, Listener>,
    /// Every entry and every change that some member applied.
    entries: BTreeMap<u64, (Mark, Bytes)>,
    /// Members that left.
    gone: BTreeSet<u64>,
    pub changes: BTreeMap<i64, Changes>,
    pub counts: Counts,
    pub trace: u64,
    term: u64,
    pub violations: Vec<String>,
}

impl World {
    /// A cluster of three or five on fresh disks.
    pub fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut rng = Rng::new(seed);
        let size = if rng.chance(70) { 3 } else { 5 };
        let mut agenda = Agenda::default();
        let ids: Vec<u64> = (1..=size).collect();
        let mut machines = BTreeMap::new();
        for id in &ids {
            let machine = Machine::new(&mut rng);
            found(&machine.disk, &ids);
            if bug == Some(Bug::EarlyAcknowledgement) {
                machine.disk.lie();
            }
            machines.insert(*id, machine);
            agenda.after(Duration::ZERO, Event::Restart(*id));
            agenda.after(Duration::from_millis(rng.within(0..100)), Event::Tick(*id));
        }
        let client = |_| Client { rng: rng.fork(), pending: None };
        let clients: Vec<Client> = (0..CLIENTS).map(client).collect();
        for client in 0..CLIENTS {
            agenda.after(Duration::from_secs(1), Event::Client(client));
        }
        for watcher in 0..WATCHERS {
            agenda.after(Duration::from_secs(1), Event::Watch(watcher));
        }
        agenda.after(Duration::from_secs(2), Event::Trouble);
        agenda.after(TROUBLE, Event::Heal);
        let listener = || Listener { next: 1, ..Listener::default() };
        Self {
            agenda,
            network: Network::new(rng.fork()),
            rng,
            machines,
            clients,
            tickets: 0,
            bug,
            memory: Memory::default(),
            listeners: (0..WATCHERS).map(|watcher| (watcher, listener())).collect(),
            entries: BTreeMap::new(),
            gone: BTreeSet::new(),
            changes: BTreeMap::new(),
            counts: Counts::default(),
            trace: 0xcbf2_9ce4_8422_2325,
            term: 0,
            violations: Vec::new(),
        }
    }

    /// Runs to the end, or to the first violation.
    pub fn run(&mut self) {
        while self.violations.is_empty() && self.agenda.now() < END {
            let Some(event) = self.agenda.next_event() else { return };
            self.happen(event);
        }
    }

    /// The members that are up.
    pub fn members(&self) -> impl Iterator<Item = (u64, &Member)> {
        self.machines.iter().filter_map(|(id, machine)| Some((*id, machine.member.as_ref()?)))
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick(id) => {
                let rate = self.machines[&id].rate_percent;
                let tick = TICK * 100 / u32::try_from(rate).unwrap_or(100);
                self.agenda.after(tick, Event::Tick(id));
                self.step(id, vec![Input::Tick]);
            }
            Event::Deliver { from, parcel } => self.deliver(from, parcel),
            Event::SnapshotSent { at, to, arrived } => {
                let wait = self.machines[&at].busy_until.saturating_sub(self.agenda.now());
                if wait.is_zero() {
                    self.step(at, vec![Input::SnapshotSent(to, arrived)]);
                } else {
                    self.agenda.after(wait, Event::SnapshotSent { at, to, arrived });
                }
            }
            Event::Promote(new, old) => self.promote(new, old),
            Event::Client(client) => self.act(client),
            Event::Timeout(client, ticket) => self.answer(client, ticket, None),
            Event::Answer(ticket, heard) => {
                let waits = |c: &Client| c.pending.as_ref().is_some_and(|p| p.ticket == ticket);
                if let Some(client) = self.clients.iter().position(waits) {
                    self.answer(client, ticket, Some(heard));
                }
            }
            Event::Trouble if self.agenda.now() < TROUBLE => {
                let next = Duration::from_millis(self.rng.within(200..1500));
                self.agenda.after(next, Event::Trouble);
                self.trouble();
            }
            Event::Trouble => {}
            Event::Amid => self.amid(),
            Event::Heal => self.heal(),
            Event::Restart(id) => self.restart(id),
            Event::Watch(watcher) => self.listen(watcher),
        }
    }

    fn note(&mut self, numbers: &[u64]) {
        let now = u64::try_from(self.agenda.now().as_nanos()).unwrap_or(0);
        for number in numbers.iter().chain([&now]) {
            self.trace = (self.trace ^ number).wrapping_mul(0x0100_0000_01b3).rotate_left(7);
        }
    }

    /// Lets a member take what came in.
    fn step(&mut self, id: u64, inputs: Vec<Input>) {
        let now = self.agenda.now();
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let local = machine.now(now);
        if now < machine.busy_until {
            return; // ticks and questions are lost on one that waits for its disk
        }
        let Some(member) = &mut machine.member else { return };
        match member.step(inputs, local) {
            Ok(effects) => {
                machine.busy_until = now + effects.busy;
                if member.leads() && member.term() > self.term {
                    self.term = member.term();
                    self.counts.leaders += 1;
                }
                self.take(id, effects);
            }
            Err(_) => self.crash(id),
        }
    }

    fn deliver(&mut self, from: u64, parcel: Parcel) {
        let to = parcel.to;
        let (arrived, now) = (self.network.is_open(from, to), self.agenda.now());
        let machine = self.machines.get_mut(&to).filter(|m| m.member.is_some() && arrived);
        if let Some(machine) = &machine
            && machine.busy_until > now
        {
            let wait = machine.busy_until - now;
            return self.agenda.after(wait, Event::Deliver { from, parcel });
        }
        self.note(&[1, from, to, parcel.bytes.len() as u64]);
        let Some((mark, file)) = parcel.file else {
            if arrived {
                self.step(to, vec![Input::Message(parcel.bytes)]);
            }
            return;
        };
        let member = self.machines.get(&to).and_then(|m| m.member.as_ref()).filter(|_| arrived);
        let input = member.map(|member| member.arrive(mark, &file, parcel.bytes));
        let sent = Event::SnapshotSent { at: from, to, arrived: matches!(input, Some(Ok(_))) };
        self.agenda.after(Duration::from_millis(50), sent);
        match input {
            Some(Ok(input)) => {
                self.counts.snapshots += 1;
                self.step(to, vec![input]);
            }
            Some(Err(_)) => self.crash(to),
            None => {}
        }
    }

    fn take(&mut self, id: u64, effects: Effects) {
        let busy = effects.busy;
        for parcel in effects.parcels {
            let mut ways = self.network.send(id, parcel.to);
            if !may_repeat(&parcel.bytes) {
                ways.truncate(1);
                let twice = self.bug == Some(Bug::RepeatedProposal);
                ways.extend(ways.first().filter(|_| twice).map(|way| *way + TICK * 3));
            }
            if ways.is_empty() && parcel.file.is_some() {
                let lost = Event::SnapshotSent { at: id, to: parcel.to, arrived: false };
                self.agenda.after(busy + TICK, lost);
            }
            for delay in ways {
                let parcel = parcel.clone();
                self.agenda.after(busy + delay, Event::Deliver { from: id, parcel });
            }
        }
        for (ticket, heard) in effects.answers {
            self.agenda.after(busy, Event::Answer(ticket, heard));
        }
        for (committed, changes) in effects.applied {
            self.applied(id, committed, changes);
        }
        for (watcher, news) in effects.news {
            self.hear(watcher, news);
        }
    }

    /// All members apply the same, and leases end when they may.
    fn applied(&mut self, id: u64, committed: Committed, changes: Option<Changes>) {
        let mark = committed.mark;
        self.note(&[2, id, mark.index, mark.term]);
        if let Said::Members(Ok(members)) = &committed.what {
            self.counts.members += 1;
            if members.is_joint() && !self.entries.contains_key(&mark.index) {
                self.counts.joint += 1;
                let soon = Duration::from_millis(self.rng.within(0..40));
                self.agenda.after(soon, Event::Amid);
            }
            // How often a leader had to go.
            let leads = self.machines[&id].member.as_ref().is_some_and(Member::leads);
            let goes = members.leaving.contains(&id) || members.removed.contains(&id);
            self.counts.leavers += u64::from(leads && goes);
            let early = members.leaving.iter().filter(|_| self.bug == Some(Bug::OneMajority));
            for gone in members.removed.iter().chain(early) {
                // It is switched off as soon as anybody knows.
                if self.gone.insert(*gone) {
                    self.counts.removed += 1;
                    self.agenda.after(Duration::ZERO, Event::Restart(*gone));
                }
            }
        }
        let said = match committed.what {
            Said::Operation(bytes) => bytes,
            _ => Bytes::new(),
        };
        let first = !self.entries.contains_key(&mark.index);
        let same = self.entries.entry(mark.index).or_insert_with(|| (mark, said.clone()));
        if *same != (mark, said.clone()) {
            let text = format!("member {id} applied {mark:?} {said:?}, another {same:?}");
            self.violations.push(text);
        }
        if let Some(changes) = changes {
            let same = self.changes.entry(changes.main).or_insert_with(|| changes.clone());
            if *same != changes {
                let text = format!("member {id} changed {changes:?}, another {same:?}");
                self.violations.push(text);
            }
        }
        if let (true, Ok(Op::Revoke(request))) = (first, Op::decode(said)) {
            let now = self.agenda.now();
            let lease = self.memory.leases.entry(request.id).or_default();
            if lease.safe_until().is_some_and(|until| now < until) {
                let text = format!("lease {} ended at {now:?}, too early: {lease:?}", request.id);
                self.violations.push(text);
            }
            lease.ended = lease.ended.or(Some(now));
            lease.renewed = None;
            self.counts.expired += 1;
        }
    }

    fn hear(&mut self, watcher: u64, news: News) {
        let Some(listener) = self.listeners.get_mut(&watcher) else { return };
        match news {
            News::Events(events) => {
                self.counts.events += events.len() as u64;
                let last = events.last().and_then(|e| e.kv.as_ref()).map(|kv| kv.mod_revision);
                listener.next = listener.next.max(last.unwrap_or(0) + 1);
                listener.heard.extend(events);
            }
            News::Compacted(first) => {
                self.counts.compacted += 1;
                listener.missed.push((listener.next, first));
                listener.next = first;
                listener.at = None;
                self.agenda.after(Duration::from_millis(50), Event::Watch(watcher));
            }
        }
    }

    /// A watcher that nobody serves goes on where it was, with any member.
    fn listen(&mut self, watcher: u64) {
        let up: Vec<u64> = self.members().map(|(id, _)| id).collect();
        let Some(listener) = self.listeners.get_mut(&watcher) else { return };
        if listener.at.is_some() {
            return;
        }
        let Some(id) = self.rng.pick(&up).copied() else {
            return self.agenda.after(Duration::from_millis(300), Event::Watch(watcher));
        };
        listener.at = Some(id);
        let request = WatchCreateRequest {
            key: [0].to_vec().into(),
            range_end: [0].to_vec().into(),
            start_revision: listener.next,
            ..Default::default()
        };
        let watch = Watch::new(1, &request);
        if let Some(member) = self.machines.get_mut(&id).and_then(|m| m.member.as_mut()) {
            member.watch(watcher, watch, listener.next);
        }
    }

    fn act(&mut self, client: usize) {
        let now = self.agenda.now();
        if now >= BUSY {
            return;
        }
        let rng = &mut self.clients[client].rng;
        let deed = self.memory.choose(rng, now < TROUBLE);
        let up: Vec<u64> = self.machines.keys().copied().collect();
        let id = rng.pick(&up).copied().unwrap_or(1);
        self.tickets += 1;
        let ticket = self.tickets;
        let (pending, request) = self.memory.call(ticket, deed, now);
        self.clients[client].pending = Some(pending);
        self.agenda.after(PATIENCE, Event::Timeout(client, ticket));
        self.ask(id, ticket, request);
    }

    fn ask(&mut self, id: u64, ticket: u64, request: Request) {
        let now = self.agenda.now();
        let machine = self.machines.get_mut(&id).filter(|machine| machine.busy_until <= now);
        let member = machine.and_then(|machine| machine.member.as_mut());
        match member.map(|member| member.ask(ticket, request)) {
            Some(Ok(input)) => self.step(id, vec![input]),
            Some(Err(heard)) => self.agenda.after(Duration::ZERO, Event::Answer(ticket, *heard)),
            None => self.agenda.after(Duration::ZERO, Event::Answer(ticket, Heard::Refused)),
        }
    }

    fn answer(&mut self, client: usize, ticket: u64, heard: Option<Heard>) {
        let Some(pending) = self.clients[client].pending.take_if(|p| p.ticket == ticket) else {
            return;
        };
        self.note(&[3, client as u64, ticket, u64::from(heard.is_some())]);
        if matches!(heard, Some(Heard::Changed(Ok(_)))) {
            self.counts.writes += 1;
        }
        self.memory.hear(&pending, heard, self.agenda.now());
        let think = Duration::from_millis(self.clients[client].rng.within(5..150));
        self.agenda.after(think, Event::Client(client));
    }

    fn trouble(&mut self) {
        let all: Vec<u64> = self.machines.keys().copied().collect();
        let id = self.rng.pick(&all).copied().unwrap_or(1);
        let kind = self.rng.within(0..17);
        self.note(&[4, id, kind]);
        match kind {
            0..3 => self.crash(id),
            3 => {
                // In the middle of what it does next.
                let disk = &self.machines[&id].disk;
                disk.cut_after(disk.steps() + self.rng.within(1..8));
            }
            4 => self.network.part(&[id], &all),
            5 | 15 => {
                let leader = self.leader().unwrap_or(id);
                self.counts.partitions += 1;
                self.network.part(&[leader], &all);
            }
            6 => {
                let to = self.rng.pick(&all).copied().unwrap_or(1);
                self.network.cut(id, to);
            }
            7 => {
                self.network.weather = Weather {
                    loss_percent: self.rng.within(0..30),
                    twice_percent: self.rng.within(0..20),
                    delay_max: Duration::from_millis(self.rng.within(5..300)),
                };
            }
            8 | 9 => self.network.heal(),
            10 => {
                let delay = if self.rng.chance(50) { 0 } else { self.rng.within(1..100) };
                self.machines[&id].disk.set_delay(Duration::from_millis(delay));
            }
            11 => {
                if let Some(leader) = self.leader().filter(|leader| *leader != id) {
                    self.step(leader, vec![Input::Transfer(id)]);
                }
            }
            16 => {
                let leader = self.leader().unwrap_or(id);
                self.step(leader, vec![Input::HandOver]);
            }
            12 => self.machines[&id].disk.set_free(self.rng.within(0..20_000)),
            13 if all.len() < 7 && self.agenda.now() + BUSY / 4 < TROUBLE => self.join(),
            14 if all.len() - self.gone.len() > 3 => {
                let leader = self.leader().filter(|_| self.rng.chance(50));
                self.change([What::Remove(leader.unwrap_or(id))]);
            }
            _ => {}
        }
    }

    /// A joint change is through in no time, unless something happens to it.
    fn amid(&mut self) {
        if self.agenda.now() >= TROUBLE || self.rng.chance(40) {
            return;
        }
        let all: Vec<u64> = self.machines.keys().copied().collect();
        let (crashes, cuts) = (self.rng.within(0..70), self.rng.chance(40));
        for id in &all {
            if self.rng.chance(crashes) {
                self.crash(*id);
            }
            if cuts && self.rng.chance(50) {
                self.network.part(&[*id], &all);
            }
        }
    }

    fn crash(&mut self, id: u64) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        if machine.member.take().is_none() {
            return;
        }
        self.counts.crashes += 1;
        machine.busy_until = Duration::ZERO;
        machine.disk.restart(cut(&mut self.rng));
        // Its clock may stand elsewhere when it is back.
        machine.began += Duration::from_secs(self.rng.within(0..5));
        let down = Duration::from_millis(self.rng.within(100..3000));
        self.agenda.after(down, Event::Restart(id));
        self.left(id);
    }

    /// The watchers of a member that is no more look for another.
    fn left(&mut self, id: u64) {
        let left = self.listeners.iter_mut().filter(|(_, l)| l.at == Some(id));
        for (watcher, listener) in left {
            listener.at = None;
            let away = Duration::from_millis(self.rng.within(50..2500));
            self.agenda.after(away, Event::Watch(*watcher));
        }
    }

    fn restart(&mut self, id: u64) {
        let now = self.agenda.now();
        let rng = self.rng.fork();
        let Some(machine) = self.machines.get_mut(&id) else { return };
        if self.gone.contains(&id) {
            machine.member = None;
            return self.left(id);
        }
        if machine.member.is_some() {
            return;
        }
        match Member::start(&machine.disk, id, self.bug, (rng, machine.now(now))) {
            Ok(member) => machine.member = Some(member),
            Err(error) => self.failed(id, &error),
        }
    }

    /// A member that cannot start: it may if its power was cut again, or its disk is full.
    fn failed(&mut self, id: u64, error: &io::Error) {
        let disk = &self.machines[&id].disk;
        let full = disk.free_bytes(std::path::Path::new("/")).is_ok_and(|free| free < PLENTY);
        if disk.is_cut() || full {
            disk.restart(cut(&mut self.rng));
            self.agenda.after(Duration::from_millis(300), Event::Restart(id));
        } else {
            self.violations.push(format!("member {id} cannot start: {error}"));
        }
    }

    /// New machines ask to be members, in the place of others or beside them.
    fn join(&mut self) {
        let all: Vec<u64> = self.machines.keys().copied().collect();
        let last = all.last().copied().unwrap_or(0);
        let new: Vec<u64> = (last + 1..=last + self.rng.within(1..3)).collect();
        let mut stay: Vec<u64> = all.into_iter().filter(|id| !self.gone.contains(id)).collect();
        let mut old = Vec::new();
        // Most of them may go at once, and the leader among them.
        for _ in 0..self.rng.within(0..4) {
            if stay.len() + new.len() > 3 {
                old.push(stay.swap_remove(self.rng.place(stay.len())));
            }
        }
        for id in &new {
            let machine = Machine::new(&mut self.rng);
            self.machines.insert(*id, machine);
            self.agenda.after(Duration::ZERO, Event::Restart(*id));
            self.agenda.after(TICK, Event::Tick(*id));
        }
        self.change(new.iter().map(|id| What::Add(known(*id, true))));
        self.agenda.after(TICK, Event::Promote(new, old));
    }

    /// They are promoted as soon as the leader finds them in sync, and others go with the same change.
    fn promote(&mut self, new: Vec<u64>, old: Vec<u64>) {
        let knows = |member: &Member| {
            let known = new.iter().filter_map(|id| member.applied.members.get(*id));
            let learners: Vec<bool> = known.map(|known| known.is_learner).collect();
            (!learners.is_empty()).then_some(learners)
        };
        let seen = self.members().filter(|(id, _)| !new.contains(id)).find_map(|(_, m)| knows(m));
        match seen {
            Some(learners) if !learners.contains(&true) => return,
            Some(_) => {
                // Who was to come may be gone already, and who was to go may never have come: a change with either would be
                // refused for ever.
                let is_member = |id: &u64| {
                    self.members().any(|(_, member)| member.applied.members.get(*id).is_some())
                };
                let known =
                    |ids: &[u64]| -> Vec<u64> { ids.iter().copied().filter(is_member).collect() };
                let (come, leave) = (known(&new), known(&old));
                let promoted = come.into_iter().map(What::Promote);
                self.change(promoted.chain(leave.into_iter().map(What::Remove)));
            }
            None => self.change(new.iter().map(|id| What::Add(known(*id, true)))),
        }
        self.agenda.after(TICK * 3, Event::Promote(new, old));
    }

    fn change(&mut self, steps: impl IntoIterator<Item = What>) {
        self.tickets += 1;
        let ticket = self.tickets;
        if let Some(leader) = self.leader() {
            self.ask(leader, ticket, Request::Members(Change::of(steps)));
        }
    }

    fn leader(&self) -> Option<u64> {
        let leaders = self.members().filter(|(_, member)| member.leads());
        leaders.max_by_key(|(_, member)| member.term()).map(|(id, _)| id)
    }

    fn heal(&mut self) {
        self.network.heal();
        let all: Vec<u64> = self.machines.keys().copied().collect();
        for id in all {
            self.machines[&id].disk.set_delay(Duration::ZERO);
            self.machines[&id].disk.set_free(u64::MAX);
            self.agenda.after(Duration::ZERO, Event::Restart(id));
        }
    }
}

/// Whether a message may come twice: all but a proposal on its way to the leader, which would be
/// two proposals then. The product's transport sends each message at most once.
fn may_repeat(bytes: &Bytes) -> bool {
    let message = Message::parse_from_bytes(bytes).expect("a message of the core");
    message.get_msg_type() != MessageType::MsgPropose
}
