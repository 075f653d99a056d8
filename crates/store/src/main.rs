//! Starts the store.

fn main() -> std::process::ExitCode {
    daemon::start("store", store::run)
}
