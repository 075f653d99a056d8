//! The `ironclad-proxy` daemon.

fn main() -> std::process::ExitCode {
    daemon::start("proxy", proxy::run)
}
