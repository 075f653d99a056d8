//! Starts the store, or makes and restores its backups.

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_none_or(|word| word != "snapshot") {
        return daemon::start("store", store::run);
    }
    match store::tools::run(&words[1..]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ironclad-store: {error:#}");
            ExitCode::FAILURE
        }
    }
}
