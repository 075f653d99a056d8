#!/bin/sh
# Measures ironclad-store beside the machine's etcd: same client, same disk, taking turns, one and three members.
# usage: bench.sh DIRECTORY_OF_RELEASE_BINARIES [SECONDS_EACH]
# Prints table rows, one per server and load. The data lies below TMPDIR: point that at a real disk.
set -eu
bin=$1 seconds=${2:-5}
data=$(mktemp -d)
pids=
trap 'stop; rm -rf "$data"' EXIT

# start SERVER MEMBERS: begins or goes on with a cluster of its own; sets urls and pids.
start() {
    server=$1 members=$2 pids= urls= cluster=
    case $server in etcd) port=24700 ;; *) port=24800 ;; esac
    for i in $(seq "$members"); do
        cluster=$cluster${cluster:+,}m$i=http://127.0.0.1:$((port + 10 + i))
        urls=$urls${urls:+,}http://127.0.0.1:$((port + i))
    done
    for i in $(seq "$members"); do
        client=127.0.0.1:$((port + i)) peer=127.0.0.1:$((port + 10 + i))
        dir=$data/$server-$members/m$i
        mkdir -p "$dir"
        if [ "$server" = etcd ]; then
            etcd --name "m$i" --data-dir "$dir/data" --initial-cluster "$cluster" \
                --listen-client-urls "http://$client" --advertise-client-urls "http://$client" \
                --listen-peer-urls "http://$peer" --initial-advertise-peer-urls "http://$peer" \
                --quota-backend-bytes 8589934592 >>"$dir/log" 2>&1 &
        else
            "$bin/ironclad-store" --set name="m$i" --set data_dir="$dir/data" \
                --set initial_cluster="$cluster" --set peer.listen="$peer" \
                --set client.listen="$client" >>"$dir/log" 2>&1 &
        fi
        pids=$pids${pids:+,}$!
    done
}

stop() {
    for pid in $(echo "$pids" | tr , ' '); do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    pids=
}

row() {
    printf '| %-8s | %s ' "$server" "$members"
    "$bin/examples/load" "$urls" "$@" pids="$pids"
}

# both MEMBERS OPERATION…: the same against each, on a cluster that is there before and after.
both() {
    members=$1
    shift
    for server in etcd ironclad; do
        start "$server" "$members"
        "$bin/examples/load" "$urls" wait >"$data/wait"
        row "$@"
        stop
    done
}

for members in 1 3; do
    for bytes in 256 3072; do
        for clients in 1 16 64 256; do
            both "$members" put clients=$clients bytes=$bytes seconds="$seconds"
        done
    done
    for operation in txn get get-any; do
        both "$members" $operation clients=64 seconds="$seconds"
    done
done
both 1 watch clients=1000 seconds="$seconds"

echo "with 100,000 keys of 3 KiB: filled, restarted, after a compaction"
rm -rf "$data"/*
for server in etcd ironclad; do
    members=1
    start $server 1
    row wait
    row fill keys=100000 bytes=3072
    stop
    start $server 1
    row wait
    row overwrite keys=100000 bytes=3072 count=100000
    stop
done

echo "disk after 1,000,000 overwrites of 10,000 keys, compacted every 50,000"
rm -rf "$data"/*
for server in etcd ironclad; do
    start $server 1
    "$bin/examples/load" "$urls" wait >"$data/wait"
    row overwrite keys=10000 bytes=256 count=1000000
    sleep 10
    printf '| %-8s | %s MiB on disk |\n' $server "$(du -sm "$data/$server-1" | cut -f1)"
    stop
done
