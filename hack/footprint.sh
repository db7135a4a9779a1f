#!/usr/bin/env bash
# What one pod's serving process costs, with one container: one thread after every call, less than 400 KB of anonymous memory
# and less than 2 MB resident once it is at rest.
# It must never measure another build than the one that is released: $SHIM_DIR, or target/release.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
"$hack/containerd.sh" start
eval "$("$hack/containerd.sh" env)"
image=docker.io/library/busybox:latest
failed=0
task() { timeout 30 ctr -n k8s.io task "$@" >/dev/null; }
field() { awk -v name="$1:" '$1 == name {print $2}' "/proc/$shim/status"; }
one_thread() { [[ $(field Threads) == 1 ]] || { echo "FAIL one thread after $1: $(field Threads)" && failed=1; }; }
less() { if (($2 < $3)); then echo "ok   $1: $2 KB"; else echo "FAIL $1: $2 KB, not less than $3" && failed=1; fi; }
call() { task "$@" || { echo "FAIL ctr task $*" && failed=1; } && one_thread "$1"; }

id=footprint-$$
timeout 30 ctr -n k8s.io run -d --runtime io.containerd.rs.v2 "$image" "$id" sleep 98765
shim=$(pgrep -f "^containerd-shim-rs-v2 .*-id $id ")
trap 'task kill -s KILL $id; sleep 0.3; task rm $id; timeout 30 ctr -n k8s.io container rm $id' EXIT
one_thread start
call exec --exec-id e1 "$id" true
timeout 30 script -qec "ctr -n k8s.io task exec -t --exec-id e2 $id true" /dev/null >/dev/null && one_thread "exec with a terminal"
call pause "$id"
call resume "$id"
call metrics "$id"
call ps "$id"
call kill -s CONT "$id"
jobs=()
for n in $(seq 50); do
	task exec --exec-id "many$n" "$id" true &
	jobs+=($!)
	task metrics "$id" &
	jobs+=($!)
done
wait "${jobs[@]}" || { echo "FAIL a hundred calls at once" && failed=1; }
one_thread "a hundred calls at once"
sleep 4
one_thread rest
((failed)) || echo "ok   one thread after every call"
less "anonymous memory" "$(field RssAnon)" 400
less "resident memory" "$(field VmRSS)" 2048
exit $failed
