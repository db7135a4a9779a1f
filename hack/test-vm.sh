#!/usr/bin/env bash
# What this machine lacks, in virtual machines (vm.sh): cgroup v2 with every controller, systemd as pid 1, AppArmor, Linux 6.1 and 6.12.
#
#   test-vm.sh [STEP…]      all of them without STEP
#
#   cargo     tests of cgroups, AppArmor, and fallbacks, on Linux 6.1
#   newer     what differs on Linux 6.12
#   pods      ctr, a pod's life by crictl, and a killed shim
#   systemd   its cgroup driver, limits beside runc's, AppArmor's specs of critest
#
# A line for each with its time; the status is that of all. The logs are in .tools/reports.
# It must never need the network, nor more than two processors and 4 GiB.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(dirname "$hack")
reports=$repo/.tools/reports

# All tests of cargo: vm-test.sh. Most of them would say nothing new here.
cargo() { "$hack/vm-test.sh" -- runtime apparmor:: life:: limits:: numbers:: oom:: refused:: stubborn:: unified:: userlocks::; }
newer() { "$hack/vm-test.sh" --kernel newer -- runtime refused:: unified:: userlocks::; }
pods() { "$hack/vm.sh" -- bash -ec 'target/release/containerd-shim-rs-v2 check; hack/ctr-check.sh; hack/pod-check.sh rs; hack/crash-check.sh'; }
systemd() {
	"$hack/vm.sh" --systemd --seconds 900 -- bash -ec 'target/release/containerd-shim-rs-v2 check
		for driver in cgroupfs systemd; do hack/limits-check.sh $driver; done
		hack/systemd-check.sh 60; CRITEST_REPORT=critest-vm-apparmor hack/critest.sh --focus AppArmor rs'
}

(($#)) || set -- cargo newer pods systemd
for step in "$@"; do
	[[ $step == cargo || $step == newer || $step == pods || $step == systemd ]] || { sed -n '4,9s/^# \?//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
done
"$hack/tools.sh"
"$hack/images.sh"
# The guests have the binaries, and no compiler that could wait for the network.
command cargo test --quiet --locked --test runtime --no-run
"$hack/registry.sh" --unpack
mkdir -p "$reports"
failed=()
for step in "$@"; do
	started=$SECONDS status=0
	"$step" >"$reports/test-vm-$step.log" 2>&1 </dev/null || status=$?
	((status == 0)) || { failed+=("$step"); tail -n 80 "$reports/test-vm-$step.log"; }
	printf 'test-vm: %-8s %s in %d s\n' "$step" "$( ((status)) && echo "FAILED ($status)" || echo passed)" $((SECONDS - started))
done
((!${#failed[@]})) || { echo "test-vm: failed: ${failed[*]}; the logs are in .tools/reports" >&2; exit 1; }
