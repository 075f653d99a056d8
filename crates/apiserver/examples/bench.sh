#!/bin/sh
# Measures ironclad-apiserver on ironclad-store, each a process of its own, over TLS and HTTP/2 with real fdatasync.
# usage: bench.sh DIRECTORY_OF_RELEASE_BINARIES [SECONDS_EACH] [OBJECTS]
# Prints the rows of a table: operation; per second; p50; p99; processor time of API server + store per operation; their
# resident memory; what we want; what kube-apiserver 1.36.2 with etcd 3.6 needs (quoted).
# The data lies below TMPDIR: point that at a real disk.
set -eu
bin=$1 seconds=${2:-5} objects=${3:-10000} port=${PORT:-27443}
data=$(mktemp -d)
server='' store=''
trap 'stop; rm -rf "$data"' EXIT

start_store() {
    "$bin/ironclad-store" --set data_dir="$data/store" --set client.listen="127.0.0.1:$((port + 1))" \
        --set initial_cluster="bench=http://127.0.0.1:$((port + 2))" --set name=bench --set peer.listen="127.0.0.1:$((port + 2))" \
        >>"$data/store.log" 2>&1 &
    store=$!
}

start_server() {
    "$bin/ironclad-apiserver" --set listen="127.0.0.1:$port" --set store.endpoints="http://127.0.0.1:$((port + 1))" \
        --set tls.ca="$pki/ca.crt" --set tls.cert="$pki/apiserver.crt" --set tls.key="$pki/apiserver.key" \
        --set node.ca="$pki/ca.crt" --set node.cert="$pki/apiserver.crt" --set node.key="$pki/apiserver.key" \
        --set tokens.key="$pki/sa.key" >>"$data/apiserver.log" 2>&1 &
    server=$!
}

stop() {
    for pid in $server $store; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    server='' store=''
}

# row LABEL GOAL QUOTED OPERATION SETTING…
row() {
    label=$1 goal=$2 quoted=$3
    shift 3
    printf '| %s ' "$label"
    "$bin/examples/load_api" "127.0.0.1:$port" "$pki" "$@" pids="$server,$store" goal="$goal" quoted="$quoted"
}

# quiet OPERATION SETTING…: the same, for what only prepares.
quiet() {
    "$bin/examples/load_api" "127.0.0.1:$port" "$pki" "$@" >>"$data/quiet.log"
}

pki=$data/pki
"$bin/ironclad-pki" "$pki" >>"$data/pki.log"
start_store
start_server
quiet wait
# Once more on the data of the first: nothing has to be created.
kill $server && wait $server || true
start_server
row 'start, empty' '0.2 s' '2.9 s' wait
row 'one idle second' '' '' hold watchers=0 seconds="$seconds"

row 'create pod, 64 clients' '5000/s, p99 30 ms, 300 us' '478/s, p99 276 ms, 4000 us' create kind=pod seconds="$seconds"
row 'create ConfigMap, 64 clients' '8000/s, p99 25 ms, 200 us' '815/s, p99 170 ms, 2300 us' \
    create kind=configmap seconds="$seconds"
row 'create pod, 1 client' '1000/s' '121/s' create kind=pod clients=1 from=1000000 seconds="$seconds"
row 'create ConfigMap, 1 client' '1000/s' '336/s' create kind=configmap clients=1 from=1000000 seconds="$seconds"
quiet create kind=pod count=1000 from=2000000
row 'get pod, 16 clients' '25000/s, p99 2 ms, 40 us' '2644/s, p99 23 ms, 660 us' \
    get kind=pod clients=16 from=2000000 seconds="$seconds"
row 'patch a label of a pod, 16 clients' '4000/s, p99 15 ms, 400 us' '260/s, p99 159 ms, 7400 us' \
    patch kind=pod clients=16 from=2000000 seconds="$seconds"
quiet create kind=pod count=$((seconds * 1000)) from=3000000
row 'delete pod, 16 clients' '4000/s, 400 us' '320/s, 5900 us' \
    delete kind=pod clients=16 from=3000000 count=$((seconds * 1000))
row 'renew Lease, 256 clients' '13000/s' '' renew clients=256 connections=16 seconds="$seconds"
row '64 watchers, 64 writers of ConfigMaps' '200000 events/s, 3000 writes/s, 3 us' \
    '28000 events/s, 441 writes/s, 45 us' watch watchers=64 clients=64 from=4000000 seconds="$seconds"
row 'create to its event, 1 watcher' 'p50 0.3 ms' 'p50 1.1 ms' latency watchers=1 from=5000000 seconds="$seconds"
row 'create to its event, 64 watchers' 'p50 2 ms' 'p50 21 ms' latency watchers=64 from=6000000 seconds="$seconds"

stop
rm -rf "$data/store"
start_store
start_server
quiet wait
quiet create kind=pod count="$objects" clients=16
row "list $objects pods, 1 client" '6/s, 70000 us' '0.83/s, 1430000 us' list kind=pod clients=1 seconds="$seconds"
kill $server && wait $server || true
start_server
row "start, $objects pods" '0.5 s' '13 s' wait
row "$objects pods at rest, a second" '120 MiB' '903 MiB' hold watchers=0 seconds="$seconds"
row "16 clients list $objects pods" '' '' list kind=pod clients=16 connections=16 count=16
row "$objects pods after that" '200 MiB' '2.7 GiB' hold watchers=0 seconds="$seconds"
row '10000 idle watches, a second' '' '' hold watchers=10000 seconds="$seconds"
