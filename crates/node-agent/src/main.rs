//! The `ironclad-node-agent` daemon.

fn main() -> std::process::ExitCode {
    daemon::start("node-agent", node_agent::run)
}
