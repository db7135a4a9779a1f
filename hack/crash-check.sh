#!/usr/bin/env bash
# What becomes of a pod whose shim is killed: containerd runs `containerd-shim-rs-v2 delete`, which has to end every process of the
# pod and remove its cgroups from what is on disk alone. For a PID namespace per container, per pod, and none.
# It must never kill another process than the shims of its own pods.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=check.sh
source "$hack/check.sh"
"$hack/containerd.sh" start
eval "$("$hack/containerd.sh" env)"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cri() { timeout 30 crictl "$@" 2>/dev/null; }

# left SECONDS POD CONTAINER: what still names them after at most that long.
left() {
	local end=$((SECONDS + $1)) found
	while :; do
		found=$(pgrep -fa "sleep 4567$$|$2" | grep -v crash-check || true)
		found+=$(find /sys/fs/cgroup -type d -name "*$3*" 2>/dev/null || true)
		found+=$(grep -F -e "$2" -e "$3" /proc/self/mountinfo || true)
		if [[ -z $found ]] || ((SECONDS >= end)); then break; fi
		sleep 0.1
	done
	echo "$found"
}

# CRI learns of the end by an event that it handles with pauses; until then it calls the container running.
remove() {
	local end=$((SECONDS + 30))
	until cri rmp -f "$1"; do
		((SECONDS < end)) || return 1
		sleep 0.5
	done
}

for pid in 0 1 2; do
	spec='"linux": {"security_context": {"namespace_options": {"pid": '$pid'}}}'
	echo '{"metadata": {"name": "crash'$pid'", "namespace": "default", "uid": "crash'$pid'"}, '"$spec"'}' >"$work/pod"
	echo '{"metadata": {"name": "c"}, "image": {"image": "docker.io/library/busybox:latest"}, "command": ["sh", "-c", "sleep 4567'$$' & sleep 4567'$$'"],
		'"$spec"'}' >"$work/c"
	pod=$(cri runp -r rs "$work/pod") && c=$(cri create "$pod" "$work/c" "$work/pod") && cri start "$c" >/dev/null
	shim=$(pgrep -f "^containerd-shim-rs-v2 .*-id $pod ")
	kill -KILL "$shim"
	is "PID mode $pid: the pod ends with its shim" '' left 5 "$pod" "$c"
	is "PID mode $pid: the pod is removed" "*$pod" remove "$pod"
done
closing
