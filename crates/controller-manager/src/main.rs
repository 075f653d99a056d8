//! The `ironclad-controller-manager` daemon.

fn main() -> std::process::ExitCode {
    daemon::start("controller-manager", controller_manager::run)
}
