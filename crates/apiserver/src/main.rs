//! The `ironclad-apiserver` daemon.

fn main() -> std::process::ExitCode {
    daemon::start("apiserver", apiserver::run)
}
