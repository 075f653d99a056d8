//! The `ironclad-dns` daemon.

fn main() -> std::process::ExitCode {
    daemon::start("dns", dns::run)
}
