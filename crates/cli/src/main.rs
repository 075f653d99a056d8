//! `ironclad`: the whole cluster in one process, and a client for it.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod address;
mod cluster;
mod down;
mod kubeconfig;
mod layout;
mod objects;
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
    /// Make the cluster have the objects of a file
    Apply(objects::Apply),
    /// Show objects
    Get(objects::Get),
    /// Delete the objects of a file
    Delete(objects::Apply),
    /// Wait until a Deployment is rolled out
    Wait(objects::Wait),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Up(args) => up::main(args),
        Command::Down(args) => down::main(&args),
        Command::Status(args) => status::main(&args),
        Command::Apply(args) => objects::apply(&args),
        Command::Get(args) => objects::get(&args),
        Command::Delete(args) => objects::delete(&args),
        Command::Wait(args) => objects::wait(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ironclad: {error:#}");
            ExitCode::FAILURE
        }
    }
}
