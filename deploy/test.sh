#!/usr/bin/env bash
# Installs what tests need, and runs all of them: format, lints, unit and integration tests.
# --no-install for a machine that has all it needs.
set -euo pipefail
cd "$(dirname "$0")/.."
source deploy/packages.sh

if [ "${1:-}" != "--no-install" ]; then
  install_missing "${BUILD_PACKAGES[@]}" "${NODE_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
  fetch_vm_kernel || echo "no kernel for a virtual machine: its tests will be listed as ignored" >&2
  fetch_helm || echo "no Helm: its tests will be listed as ignored" >&2
  command -v cargo-nextest >/dev/null || cargo install --locked cargo-nextest
fi
# A checkout made anew each time still builds only what changed, where a cache directory can be had.
if [ -n "${CI:-}" ] && [ -z "${CARGO_TARGET_DIR:-}" ]; then
  cache="${XDG_CACHE_HOME:-$HOME/.cache}/ironclad-target"
  mkdir -p "$cache" && export CARGO_TARGET_DIR="$cache"
  # Tests find what is built by this mark, which cargo puts only into directories that it makes itself.
  [ -e "$cache/CACHEDIR.TAG" ] || echo "Signature: 8a477f597d28d172789f06886806bc55" >"$cache/CACHEDIR.TAG"
  # A new checkout's path makes all of an incremental build's state anew: it would grow by gigabytes a run.
  export CARGO_INCREMENTAL=0
fi
# The same random inputs in every run, so that a red run is about the change; PROPTEST_RNG_SEED=N looks elsewhere.
export PROPTEST_RNG_SEED="${PROPTEST_RNG_SEED:-1}"

step() { printf '\n== %s\n' "$*"; }
step format; cargo fmt --all --check
step lints; cargo clippy --workspace --all-targets --locked -- -D warnings
step "build the images' programs"
RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked \
  --target "$(uname -m)-unknown-linux-gnu" -p ironclad-pause -p ironclad-demo
step "build the daemons"; cargo build --workspace --bins --locked
# Where everything was just installed, a test of nodes that is listed as ignored is a failure, not a success.
if [ -n "${CI:-}" ] && [ "$(id -u)" -eq 0 ]; then
  step "what cannot be tested here"
  ignored=$(cargo nextest list --workspace --locked --run-ignored only -E 'test(root_) - binary(kubectl)' | tee /dev/stderr)
  [ -z "$ignored" ] || { echo "the machine lacks something that tests of nodes need" >&2; exit 1; }
fi
step tests; cargo nextest run --workspace --locked --no-fail-fast
