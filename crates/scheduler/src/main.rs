//! The `ironclad-scheduler` daemon.

fn main() -> std::process::ExitCode {
    daemon::start("scheduler", scheduler::run)
}
