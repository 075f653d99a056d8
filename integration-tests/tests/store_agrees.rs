//! A store answers as a real etcd does: thousands of random requests and a script of etcdctl, asked of both.
#![allow(clippy::disallowed_methods)] // a test as a whole

use std::path::Path;
use std::process::ExitCode;

use anyhow::ensure;
use integration_tests::etcd::{self, answers, store};
use integration_tests::members::soon;
use integration_tests::{machine, program};
use libtest_mimic::{Arguments, Failed, Trial};

const STEPS: &str = "2000";
const SEEDS: [&str; 2] = ["1", "2"];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials: Vec<Trial> = SEEDS
        .iter()
        .map(|seed| {
            trial(format!("store_agrees_with_an_etcd_seed_{seed}"), || {
                machine::block_on(requests(seed))
            })
        })
        .collect();
    trials.push(trial("store_agrees_with_an_etcd_for_etcdctl".to_owned(), || {
        machine::block_on(script())
    }));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(name: String, test: impl FnOnce() -> anyhow::Result<()> + Send + 'static) -> Trial {
    Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:#}"))))
        .with_ignored_flag(!etcd::is_here())
}

/// Runs a program with the addresses of an empty etcd and an empty store, and returns what it says.
async fn compare(program: &str, before: &[&str], behind: &[&str]) -> anyhow::Result<String> {
    let dir = tempfile::tempdir()?;
    let (_etcd, reference) = etcd::etcd(dir.path()).await?;
    let data = format!("data_dir={}", dir.path().join("ours").display());
    let (_store, ours) = store(dir.path(), &data)?;
    soon("the store answers", async || answers(&ours).await).await?;
    let words = [before, &[&reference, &ours], behind].concat();
    machine::output(program, &words)
}

async fn requests(seed: &str) -> anyhow::Result<()> {
    let agree = program("examples/agree")?.display().to_string();
    // It fails if any answer differs.
    let said = compare(&agree, &[], &[seed, STEPS]).await?;
    ensure!(said.contains(&format!("seed {seed}: 0 differences")), "{said}");
    Ok(())
}

async fn script() -> anyhow::Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/store/examples/etcdctl.sh");
    let said = compare("sh", &[&script.display().to_string()], &[]).await?;
    ensure!(said.contains("same: ") && !said.contains("DIFFERS"), "{said}");
    Ok(())
}
