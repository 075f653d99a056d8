# Every command a developer or CI runs.

# list them
default:
    @just --list

# what CI runs: format, lints, all tests
ci:
    deploy/test.sh

# the same without installing packages
test:
    deploy/test.sh --no-install

# format everything
fmt:
    cargo fmt --all

# lints as errors
lint:
    cargo clippy --workspace --all-targets -- -D warnings

# licences, sources and duplicate versions of dependencies (cargo install cargo-deny)
deny:
    cargo deny check bans licenses sources

# ten thousand simulated clusters, other ones every day; a failing seed prints itself, `just sim n` replays it
sim-nightly:
    FIRST=$(( $(date +%s) / 86400 * 10000 )) SEEDS=10000 cargo test --release -p ironclad-store --test simulation seeds_keep

# one simulated cluster
sim seed:
    SEED={{seed}} cargo test -p ironclad-store --test simulation seeds_keep -- --nocapture

# a cluster from this checkout, below ./target/cluster
up:
    cargo run --bin ironclad -- up --data-dir target/cluster

# stop it and remove every trace
down:
    cargo run --bin ironclad -- down --data-dir target/cluster --purge

# write the reference pages and the cases that tests compare with the code
bless:
    BLESS=1 cargo test -p integration-tests --test docs
    BLESS=1 cargo test -p ironclad-store --lib golden

# how quick and how small a one-node cluster is (needs root); the figures of docs/benchmarks.md
bench-cluster:
    cargo build --release --bin ironclad
    RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --target "$(uname -m)-unknown-linux-gnu" -p ironclad-pause -p ironclad-demo
    cargo bench -p integration-tests --bench cluster

# three members killed, stopped, cut off and filled up for so long, while clients look (needs root); see integration-tests/tests/store_chaos.rs
chaos seed="1" seconds="0":
    cargo build -p ironclad-store -p ironclad-auth --bins
    SEED={{seed}} SECONDS={{seconds}} cargo test -p integration-tests --test store_chaos

# one fuzz target for ten minutes, from the corpus that is kept; what it finds worth keeping goes there
fuzz target seconds="600":
    FUZZ_UNPACK=$PWD/target/corpus cargo test -p integration-tests --test fuzz every_target
    cd fuzz && RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=../target/fuzz cargo fuzz run -s none {{target}} ../target/corpus/{{target}} -- -max_total_time={{seconds}}
    mkdir -p target/corpus-small/{{target}}
    cd fuzz && RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=../target/fuzz cargo fuzz run -s none {{target}} -- -merge=1 ../target/corpus-small/{{target}} ../target/corpus/{{target}}
    FUZZ_PACK=$PWD/target/corpus-small cargo test -p integration-tests --test fuzz every_target

# the store beside Debian's etcd: one and three members, memory, start and disk (half an hour); the figures of docs/benchmarks.md
bench-store seconds="5":
    cargo build --release -p ironclad-store --bins --examples
    crates/store/examples/bench.sh target/release {{seconds}}

# the API server on the store, over TLS and HTTP/2, durable (five minutes); the figures of docs/benchmarks.md
bench-apiserver seconds="5" objects="10000":
    cargo build --release -p ironclad-apiserver -p ironclad-store -p ironclad-auth --bins --examples
    crates/apiserver/examples/bench.sh target/release {{seconds}} {{objects}}

# the scheduler's decisions alone: latency among many nodes and pods (half a minute); the figures of docs/benchmarks.md
bench-decisions nodes="5000" pods="50000":
    cargo run --release -p ironclad-scheduler --example decide -- {{nodes}} {{pods}}

# the scheduler with simulated nodes (needs root; a minute); the figures of docs/benchmarks.md
bench-scheduler:
    cargo build --release --bins
    cargo bench -p integration-tests --bench workloads -- scheduler

# the controllers with simulated nodes (needs root; two minutes); the figures of docs/benchmarks.md
bench-controllers:
    cargo build --release --bins
    cargo bench -p integration-tests --bench workloads -- controllers

# very many simulated nodes, and pods at a fixed rate (needs root; minutes, and gigabytes)
bench-fleet nodes="130000" rate="1000" seconds="60":
    cargo build --release --bins
    cargo bench -p integration-tests --bench workloads -- fleet {{nodes}} {{rate}} {{seconds}}
