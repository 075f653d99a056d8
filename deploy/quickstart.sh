#!/usr/bin/env bash
# From a checkout to a running web site: installs what is missing, builds, starts a one-node cluster, applies
# docs/examples/hello.yaml and fetches the page through both Services. Harmless to run again.
#   --no-install     the machine has all it needs
#   --data-dir DIR   where the cluster lives (default /var/lib/ironclad)
set -euo pipefail
cd "$(dirname "$0")/.."
source deploy/packages.sh

install=1 data_dir=/var/lib/ironclad
while [ $# -gt 0 ]; do
  case "$1" in
    --no-install) install=0 ;;
    --data-dir) data_dir="$2"; shift ;;
    *) echo "usage: deploy/quickstart.sh [--no-install] [--data-dir DIR]" >&2; exit 2 ;;
  esac
  shift
done
[ "$(id -u)" -eq 0 ] || { echo "quickstart: a node needs root (containers, packet rules): sudo $0" >&2; exit 1; }

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ "$install" -eq 0 ] || { say "System packages"; install_missing "${BUILD_PACKAGES[@]}" "${NODE_PACKAGES[@]}" curl; echo ok; }

target="${CARGO_TARGET_DIR:-target}"
triple="$(uname -m)-unknown-linux-gnu"
say "Building (the first time takes some minutes)"
cargo build --release --locked --bin ironclad
RUSTFLAGS="-C target-feature=+crt-static" \
  cargo build --release --locked --target "$triple" -p ironclad-pause -p ironclad-demo
mkdir -p "$target/release/images"
cp "$target/$triple/release/ironclad-pause" "$target/$triple/release/ironclad-demo" "$target/release/images/"
ironclad="$target/release/ironclad"

say "Starting the cluster"
"$ironclad" up --data-dir "$data_dir" --detach

say "Applying docs/examples/hello.yaml"
"$ironclad" apply --data-dir "$data_dir" -f docs/examples/hello.yaml
"$ironclad" rollout status --data-dir "$data_dir" -n hello deployment/hello

say "Pods"
"$ironclad" get --data-dir "$data_dir" -n hello pods
cluster_ip=$("$ironclad" get --data-dir "$data_dir" -n hello service hello -o "jsonpath={.spec.clusterIP}")
say "The page through the Service's cluster IP, http://$cluster_ip"
curl -sf --max-time 5 "http://$cluster_ip"
node_ip=$("$ironclad" get --data-dir "$data_dir" nodes -o "jsonpath={.items[0].status.addresses[?(@.type==\"InternalIP\")].address}")
say "The page through the NodePort, http://$node_ip:30080"
curl -sf --max-time 5 "http://$node_ip:30080"

say "Next"
cat <<MSG
  export KUBECONFIG=$data_dir/admin.kubeconfig && kubectl get pods -A
  kubectl -n hello scale deployment hello --replicas=5
  $ironclad down --data-dir $data_dir --purge
MSG
