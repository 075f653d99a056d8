#!/bin/sh
# Measures ironclad-store beside the machine's etcd: same client, same disk, taking turns.
# usage: bench.sh DIRECTORY_OF_RELEASE_BINARIES [SECONDS_EACH]
# Prints one table row per server and load. The data lies below TMPDIR: point that at a real disk.
set -eu
bin=$1 seconds=${2:-5}
data=$(mktemp -d)
trap 'kill $etcd $ours 2>/dev/null; rm -rf "$data"' EXIT
etcd= ours=

etcd --data-dir "$data/etcd" --listen-client-urls http://127.0.0.1:24790 \
    --advertise-client-urls http://127.0.0.1:24790 --listen-peer-urls http://127.0.0.1:24791 \
    --initial-advertise-peer-urls http://127.0.0.1:24791 \
    --initial-cluster default=http://127.0.0.1:24791 --quota-backend-bytes 8589934592 \
    >"$data/etcd.log" 2>&1 &
etcd=$!
"$bin/ironclad-store" --set data_dir="$data/ours" --set client.listen=127.0.0.1:24890 \
    --set client.tls=none >"$data/ours.log" 2>&1 &
ours=$!
sleep 3

row() {
    printf '| etcd     '
    "$bin/examples/load" http://127.0.0.1:24790 "$1" "$2" "$3" "$seconds" "$etcd"
    printf '| ironclad '
    "$bin/examples/load" http://127.0.0.1:24890 "$1" "$2" "$3" "$seconds" "$ours"
}

for bytes in 256 3072; do
    for clients in 1 16 64 256; do
        row put "$clients" "$bytes"
    done
done
for operation in txn get get-any; do
    row "$operation" 64 256
done
row watch 1000 256
