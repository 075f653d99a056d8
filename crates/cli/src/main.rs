//! `ironclad`: the whole cluster in one process, and a client for it.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

/// Prints a line, as [`tell`] does.
macro_rules! say {
    ($($arg:tt)*) => { $crate::tell(&format!("{}\n", format_args!($($arg)*))) };
}
use say;

mod address;
mod board;
mod cluster;
mod describe;
mod down;
mod exec;
mod get;
mod image;
mod kubeconfig;
mod layout;
mod logs;
mod manifests;
mod rollout;
mod simulate;
mod status;
mod table;
mod target;
mod up;
mod why;

/// Kubernetes in one small process, and a client for it.
#[derive(Debug, Parser)]
#[command(name = "ironclad", version, about, max_term_width = 100)]
#[command(after_help = "A first walk:
  ironclad up --detach
  ironclad apply -f docs/examples/hello.yaml
  ironclad rollout status -n hello deploy/hello
  ironclad get pods -A -o wide
  ironclad logs -n hello deploy/hello -f
  ironclad down --purge

kubectl works as well: export KUBECONFIG=/var/lib/ironclad/admin.kubeconfig")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a cluster on this machine
    Up(up::Args),
    /// Stop it, and with --purge remove every trace
    Down(down::Args),
    /// Show how it is
    Status(status::Args),
    /// Make the cluster have the objects of files
    Apply(manifests::Apply),
    /// Show objects
    Get(get::Args),
    /// Show objects in detail, with their events
    Describe(describe::Args),
    /// Delete objects, of files or by name
    Delete(manifests::Delete),
    /// Tell why a pod is on its node, or on none, and what would help
    Why(why::Args),
    /// Show what containers have written
    Logs(logs::Args),
    /// Run a command in a container
    Exec(exec::Exec),
    /// Connect to what a container reads and writes
    Attach(exec::Attach),
    /// Change how many pods a workload has
    Scale(rollout::Scale),
    /// See a new template come, take it back, or start all pods again
    #[command(subcommand)]
    Rollout(rollout::Rollout),
    /// Wait until objects are as they should be
    Wait(rollout::Wait),
    /// Bring images into the nodes' runtimes
    #[command(subcommand)]
    Image(image::Image),
    /// Try the cluster out with nodes that only seem to be there
    #[command(subcommand)]
    Simulate(simulate::Simulate),
}

/// A duration as Go and kubectl write it: `90s`, `1m30s`, `2h`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let bad = || format!("{text:?} is no duration; write 90s, 1m30s or 2h");
    let (mut total, mut number) = (Duration::ZERO, String::new());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_ascii_digit() || c == '.' {
            number.push(c);
            continue;
        }
        let unit = match (c, chars.peek()) {
            ('m', Some('s')) => {
                chars.next();
                0.001
            }
            ('s', _) => 1.0,
            ('m', _) => 60.0,
            ('h', _) => 3600.0,
            _ => return Err(bad()),
        };
        let count: f64 = number.parse().map_err(|_| bad())?;
        total += Duration::try_from_secs_f64(count * unit).map_err(|_| bad())?;
        number.clear();
    }
    if number.is_empty() && !text.is_empty() { Ok(total) } else { Err(bad()) }
}

/// Prints text. Whoever reads it may have seen enough: then nobody is left to work for.
fn tell(text: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        let enough = error.kind() == std::io::ErrorKind::BrokenPipe;
        std::process::exit(i32::from(!enough));
    }
}

/// Says what went wrong, in kubectl's words where the server said it.
fn complain(error: &anyhow::Error) {
    let Some(client::Error::Api { reason, message, .. }) = error.downcast_ref() else {
        eprintln!("error: {error:#}");
        return;
    };
    // What the error was wrapped in says what we were doing.
    let doing: Vec<String> =
        error.chain().map(ToString::to_string).filter(|text| text != message).collect();
    let doing: String = doing.iter().map(|text| format!("{text}: ")).collect();
    match (reason.as_str(), message.split_once(" is invalid: ")) {
        ("Invalid", Some((what, causes))) => {
            // `Deployment.apps "web"` as people write it.
            let (kind, name) = what.split_once(' ').unwrap_or((what, ""));
            let kind = kind.split('.').next().unwrap_or(kind);
            eprintln!("{doing}The {kind} {name} is invalid: {causes}");
        }
        ("", _) => eprintln!("Error from server: {doing}{message}"),
        (reason, _) => eprintln!("Error from server ({reason}): {doing}{message}"),
    }
}

fn main() -> ExitCode {
    let done = |result: anyhow::Result<()>| result.map(|()| ExitCode::SUCCESS);
    let result = match Cli::parse().command {
        Command::Up(args) => done(up::main(args)),
        Command::Down(args) => done(down::main(&args)),
        Command::Status(args) => done(status::main(&args)),
        Command::Apply(args) => done(manifests::apply(&args)),
        Command::Get(args) => done(get::main(&args)),
        Command::Describe(args) => done(describe::main(&args)),
        Command::Why(args) => done(why::main(&args)),
        Command::Delete(args) => done(manifests::delete(&args)),
        Command::Logs(args) => done(logs::main(&args)),
        Command::Exec(args) => exec::exec(&args),
        Command::Attach(args) => exec::attach(&args),
        Command::Scale(args) => done(rollout::scale(&args)),
        Command::Rollout(command) => done(rollout::rollout(&command)),
        Command::Wait(args) => done(rollout::wait(&args)),
        Command::Image(command) => done(image::main(&command)),
        Command::Simulate(command) => done(simulate::main(&command)),
    };
    result.unwrap_or_else(|error| {
        complain(&error);
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, ms) in [("90s", 90_000), ("1m30s", 90_000), ("1.5h", 5_400_000), ("5", 5000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["", "s", "5x", "1m3", "-5s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
