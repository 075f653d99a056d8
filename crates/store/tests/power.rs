//! Everything acknowledged is there after a power cut, wherever it comes: before, at and between
//! all syncs of a member's log and snapshots, and again while it recovers from the last one.
#![allow(clippy::unwrap_used)] // helpers of tests, which the linter does not see as tests

use std::io;
use std::path::Path;

use bytes::Bytes;
use daemon::Disk as _;
use store::applied::Applied;
use store::log::{Entry, EntryKind, Log, LogError, Recovered, Sizes, Vote};
use store::mvcc::{Mvcc, Op, Revision};
use store::snapshot::{self, Mark};
use testkit::sim::{Cut, Rng, SimDisk};
use wire::etcdserverpb::{CompactionRequest, PutRequest};

const SIZES: Sizes = Sizes { segment_bytes: 4 << 10, ahead_bytes: 1 << 10 };
const ENTRIES: u64 = 60;
const LOG: &str = "/member/log";
const SNAPSHOTS: &str = "/member/snapshots";

/// What entry `index` says; the same whoever asks.
fn entry(index: u64) -> Entry {
    let revision = i64::try_from(index).unwrap() / 2;
    let op = if index.is_multiple_of(11) {
        Op::Compact(CompactionRequest { revision, physical: false })
    } else {
        let key = format!("k{}", index % 5).into();
        let len = usize::try_from(index * 7 % 300).unwrap();
        Op::Put(PutRequest { key, value: vec![b'v'; len].into(), ..Default::default() })
    };
    let (term, data) = (1 + index / 20, op.encode().into());
    Entry { term, index, kind: EntryKind::Operation, data }
}

fn vote(term: u64) -> Vote {
    Vote { term, vote: term % 3, commit: 0 }
}

/// What the member may say to others: it must never be forgotten.
#[derive(Debug, Clone, Copy, Default)]
struct Acknowledged {
    index: u64,
    term: u64,
}

/// A member alone, reduced to what touches its disk.
struct Member {
    log: Log<SimDisk>,
    applied: Applied,
    vote: Vote,
}

impl Member {
    fn apply(&mut self, entry: &Entry) {
        let op = Op::decode(entry.data.clone()).unwrap();
        self.applied.mvcc.apply(&op, &());
        self.applied.mark = Mark { index: entry.index, term: entry.term };
    }

    fn recover(disk: &SimDisk) -> io::Result<Self> {
        let applied = snapshot::newest(disk, Path::new(SNAPSHOTS))?;
        let opened = Log::open(disk, Path::new(LOG), SIZES).map_err(io::Error::other)?;
        let (log, Recovered { entries, vote, .. }) = opened;
        let mark = applied.mark;
        let mut member = Self { log, applied, vote };
        for entry in entries.iter().filter(|entry| entry.index > mark.index) {
            assert_eq!(entry.index, member.applied.mark.index + 1, "a part is missing");
            member.apply(entry);
        }
        Ok(member)
    }

    /// Goes on to the last entry, or until the disk fails.
    fn work(&mut self, disk: &SimDisk, said: &mut Acknowledged) -> io::Result<()> {
        while self.applied.mark.index < ENTRIES {
            let first = self.applied.mark.index + 1;
            let last = ENTRIES.min(first + first % 3);
            for index in first..=last {
                self.log.entry(&entry(index));
            }
            let term = entry(last).term;
            if term > self.vote.term {
                self.vote = vote(term);
                self.log.vote(self.vote);
            }
            self.log.sync().map_err(io::Error::other)?;
            *said = Acknowledged { index: last, term };
            for index in first..=last {
                self.apply(&entry(index));
            }
            if last.is_multiple_of(4) {
                let dir = Path::new(SNAPSHOTS);
                snapshot::save(disk, dir, &self.applied, &())?;
                if let [_, (older, _), ..] = snapshot::list(disk, dir)?[..] {
                    self.log.release(older.index).map_err(io::Error::other)?;
                }
            }
        }
        Ok(())
    }
}

fn records(mvcc: &Mvcc) -> Vec<(Revision, wire::mvccpb::Event)> {
    let mut all = Vec::new();
    let push = |at, event: &wire::mvccpb::Event| {
        all.push((at, event.clone()));
        Ok(())
    };
    mvcc.records(&(), push).unwrap();
    all
}

/// The state is what the first entries make, and these are all that were acknowledged.
fn check(member: &Member, said: Acknowledged, case: &str) {
    let index = member.applied.mark.index;
    assert!(index >= said.index, "{case}: {said:?} was acknowledged, but {index} is the last");
    assert!(member.vote.term >= said.term, "{case}: a vote of {said:?} is forgotten");
    assert_eq!(
        member.vote,
        if member.vote.term == 0 { Vote::default() } else { vote(member.vote.term) }
    );
    let mut wanted = Mvcc::default();
    for index in 1..=index {
        wanted.apply(&Op::decode(entry(index).data).unwrap(), &());
    }
    assert_eq!(records(&member.applied.mvcc), records(&wanted), "{case}");
    assert_eq!(member.applied.mvcc.summary(), wanted.summary(), "{case}");
}

fn run(disk: &SimDisk, said: &mut Acknowledged) -> io::Result<()> {
    Member::recover(disk)?.work(disk, said)
}

fn cuts(seed: u64) -> [Cut; 4] {
    let mut rng = Rng::new(seed);
    [Cut::Lost, Cut::Landed, Cut::Torn(rng.fork()), Cut::Torn(rng.fork())]
}

#[test]
fn what_was_acknowledged_survives_a_cut_at_every_step() {
    let disk = SimDisk::default();
    run(&disk, &mut Acknowledged::default()).unwrap();
    let (steps, syncs) = (disk.steps(), disk.syncs());
    assert!(syncs > 40 && steps > 3 * syncs, "{syncs} syncs and {steps} steps say little");
    for step in 0..=steps {
        for (i, cut) in cuts(step).into_iter().enumerate() {
            let case = format!("cut {i} after step {step}");
            let (disk, mut said) = (SimDisk::default(), Acknowledged::default());
            disk.cut_after(step);
            assert_eq!(run(&disk, &mut said).is_err(), step < steps, "{case}");
            disk.restart(cut);
            check(&Member::recover(&disk).expect(&case), said, &case);
            run(&disk, &mut said).expect(&case);
            disk.restart(Cut::Lost);
            said.index = ENTRIES;
            check(&Member::recover(&disk).expect(&case), said, &case);
        }
    }
}

#[test]
fn a_cut_while_recovering_loses_nothing_either() {
    let disk = SimDisk::default();
    run(&disk, &mut Acknowledged::default()).unwrap();
    for step in (0..=disk.steps()).step_by(5) {
        for again in 1..12 {
            let case = format!("cut after step {step}, then {again} later");
            let (disk, mut said) = (SimDisk::default(), Acknowledged::default());
            disk.cut_after(step);
            // Whether this fails does not matter: the power is cut in any case.
            drop(run(&disk, &mut said));
            let [.., one, two] = cuts(step + again);
            disk.restart(one);
            disk.cut_after(disk.steps() + again);
            drop(run(&disk, &mut said));
            disk.restart(two);
            check(&Member::recover(&disk).expect(&case), said, &case);
        }
    }
}

#[test]
fn damage_before_what_was_synced_later_is_refused_and_never_read() {
    let disk = SimDisk::default();
    let dir = Path::new(LOG);
    let (mut log, _) = Log::open(&disk, dir, SIZES).unwrap();
    for index in 1..=8 {
        log.entry(&entry(index));
        log.sync().unwrap();
    }
    let path = disk.list(dir).unwrap()[0].clone();
    let bytes = disk.read(&path).unwrap();
    let end = bytes.iter().rposition(|b| *b != 0).unwrap();
    let wanted: Vec<Entry> = (1..=8).map(entry).collect();
    let (mut refused, mut cut) = (Vec::new(), Vec::new());
    for byte in 0..=end {
        let copy = SimDisk::default();
        copy.create_dir(dir).unwrap();
        copy.replace(&path, &bytes).unwrap();
        copy.flip(&path, byte, u32::try_from(byte).unwrap()).unwrap();
        match Log::open(&copy, dir, SIZES) {
            Err(LogError::Corrupt { .. } | LogError::Format { .. }) => refused.push(byte),
            Err(other) => panic!("byte {byte}: {other}"),
            // Only the last sync can be taken for one that never ended.
            Ok((_, found)) if found.entries == wanted[..7] => cut.push(byte),
            // A byte that fills up a record says nothing.
            Ok((_, found)) => assert_eq!(found.entries, wanted, "byte {byte}"),
        }
    }
    assert!(refused.len() > 400 && !cut.is_empty(), "{refused:?} refused, {cut:?} cut off");
    assert!(refused.last() < cut.first());
}

#[test]
fn a_full_disk_is_told_in_time_and_loses_nothing() {
    for free in (4_000..60_000).step_by(500) {
        let case = format!("{free} bytes");
        let (disk, mut said) = (SimDisk::default(), Acknowledged::default());
        disk.set_free(free);
        let ended = Member::recover(&disk).and_then(|mut member| {
            let ended = member.work(&disk, &mut said);
            // A snapshot that does not fit leaves the log as it is.
            if ended.is_err() && !member.log.is_full() {
                member.log.entry(&entry(said.index + 1));
                member.log.sync().expect(&case);
                said.index += 1;
            }
            ended
        });
        disk.restart(Cut::Torn(Rng::new(free)));
        disk.set_free(1 << 20);
        check(&Member::recover(&disk).expect(&case), said, &case);
        run(&disk, &mut said).expect(&case);
        assert!(ended.is_err() || free > 8_000, "{case}: was enough");
    }
}

#[test]
fn room_that_was_set_aside_takes_what_comes_after_the_disk_is_full() {
    let disk = SimDisk::default();
    let (mut log, _) = Log::open(&disk, Path::new(LOG), SIZES).unwrap();
    disk.set_free(0);
    let (mut index, mut took) = (0, 0);
    loop {
        index += 1;
        log.entry(&Entry { data: Bytes::from_static(b"alarm"), ..entry(index) });
        if log.sync().is_err() {
            break;
        }
        took += usize::from(log.is_full());
    }
    assert!(took >= 8, "only {took} small entries fit after the disk was full");
    disk.restart(Cut::Landed);
    disk.set_free(1 << 20);
    let (mut log, recovered) = Log::open(&disk, Path::new(LOG), SIZES).unwrap();
    assert!(recovered.entries.len() >= took);
    log.entry(&entry(recovered.entries.len() as u64 + 1));
    log.sync().unwrap();
    assert!(!log.is_full());
}

#[test]
fn a_small_file_is_the_old_or_the_new_one() {
    let path = Path::new("/member/identity");
    let start = || {
        let disk = SimDisk::default();
        disk.create_dir(Path::new("/member")).unwrap();
        disk.replace(path, b"old").unwrap();
        disk
    };
    let disk = start();
    let before = disk.steps();
    disk.replace(path, b"new").unwrap();
    for step in before..disk.steps() {
        for cut in cuts(step) {
            let disk = start();
            disk.cut_after(step);
            disk.replace(path, b"new").unwrap_err();
            disk.restart(cut);
            let found = disk.read(path).unwrap();
            assert!(found == b"old" || found == b"new", "{found:?} after step {step}");
        }
    }
}
