#!/usr/bin/env bash
# A container with every limit, by the shim and by runc, beside each other in a virtual machine of cgroup v2: each file of both
# cgroups has to hold the same, after every update too. What is compared, and how, is in tests/runtime/runc.rs. With systemd also the
# tests of scopes, which nothing else has a systemd for.
#
#   limits-check.sh [cgroupfs|systemd] [FLAGS of vm.sh]…
#
# Inside such a machine (/run/vm) it starts none, and runs the test binary that was built last.
set -euo pipefail

repo=$(dirname "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)")
driver=${1:-cgroupfs}
case $driver in
cgroupfs) flags=() tests=(runc::) ;;
systemd) flags=(--systemd) tests=(runc:: scopes::) ;;
*) echo 'limits-check.sh [cgroupfs|systemd] [FLAGS of vm.sh]…' >&2; exit 2 ;;
esac
if [[ -e /run/vm/out ]]; then
	cd "$repo"
	binary=$(find "${CARGO_TARGET_DIR:-target}/debug/deps" -name 'runtime-*' -executable -type f -printf '%T@ %p\n' | sort -rn | head -n 1)
	LIMITS_DRIVER=$driver exec hack/vm-test.sh --inside "${binary#* }" -- "${tests[@]}" --nocapture
fi
LIMITS_DRIVER=$driver exec "$repo/hack/vm-test.sh" "${flags[@]}" "${@:2}" -- runtime "${tests[@]}" --nocapture
