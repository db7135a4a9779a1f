#!/usr/bin/env bash
# A hundred rounds of each way to live and die must leave the machine as it was: leak-check.sh [ROUNDS]. `ctr run --rm`, pods of one
# container, containers and execs in a pod that stays, and creates that fail. Fails if anything is new afterwards.
# It must never count what it did not cause; see traces.sh.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=check.sh
source "$hack/check.sh"
# shellcheck source=traces.sh
source "$hack/traces.sh"
rounds=${1:-100}
handler=rs
runtime=io.containerd.rs.v2
"$hack/containerd.sh" start
eval "$("$hack/containerd.sh" env)"
mark=leak-check-$$
trace_mark=$mark
work=$(mktemp -d)
image=docker.io/library/busybox:latest

cri() { timeout -k 1 60 nsenter --net="$CRI_NETNS" crictl "$@"; }
limited() { timeout -k 1 30 "$@"; }
end() {
	limited crictl rmp -f "$(cat "$work/kept" 2>/dev/null)" >/dev/null 2>&1 || true
	find /sys/fs/cgroup -depth -type d -name "$mark*" -exec rmdir {} + 2>/dev/null || true
	rm -rf "$work"
}
trap end EXIT

pod_config() {
	echo "{\"metadata\": {\"name\": \"$1\", \"uid\": \"$1-$$\", \"namespace\": \"$mark\"}, \"hostname\": \"leak\", \"log_directory\": \"$work\",
		\"linux\": {\"cgroup_parent\": \"/$mark\", \"sysctls\": {$2}, \"security_context\": {\"namespace_options\": {\"pid\": $3}}}}"
}
# container_config NAME PROGRAM PID-NAMESPACE
container_config() {
	echo "{\"metadata\": {\"name\": \"$1\"}, \"image\": {\"image\": \"$image\"}, \"command\": [\"$2\", \"1000\"], \"log_path\": \"$1.log\",
		\"linux\": {\"security_context\": {\"namespace_options\": {\"pid\": $3}}}}"
}

# One round each: they print nothing, and fail if anything goes another way than it should.
task() { # through ctr, with a limit
	[[ $(limited ctr run --rm --runtime $runtime --memory-limit 67108864 $image "$mark-$1" echo "$1" 2>&1) == "$1" ]]
}
pod() { # every other one shares a PID namespace, and has a holder; half are stopped before they are removed
	local shared=$(($1 % 2)) pod container
	pod_config "pod$1" '' $shared >"$work/pod$1.json"
	container_config "c$1" sleep $shared >"$work/c$1.json"
	pod=$(cri runp -r $handler "$work/pod$1.json") &&
		container=$(cri create "$pod" "$work/c$1.json" "$work/pod$1.json") && cri start "$container" >/dev/null &&
		{ (($1 % 4 < 2)) || cri stopp "$pod" >/dev/null; } && cri rmp -f "$pod" >/dev/null
}
inside() { # a container and an exec in the pod that stays
	local container
	container_config "in$1" sleep 1 >"$work/in$1.json"
	container=$(cri create "$(cat "$work/kept")" "$work/in$1.json" "$work/kept.json") && cri start "$container" >/dev/null &&
		[[ $(cri exec -s "$container" echo "$1" | sed '/^$/d') == "$1" ]] && cri rm -f "$container" >/dev/null
}
failing() { # what cannot be created or started; the error has to be the one that is meant
	local wanted got
	case $(($1 % 5)) in
	0) wanted='*not-there*ENOENT*' got=$(bad_task "$1" -- not-there) ;;
	1) wanted='*/not/there*ENOENT*' got=$(bad_task "$1" --mount type=bind,src=/not/there,dst=/mnt,options=rbind -- true) ;;
	2) wanted='*/bin/sh*ENOTDIR*' got=$(bad_task "$1" --cwd /bin/sh -- true) ;;
	3) wanted='*no-such-type*ENODEV*' got=$(bad_task "$1" --mount type=tmpfs,dst=/tmp/one --mount type=no-such-type,dst=/mnt -- true) ;;
	4)
		wanted='*net/ipv4/not_there*ENOENT*'
		pod_config "bad$1" '"net.ipv4.not_there": "1"' 1 >"$work/bad$1.json"
		got=$(! cri runp -r $handler "$work/bad$1.json" 2>&1)
		;;
	esac || return 1
	# shellcheck disable=SC2053
	[[ $got == $wanted ]] || { echo "wanted: $wanted, got: $got" && return 1; }
}
bad_task() { # ROUND [FLAG…] -- PROGRAM: succeeds if it fails
	local flags=() id=$mark-bad$1
	shift
	while [[ $1 != -- ]]; do flags+=("$1") && shift; done
	! limited ctr run --rm --runtime $runtime "${flags[@]}" $image "$id" "$2" 2>&1
}

# many KIND FIRST LAST
many() {
	local n
	for ((n = $2; n <= $3; n++)); do "$1" "$n" || { echo "round $n is not as it should be" && return 1; }; done
}
# The process that serves the pod that stays.
server() { cri inspectp -o go-template --template '{{.info.pid}}' "$(cat "$work/kept")"; }
# What may not grow with what has been: its descriptors, threads, children; and the kilobytes of its own.
server_holds() { echo "$(find "/proc/$1/fd" -type l | wc -l) $(sed -n 's/^Threads:\t//p' "/proc/$1/status") $(pgrep -cP "$1")"; }
anonymous() { sed -nE 's/^RssAnon:\s*([0-9]+) kB/\1/p' "/proc/$1/status"; }

# What is made once and stays (CNI's bridge, folders of a containerd namespace) is made before the first count.
pod_config kept '' 1 >"$work/kept.json"
cri runp -r $handler "$work/kept.json" >"$work/kept"
for kind in task pod failing; do is "warm: $kind" '' many $kind 1 5; done
# The allocator's heap settles within some tens of rounds: 344 kB after 400 as after 100.
is 'warm: inside' '' many inside 1001 1050
sleep 1
traces "$work/before"
server=$(server)
held=$(server_holds "$server")
memory=$(anonymous "$server")
for kind in task pod inside failing; do is "$rounds rounds: $kind" '' many $kind 6 $((rounds + 5)); done
compare_traces "$work/before" "$work/after" 20 || true
is 'nothing is new on the machine' '' new_traces "$work/before" "$work/after"
is 'the pod that stayed: descriptors, threads, children of its server' "$held" server_holds "$server"
echo "     anonymous memory of its server: $memory kB before, $(anonymous "$server") kB after"
is 'the pod that stayed: no more than 64 kB more' yes eval "(($(anonymous "$server") - memory <= 64)) && echo yes"
closing
