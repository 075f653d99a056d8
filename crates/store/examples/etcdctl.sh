#!/bin/sh
# Says the same things with etcdctl to two empty etcd v3 servers and shows where the answers differ.
# usage: etcdctl.sh REFERENCE_ENDPOINT OUR_ENDPOINT
set -u
export ETCDCTL_API=3
reference=$1 ours=$2 differences=0

# Answers without what may differ: members, terms and lease ids chosen by the server.
ask() {
    endpoint=$1
    shift
    timeout 10 etcdctl --endpoints="$endpoint" --command-timeout=5s "$@" 2>&1 |
        sed -E 's/"(cluster_id|member_id|raft_term)":[0-9]+/"\1":0/g
                s/"(ts|target)":"[^"]*"/"\1":""/g
                s/"(ClusterID|MemberID|RaftTerm|ID)" : [0-9]+/"\1" : N/
                s/"(Name|ClientURL)" : .*/"\1" : S/
                /"PeerURL"/d # a store that stays alone has none
                s#(http://)?127\.0\.0\.1:[0-9]+#SERVER#g
                s/took = [^ ]*/took = T/'
}

both() {
    left=$(ask "$reference" "$@")
    right=$(ask "$ours" "$@")
    if [ "$left" = "$right" ]; then
        echo "same: etcdctl $*"
    else
        differences=$((differences + 1))
        printf 'DIFFERS: etcdctl %s\n--- reference\n%s\n--- ours\n%s\n' "$*" "$left" "$right"
    fi
}

# Transactions and watches are read from standard input, or run until stopped.
txn() {
    left=$(printf '%b' "$1" | ask "$reference" txn)
    right=$(printf '%b' "$1" | ask "$ours" txn)
    [ "$left" = "$right" ] && echo "same: txn" && return
    differences=$((differences + 1))
    printf 'DIFFERS: txn %s\n--- reference\n%s\n--- ours\n%s\n' "$1" "$left" "$right"
}

watch() {
    for endpoint in "$reference" "$ours"; do
        timeout 2 etcdctl --endpoints="$endpoint" watch "$@" >"/tmp/etcdctl-watch.$$.${endpoint##*:}" 2>&1
    done
    if cmp -s "/tmp/etcdctl-watch.$$.${reference##*:}" "/tmp/etcdctl-watch.$$.${ours##*:}"; then
        echo "same: watch $*"
    else
        differences=$((differences + 1))
        echo "DIFFERS: watch $*"
        diff "/tmp/etcdctl-watch.$$.${reference##*:}" "/tmp/etcdctl-watch.$$.${ours##*:}"
    fi
    rm -f "/tmp/etcdctl-watch.$$".*
}

both put a 1
both put a 2 --prev-kv
both put b 3
both put c/1 x
both put c/2 y
both put '' x
both get a
both get a -w json
both get a --rev=2
both get a --rev=3 -w json
both get a --rev=99
both get '' --prefix
both get c/ --prefix --keys-only
both get c/ --prefix -w json
both get '' --from-key --limit=2 -w json
both get '' --prefix --sort-by=MODIFY --order=DESCEND
both get '' --prefix --sort-by=VALUE --order=ASCEND --limit=1
both get a --print-value-only
both get a z
both del b --prev-kv
both del nothing
both del c/ --prefix
txn 'mod("a") = "3"\nvalue("a") > "1"\n\nput a new\nget a\n\ndel a\n\n'
txn 'create("nothing") = "0"\n\nput n 1\n\n\n'
txn 'version("a") = "1"\n\nput a yes\n\nget a\ndel n\n\n'
txn '\nput d 1\nput d 2\n\n\n'
watch '' --prefix --rev=1
watch a --rev=2 --prev-kv
both lease grant 500 -w fields
both lease revoke 1234
both lease timetolive 1234
both lease keep-alive --once 1234
both put leased x --lease=77
both compaction 5
both compaction 5
both compaction 999
both get a --rev=3
watch a --rev=2
both endpoint health
both member list -w fields
both alarm list
both alarm disarm
both defrag
both auth status
both role add reader
both role add reader
both role grant-permission reader read a
both role grant-permission reader read c/ --prefix=true
both role get reader -w json
both user add rita:secret
both user add rita:secret
both user grant-role rita reader
both user grant-role rita nobody
both user get rita
both user get nobody
both auth enable
both user add root:root
both role add root
both user grant-role root root
both auth enable
both get a
both get a --user=root:wrong
both get a --user=root:root
both get a --user=rita:secret
both get c/ --prefix --user=rita:secret
both get b --user=rita:secret
both put a 1 --user=rita:secret
both user list --user=rita:secret
both user list --user=root:root
both role list --user=root:root
both role revoke-permission reader a --user=root:root
both get a --user=rita:secret
both user revoke-role rita reader --user=root:root
both role delete reader --user=root:root
both user delete rita --user=root:root
both user delete root --user=root:root
both auth disable --user=root:root
both get a
echo "$differences differences"
[ "$differences" -eq 0 ]
