#!/usr/bin/env bash
# The end-to-end checks, on a private containerd with the released binary: a pod's life by crictl, ctr, what is left after a
# hundred rounds, a killed shim, the footprint, and the demo. Ends with a count; its status is that of all.
# It must never leave the private containerd running.
set -uo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
logs=$(dirname "$hack")/.tools/reports
mkdir -p "$logs"
passed=0 failed=0

# run NAME SECONDS COMMAND…: its output goes to a file, and here if it fails.
run() {
	local name=$1 limit=$2 since=$SECONDS
	shift 2
	if timeout -k 10 "$limit" "$@" >"$logs/$name.log" 2>&1 </dev/null; then
		echo "ok   $name ($((SECONDS - since)) s)" && passed=$((passed + 1))
	else
		echo "FAIL $name ($((SECONDS - since)) s)" && failed=$((failed + 1))
		tail -n 60 "$logs/$name.log" | sed 's/^/     /'
	fi
}
trap '"$hack/containerd.sh" stop >/dev/null 2>&1 || true' EXIT

run tools 1500 "$hack/tools.sh"
run images 600 "$hack/images.sh"
run shim 1500 "$hack/build.sh"
run pod-check 300 "$hack/pod-check.sh" rs
run ctr-check 300 "$hack/ctr-check.sh"
run crash-check 120 "$hack/crash-check.sh"
run leak-check 300 "$hack/leak-check.sh"
run footprint 120 "$hack/footprint.sh"
run demo 200 "$hack/demo.sh"
echo "$passed passed, $failed failed"
((failed == 0))
