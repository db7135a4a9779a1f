#!/usr/bin/env bash
# A hundred rounds of create and delete leave the machine as it was: leak-check.sh [ROUNDS]. Rounds of ctr (a shim for each
# container), of containers in one pod, of whole pods, and of creates that fail. Compares what only the private containerd has.
# It must never count what another program on the machine does at the same time.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
rounds=${1:-100}
dir=$(dirname "$hack")/.tools/run
"$hack/containerd.sh" start
eval "$("$hack/containerd.sh" env)"
run=${CONTAINERD_ADDRESS%/*}
containerd=$(cat "$dir/containerd.pid")
image=docker.io/library/busybox:latest
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cri() { timeout 60 crictl "$@" 2>/dev/null; }

count() {
	echo "mounts $(grep -cF -e "$dir/" -e "$run/" /proc/self/mountinfo)"
	echo "mounts-of-containerd $(wc -l <"/proc/$containerd/mountinfo")"
	echo "cgroups $(find /sys/fs/cgroup -type d -path '/leak-check/*' | wc -l)"
	echo "shims $(pgrep -fc "^containerd-shim-rs-v2 .*-address $run/" || true)"
	echo "holders $(pgrep -fc '^containerd-shim-rs-v2 holder' || true)"
	echo "processes-of-containers $(pgrep -fc '^sleep 98765' || true)"
	echo "sockets $(find "$run/s" -type s | wc -l)"
	echo "files-in-state $(find "$dir/state" | wc -l)"
	echo "namespaces $(find "$dir/state" "$run" -name 'cni-*' | wc -l)"
	echo "bundles $(find "$dir/root" -path '*io.containerd.*task*' -o -path '*sandbox.controller*' | wc -l)"
	if [[ -n ${shim:-} ]]; then
		echo "fds-of-the-shim $(find "/proc/$shim/fd" -type l | wc -l)"
		echo "children-of-the-shim $(pgrep -cP "$shim" || true)"
	fi
}

# settled FILE: a moment for what ends after its answer.
settled() {
	local n
	for n in $(seq 50); do
		count >"$work/now"
		cmp -s "$1" "$work/now" && return
		sleep 0.1
	done
}

# The state to compare with: once it stays the same for a second, for a warm-up may still be on its way out.
baseline() {
	count >"$work/before"
	local n
	for n in $(seq 30); do
		sleep 1
		count >"$work/again"
		if cmp -s "$work/before" "$work/again"; then return; fi
		cp "$work/again" "$work/before"
	done
}

failed=0
verdict() {
	settled "$work/before"
	if cmp -s "$work/before" "$work/now"; then
		echo "ok   $1"
	else
		echo "FAIL $1" && diff "$work/before" "$work/now" | sed 's/^/     /' && failed=1
	fi
}

ctr_round() { timeout 60 ctr -n leak-check run --rm --runtime io.containerd.rs.v2 "$image" "$1" "${@:2}" >/dev/null 2>&1 || true; }

timeout 60 ctr images tag "$image" "$image" >/dev/null 2>&1 || true
timeout 60 ctr -n k8s.io images export "$work/image.tar" "$image" >/dev/null && timeout 60 ctr -n leak-check images import "$work/image.tar" >/dev/null
ctr_round warm true
baseline
for n in $(seq "$rounds"); do ctr_round "c$n" true; done
verdict "$rounds rounds of ctr run"
for n in $(seq $((rounds / 5))); do ctr_round "f$n" /not/there; done
verdict "$((rounds / 5)) creates that fail"

pod() {
	echo '{"metadata": {"name": "leak-'"$1"'", "namespace": "default", "uid": "leak-'"$1"'"}, "linux": {"cgroup_parent": "/leak-check"}}' >"$work/pod$1"
	cri runp -r rs "$work/pod$1"
}
echo '{"metadata": {"name": "c"}, "image": {"image": "'"$image"'"}, "command": ["sleep", "98765"], "linux": {}}' >"$work/c"
one=$(pod warm) && c=$(cri create "$one" "$work/c" "$work/podwarm") && cri start "$c" >/dev/null && cri rmp -f "$one" >/dev/null
baseline
for n in $(seq $((rounds / 5))); do
	id=$(pod "$n") && c=$(cri create "$id" "$work/c" "$work/pod$n") && cri start "$c" >/dev/null
	cri rmp -f "$id" >/dev/null
done
verdict "$((rounds / 5)) pods"

id=$(pod one)
shim=$(pgrep -f "^containerd-shim-rs-v2 .*-id $id ")
for n in warm $(seq "$rounds"); do
	c=$(cri create "$id" "$work/c" "$work/podone") && cri start "$c" >/dev/null && cri exec -s "$c" true >/dev/null
	cri rm -f "$c" >/dev/null
	[[ $n != warm ]] || baseline
done
verdict "$rounds containers with an exec each, in one pod"
cri rmp -f "$id" >/dev/null
find /sys/fs/cgroup -depth -type d -path '*/leak-check*' -exec rmdir {} + 2>/dev/null || true
timeout 60 ctr -n leak-check images rm "$image" >/dev/null 2>&1 || true
exit $failed
