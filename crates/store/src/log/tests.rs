//! The log under torn writes, lost tails and many writers.

use super::*;

fn open(dir: &Path) -> Result<(Log, Recovered), LogError> {
    Log::open(&SystemDisk, dir, Sizes::default())
}

fn entry(index: u64) -> Entry {
    let data = Bytes::from(vec![u8::try_from(index % 251).unwrap(); 100]);
    Entry { term: 1, index, kind: EntryKind::Operation, data }
}

fn written(dir: &Path, count: u64) -> PathBuf {
    let (mut log, _) = open(dir).unwrap();
    for index in 1..=count {
        log.entry(&entry(index));
        log.sync().unwrap();
    }
    log.path.clone()
}

fn indices(dir: &Path) -> Vec<u64> {
    let (_, recovered) = open(dir).unwrap();
    recovered.entries.iter().map(|e| e.index).collect()
}

#[test]
fn what_was_synced_is_there_again() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 5);
    let (mut log, recovered) = open(dir.path()).unwrap();
    assert_eq!(recovered.entries, (1..=5).map(entry).collect::<Vec<_>>());
    log.entry(&entry(6));
    log.vote(Vote { term: 3, vote: 1, commit: 6 });
    log.sync().unwrap();
    drop(log);
    let (_, recovered) = open(dir.path()).unwrap();
    assert_eq!(recovered.entries.len(), 6);
    assert_eq!(recovered.vote, Vote { term: 3, vote: 1, commit: 6 });
}

#[test]
fn a_torn_tail_is_cut_off_wherever_it_tears() {
    let whole = tempfile::tempdir().unwrap();
    let path = written(whole.path(), 5);
    let bytes = std::fs::read(&path).unwrap();
    let end = bytes.iter().rposition(|b| *b != 0).unwrap() + 1;
    let last = 16 + 16 + 24 + 4 * (16 + 24 + 104);
    for cut in (last..end).step_by(7) {
        let dir = tempfile::tempdir().unwrap();
        let mut torn = bytes.clone();
        torn[cut..].fill(0);
        std::fs::write(dir.path().join(path.file_name().unwrap()), &torn).unwrap();
        assert_eq!(indices(dir.path()), vec![1, 2, 3, 4], "torn at {cut}");
        assert_eq!(indices(dir.path()), vec![1, 2, 3, 4], "opened again, torn at {cut}");
    }
}

#[test]
fn a_corrupt_middle_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), 5);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[250] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, LogError::Corrupt { offset: 200, .. }), "{error}");
}

#[test]
fn later_entries_of_one_unsynced_batch_do_not_make_its_torn_start_corrupt() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    log.entry(&entry(1));
    log.sync().unwrap();
    let torn_at = log.offset;
    log.entry(&entry(2));
    log.entry(&entry(3));
    log.sync().unwrap();
    let mut bytes = std::fs::read(&log.path).unwrap();
    bytes[torn_at + 20] ^= 1;
    std::fs::write(&log.path, bytes).unwrap();
    assert_eq!(indices(dir.path()), vec![1]);
}

#[test]
fn another_format_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = written(dir.path(), 1);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[6] = 9;
    std::fs::write(&path, bytes).unwrap();
    let error = open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("log format 9"), "{error}");
}

#[test]
fn segments_roll_and_go_when_a_snapshot_covers_them() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    let data = Bytes::from(vec![7; 1 << 20]);
    for index in 1..=140 {
        log.entry(&Entry { data: data.clone(), ..entry(index) });
        if index % 10 == 0 {
            log.sync().unwrap();
        }
    }
    assert_eq!(log.old_segments(), 3);
    log.release(70).unwrap();
    assert_eq!(log.old_segments(), 2);
    drop(log);
    let (_, recovered) = open(dir.path()).unwrap();
    let kept: Vec<u64> = recovered.entries.iter().map(|e| e.index).collect();
    assert_eq!(kept, (41..=140).collect::<Vec<_>>());
}

#[test]
fn a_new_leaders_entries_replace_old_ones() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path()).unwrap();
    for index in 1..=4 {
        log.entry(&entry(index));
    }
    log.entry(&Entry { term: 2, ..entry(3) });
    log.sync().unwrap();
    drop(log);
    let (_, recovered) = open(dir.path()).unwrap();
    let terms: Vec<(u64, u64)> = recovered.entries.iter().map(|e| (e.index, e.term)).collect();
    assert_eq!(terms, vec![(1, 1), (2, 1), (3, 2)]);
}

#[test]
fn segments_that_nobody_needs_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let small = Sizes { segment_bytes: 1000, ahead_bytes: 4096 };
    let opened = |needed| Log::open_behind(&SystemDisk, dir.path(), small, needed);
    let (mut log, _) = opened(0).unwrap();
    // Later segments replace the last entries of earlier ones.
    for (index, term) in (1..=60).zip(1..).chain((50..=90).zip(100..)) {
        log.entry(&Entry { data: vec![7; 100].into(), term, ..entry(index) });
        log.sync().unwrap();
    }
    drop(log);
    let indices = |needed| -> Vec<u64> {
        opened(needed).unwrap().1.entries.iter().map(|e| e.index).collect()
    };
    for needed in 0..=95 {
        let found = indices(needed);
        assert_eq!(found, (found[0]..=90).collect::<Vec<_>>());
        assert!(found[0] <= needed.max(1), "{needed}: from {}", found[0]);
        assert!(found.len() < 101 - usize::try_from(needed).unwrap() || needed < 10, "{needed}");
    }
    let first = segments(&SystemDisk, dir.path()).unwrap().remove(0).1;
    let mut bytes = std::fs::read(&first).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&first, bytes).unwrap();
    assert!(matches!(opened(0).unwrap_err(), LogError::Corrupt { .. }));
    let (mut log, recovered) = opened(80).unwrap();
    assert_eq!(recovered.vote, log.vote);
    let before = log.old_segments();
    log.release(10).unwrap();
    assert!(log.old_segments() < before && !first.exists());
    assert_eq!(indices(0).last(), Some(&90));
}
