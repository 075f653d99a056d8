//! Feeds the fuzz targets from their seeds, changed at random, in the normal test run.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

#[path = "../../fuzz/src/lib.rs"]
#[allow(unreachable_pub)] // a crate of its own elsewhere
mod targets;

/// How many inputs each target gets; `cargo fuzz` gives it as many as there is time for.
const CASES: u32 = 1500;
const CHANGES_MAX: usize = 6;
/// How much of each target's corpus is kept.
const PACKED_BYTES_MAX: usize = 64 << 10;
const NOISE_BYTES_MAX: usize = 64;

/// One change of an input.
#[derive(Debug, Clone)]
enum Change {
    Set(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Cut(prop::sample::Index, prop::sample::Index),
    Repeat(prop::sample::Index, prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>;
    // Bytes that mean something to one format or another are likelier than the others.
    let byte = || {
        prop_oneof![any::<u8>(), prop::sample::select(b"{}[]()\"\\,:/.=!-&*|%~\0\n 0e9".to_vec())]
    };
    prop_oneof![
        (at(), byte()).prop_map(|(at, byte)| Change::Set(at, byte)),
        (at(), prop::collection::vec(byte(), 1..8))
            .prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (at(), at()).prop_map(|(from, to)| Change::Cut(from, to)),
        (at(), at()).prop_map(|(from, to)| Change::Repeat(from, to)),
    ]
}

fn changed(seed: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for change in changes {
        let length = bytes.len() + 1;
        let range = |a: &prop::sample::Index, b: &prop::sample::Index| {
            let (a, b) = (a.index(length), b.index(length));
            a.min(b)..a.max(b)
        };
        match change {
            Change::Set(at, byte) => {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = *byte;
                }
            }
            Change::Insert(at, more) => {
                drop(bytes.splice(at.index(length)..at.index(length), more.clone()))
            }
            Change::Cut(from, to) => drop(bytes.drain(range(from, to))),
            Change::Repeat(from, to) => {
                let part = bytes[range(from, to)].to_vec();
                bytes.extend(part);
            }
        }
    }
    bytes
}

/// What `cargo fuzz` has found worth keeping for a target: inputs, each after its length in four bytes.
fn packed(name: &str) -> std::path::PathBuf {
    integration_tests::apart::project(&format!("fuzz/corpus/{name}.packed"))
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let packed = std::fs::read(packed(name)).unwrap_or_default();
    let (mut rest, mut inputs) = (packed.as_slice(), Vec::new());
    while let Some((length, more)) = rest.split_first_chunk::<4>() {
        let (input, more) = more.split_at(u32::from_be_bytes(*length) as usize);
        inputs.push(input.to_vec());
        rest = more;
    }
    inputs
}

/// Writes seeds and kept inputs of each target below a directory, where `cargo fuzz` begins.
fn unpack(dir: &std::path::Path) -> std::io::Result<()> {
    for (name, _, seeds) in targets::TARGETS {
        std::fs::create_dir_all(dir.join(name))?;
        let inputs = seeds.iter().map(|seed| seed.to_vec()).chain(corpus(name));
        for (number, input) in inputs.enumerate() {
            std::fs::write(dir.join(name).join(format!("kept-{number:04}")), input)?;
        }
    }
    Ok(())
}

/// Keeps the shortest inputs that lie below a directory, as many as there is room for.
fn pack(dir: &std::path::Path) -> std::io::Result<()> {
    for (name, _, _) in targets::TARGETS {
        let Ok(files) = std::fs::read_dir(dir.join(name)) else { continue };
        let inputs: Result<Vec<_>, _> = files.map(|file| std::fs::read(file?.path())).collect();
        let mut inputs = inputs?;
        inputs.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
        let mut bytes = Vec::new();
        for input in inputs {
            if bytes.len() + input.len() > PACKED_BYTES_MAX {
                break;
            }
            bytes.extend(u32::try_from(input.len()).unwrap_or(0).to_be_bytes());
            bytes.extend(input);
        }
        let file = packed(name);
        file.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::write(file, bytes)?;
    }
    Ok(())
}

fn feed(name: &str) {
    let found = targets::TARGETS.iter().find(|(known, _, _)| *known == name);
    let (_, target, seeds) = found.expect("a target of this name");
    for seed in seeds.iter().map(|seed| seed.to_vec()).chain(corpus(name)) {
        target(&seed);
    }
    let input = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..NOISE_BYTES_MAX),
        (prop::sample::select(*seeds), prop::collection::vec(change(), 1..CHANGES_MAX))
            .prop_map(|(seed, changes)| changed(seed, &changes)),
    ];
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    // The same inputs in every run: new ones are for `cargo fuzz`, which has the time.
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let run = TestRunner::new_with_rng(config, rng).run(&input, |bytes| {
        target(&bytes);
        Ok(())
    });
    if let Err(error) = run {
        panic!("{error}");
    }
}

macro_rules! feeds {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            feed(stringify!($name));
        }
    )*

    /// With `FUZZ_UNPACK=DIR` and `FUZZ_PACK=DIR` also moves the corpus out and in, for `just fuzz`.
    #[test]
    fn every_target_is_fed_and_built() {
        let fed = [$(stringify!($name)),*];
        let known: Vec<&str> = targets::TARGETS.iter().map(|(name, _, _)| *name).collect();
        assert_eq!(fed.to_vec(), known);
        for name in known {
            let path = format!("fuzz/fuzz_targets/{name}.rs");
            assert!(integration_tests::apart::project(&path).exists(), "{path}");
        }
        let dir = |variable: &str| std::env::var_os(variable).map(std::path::PathBuf::from);
        if let Some(dir) = dir("FUZZ_UNPACK") {
            unpack(&dir).expect("the corpus is written");
        }
        if let Some(dir) = dir("FUZZ_PACK") {
            pack(&dir).expect("the corpus is kept");
        }
    }};
}

feeds! {
    request websocket spdy apply table definition label_selector field_selector quantity instant json_path json_text
    yaml_text object protobuf json_patch
    merge_patch strategic_patch etcd_request auth_request store_op peer_message store_record dns_name
}
