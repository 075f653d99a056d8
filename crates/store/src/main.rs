//! Starts the store, makes and restores its backups, or replaces a member.

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.first().map(String::as_str) {
        Some("snapshot") => store::tools::run(&words[1..]),
        Some("member") => store::replace::run(&words[1..]),
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
