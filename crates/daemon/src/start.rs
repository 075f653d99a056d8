//! From the command line to the exit code, the same for every daemon.

use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{Action, Args, Config, Whole, load, parse_args};
use crate::context::Context;
use crate::telemetry;

const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs daemon `name` until a signal or failure; the whole of its `main`.
pub fn start<C, F, R>(name: &'static str, run: F) -> ExitCode
where
    C: Config,
    F: FnOnce(C, Context) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    let parsed = parse_args(std::env::args().skip(1));
    match parsed.map_err(anyhow::Error::from).and_then(|args| act(name, &args, run)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ironclad-{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act<C, F, R>(name: &'static str, args: &Args, run: F) -> anyhow::Result<()>
where
    C: Config,
    F: FnOnce(C, Context) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    match args.action {
        Action::Version => println!("ironclad-{name} {}", env!("CARGO_PKG_VERSION")),
        Action::Help => print_help(name),
        Action::Check => drop(load::<C>(name, args)?),
        Action::Print => print!("{}", toml::to_string_pretty(&load::<C>(name, args)?)?),
        Action::Run => {
            let config = load::<C>(name, args)?;
            telemetry::start(&config.log)?;
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            return runtime.block_on(supervise(config, run));
        }
    }
    Ok(())
}

async fn supervise<C, F, R>(config: Whole<C>, run: F) -> anyhow::Result<()>
where
    C: Config,
    F: FnOnce(C, Context) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    let ctx = Context::new(CancellationToken::new());
    if !config.health.listen.is_empty() {
        crate::health::start(&config.health.listen, &ctx).await?;
    }
    let stop = ctx.shutdown.clone();
    ctx.tasks.job(async move {
        tokio::select! {
            () = signalled() => stop.cancel(),
            () = stop.cancelled() => {}
        }
    });
    let ended = run(config.daemon, ctx.clone()).await;
    if ended.is_ok() {
        ctx.shutdown.cancelled().await;
    }
    ctx.shutdown.cancel();
    let joined = tokio::time::timeout(JOIN_TIMEOUT, ctx.tasks.join()).await;
    ended?;
    joined.unwrap_or(Ok(()))
}

/// Returns when the process is asked to end: SIGTERM or SIGINT.
pub async fn signalled() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

fn print_help(name: &str) {
    let env = name.to_uppercase().replace('-', "_");
    println!(
        "ironclad-{name}, a daemon of Ironclad\n\n\
         Usage: ironclad-{name} [--config FILE] [--set KEY=VALUE]...\n\n\
         \x20 --config FILE      settings as TOML\n\
         \x20 --set KEY=VALUE    one setting, such as log.filter=debug; may be repeated\n\
         \x20 --print-config     print the settings that result, as TOML, and stop\n\
         \x20 --check            check the settings and stop\n\
         \x20 --version, --help\n\n\
         A setting is taken from, in rising order: its default, the file, the environment\n\
         (IRONCLAD_{env}__KEY, with __ between levels), --set. Unknown keys are errors."
    );
}
