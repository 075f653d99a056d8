//! `ironclad-store snapshot …`: backups of a running store, and a new store from one. And how a new store is made, whatever
//! its state came from.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use daemon::config::{Args, load, parse_args};
use daemon::{Disk as _, DiskFile as _, SystemDisk};
use wire::etcdserverpb::SnapshotRequest;
use wire::etcdserverpb::maintenance_client::MaintenanceClient;

use crate::applied::Applied;
use crate::backup;
use crate::config::Config;
use crate::etcd::VERSION;
use crate::join;
use crate::snapshot::{self, Mark};

/// How far revisions are raised unless told otherwise: beyond all that clients of the old store may have seen.
const RAISE: i64 = 1_000_000_000;
const HELP: &str = "\
usage: ironclad-store snapshot save FILE [SETTINGS]      the state of the running member that listens at client.listen
       ironclad-store snapshot verify FILE               whether a backup is whole, and what is in it
       ironclad-store snapshot status FILE [-o table|json]
                                                         its hash, revision, keys and bytes, as etcdutl prints them
       ironclad-store snapshot restore FILE [--raise N] [SETTINGS]
                                                         a new store in data_dir from a backup

SETTINGS are --config FILE and --set KEY=VALUE, as for the daemon. `etcdctl snapshot save` makes the same files.
A restored store is a new cluster. Its revisions are N (1000000000) higher than those of the backup and all history before
is compacted, so that no client takes old revisions for new ones. For several members, restore the same file on each, with
its own settings (name, initial_cluster, peer.listen), before any of them is started.";

/// Runs a `snapshot` subcommand.
///
/// # Errors
/// When the words make no sense, or what they ask for fails.
pub fn run(words: &[String]) -> anyhow::Result<()> {
    let (Some(verb), Some(file)) = (words.first(), words.get(1)) else { bail!("{HELP}") };
    let (file, rest) = (PathBuf::from(file), &words[2..]);
    match verb.as_str() {
        "save" => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(save(&file, &settings(rest)?))
        }
        "verify" => verify(&file),
        "status" => status(&file, rest),
        "restore" => match rest {
            [flag, by, rest @ ..] if flag == "--raise" => {
                let by = by.parse().with_context(|| format!("--raise {by}"))?;
                restore(&file, &settings(rest)?, by)
            }
            rest => restore(&file, &settings(rest)?, RAISE),
        },
        _ => bail!("{HELP}"),
    }
}

/// What `--config` and `--set` say.
pub(crate) fn settings(words: &[String]) -> anyhow::Result<Config> {
    let args: Args = parse_args(words.iter().cloned())?;
    Ok(load::<Config>("store", &args)?.daemon)
}

async fn save(file: &Path, config: &Config) -> anyhow::Result<()> {
    let scheme = if config.client.tls == "files" { "https" } else { "http" };
    let url = format!("{scheme}://{}", config.client.listen);
    let tls = if scheme == "https" { config.client.files.client()? } else { None };
    let channel = daemon::channel::connect(&url, tls.as_ref())?;
    let mut client = MaintenanceClient::new(channel);
    let answer = client.snapshot(SnapshotRequest {}).await;
    let mut parts = answer.map_err(|s| anyhow::anyhow!("{url}: {}", s.message()))?.into_inner();
    let unfinished = file.with_extension("unfinished");
    let mut out = File::create(&unfinished).with_context(|| unfinished.display().to_string())?;
    while let Some(part) = parts.message().await? {
        out.write_all(&part.blob)?;
    }
    out.sync_all()?;
    backup::read(&unfinished).context("what arrived is not whole")?;
    std::fs::rename(&unfinished, file)?;
    println!("saved {}", file.display());
    Ok(())
}

fn verify(file: &Path) -> anyhow::Result<()> {
    let applied = backup::read(file).with_context(|| file.display().to_string())?;
    println!("{} is whole", file.display());
    println!("  revision {}", applied.mvcc.revision());
    println!("  keys     {}", applied.mvcc.index().iter().count());
    println!("  bytes    {}", applied.mvcc.bytes());
    println!("  leases   {}", applied.mvcc.leases().iter().count());
    println!("  members  {}", applied.members.all.len());
    Ok(())
}

fn status(file: &Path, words: &[String]) -> anyhow::Result<()> {
    let json = match words {
        [] => false,
        [flag, form] if flag == "-o" || flag == "-w" => match form.as_str() {
            "json" => true,
            "table" => false,
            other => bail!("{other}: the forms are table and json"),
        },
        _ => bail!("{HELP}"),
    };
    let applied = backup::read(file).with_context(|| file.display().to_string())?;
    let mut crc = crc32fast::Hasher::new();
    let (mut input, mut part) = (File::open(file)?, vec![0; 1 << 16]);
    let mut size = 0_u64;
    loop {
        let read = input.read(&mut part)?;
        if read == 0 {
            break;
        }
        crc.update(&part[..read]);
        size += read as u64;
    }
    let (hash, revision) = (crc.finalize(), applied.mvcc.revision());
    let keys = applied.mvcc.index().len();
    if json {
        println!(
            "{{\"hash\":{hash},\"revision\":{revision},\"totalKey\":{keys},\"totalSize\":{size},\"version\":\"{VERSION}\"}}"
        );
    } else {
        println!(
            "{:>8}  {:>12}  {:>10}  {:>12}  VERSION",
            "HASH", "REVISION", "TOTAL KEYS", "BYTES"
        );
        println!("{hash:08x}  {revision:>12}  {keys:>10}  {size:>12}  {VERSION}");
    }
    Ok(())
}

fn restore(file: &Path, config: &Config, raise: i64) -> anyhow::Result<()> {
    let dir = Path::new(&config.data_dir);
    let old = backup::read(file).with_context(|| file.display().to_string())?;
    prepare(dir)?;
    let revision = make(config, old.mark, old, raise)?;
    println!("restored {} at revision {revision}", dir.display());
    Ok(())
}

/// Takes an empty directory, or one in which another attempt did not end. Until [`make`] is done, no member starts in it.
pub(crate) fn prepare(dir: &Path) -> anyhow::Result<()> {
    let incomplete = dir.join(join::INCOMPLETE);
    let found = SystemDisk.list(dir)?;
    ensure!(
        found.is_empty() || found.contains(&incomplete),
        "{} is not empty: a new store needs a directory of its own",
        dir.display()
    );
    SystemDisk.create_dir(dir).with_context(|| format!("create {}", dir.display()))?;
    SystemDisk.create(&incomplete)?.sync()?;
    SystemDisk.sync_dir(dir)?;
    for path in found.into_iter().filter(|path| *path != incomplete) {
        let path = path.as_path();
        if path.is_dir() { std::fs::remove_dir_all(path)? } else { SystemDisk.remove(path)? }
    }
    Ok(())
}

/// Makes a new store in a directory that was prepared, and returns its revision. Its ids are derived from `from`.
pub(crate) fn make(config: &Config, from: Mark, state: Applied, raise: i64) -> anyhow::Result<i64> {
    let dir = Path::new(&config.data_dir);
    let members = join::restored(config, from, state.mvcc.revision())?;
    let mut new = Applied { members, mark: Mark { index: 1, term: 1 }, ..state };
    new.mvcc.raise(raise);
    snapshot::save(&SystemDisk, &dir.join("snapshots"), &new, &())?;
    SystemDisk.remove(&dir.join(join::INCOMPLETE))?;
    SystemDisk.sync_dir(dir)?;
    Ok(new.mvcc.revision())
}
