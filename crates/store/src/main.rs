//! Starts the store, or does one of its other commands: backup and restore, import, the replacement of a member.

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.split_first() {
        Some((verb, rest)) if verb == "snapshot" => store::tools::run(rest),
        Some((verb, rest)) if verb == "import" => store::import::run(rest),
        Some((verb, rest)) if verb == "member" => store::replace::run(rest),
        _ => return daemon::start("store", store::run),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ironclad-store: {error:#}");
            ExitCode::FAILURE
        }
    }
}
