//! `ironclad`: the whole cluster in one process, and a client for it.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod address;
mod cluster;
mod down;
mod kubeconfig;
mod layout;
mod status;
mod up;

/// Kubernetes in one small process.
#[derive(Debug, Parser)]
#[command(name = "ironclad", version, about, max_term_width = 100)]
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
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Up(args) => up::main(args),
        Command::Down(args) => down::main(&args),
        Command::Status(args) => status::main(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ironclad: {error:#}");
            ExitCode::FAILURE
        }
    }
}
