#!/usr/bin/env bash
# What this machine lacks, in virtual machines (vm.sh): cgroup v2 with every controller, systemd as pid 1, AppArmor, older kernels.
#
#   test-vm.sh [STEP…]    cargo: the tests of cargo, Linux 6.1.  newer: those of the runtime, 6.12.  pods: a pod's life by crictl, and
#                         a killed shim.  systemd: its cgroup driver, limits beside runc's, AppArmor's specs of critest.
#
# All without STEP. A line for each with its time; the status is that of all. The logs are in .tools/reports.
# It must never need the network, nor more than two processors and 4 GiB.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(dirname "$hack")
reports=$repo/.tools/reports

cargo() { "$hack/vm-test.sh"; }
newer() { "$hack/vm-test.sh" --kernel newer -- runtime; }
pods() { "$hack/vm.sh" -- bash -ec 'target/release/containerd-shim-rs-v2 check; hack/pod-check.sh rs; hack/crash-check.sh'; }
systemd() {
	"$hack/vm.sh" --systemd --seconds 900 -- bash -ec 'target/release/containerd-shim-rs-v2 check
		for driver in cgroupfs systemd; do hack/limits-check.sh $driver; done
		hack/systemd-check.sh; hack/critest.sh --focus AppArmor rs'
}

(($#)) || set -- cargo newer pods systemd
"$hack/tools.sh"
"$hack/images.sh"
"$hack/registry.sh" --unpack
mkdir -p "$reports"
failed=()
for step in "$@"; do
	[[ $step == cargo || $step == newer || $step == pods || $step == systemd ]] || { sed -n '4,6s/^# \?//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
	started=$SECONDS status=0
	"$step" >"$reports/test-vm-$step.log" 2>&1 </dev/null || status=$?
	((status == 0)) || { failed+=("$step"); tail -n 60 "$reports/test-vm-$step.log"; }
	printf 'test-vm: %-8s %s in %d s\n' "$step" "$( ((status)) && echo "FAILED ($status)" || echo passed)" $((SECONDS - started))
done
((!${#failed[@]})) || { echo "test-vm: failed: ${failed[*]}; the logs are in .tools/reports" >&2; exit 1; }
