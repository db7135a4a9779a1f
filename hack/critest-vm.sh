#!/usr/bin/env bash
# The whole of critest beside runc in virtual machines, by the drivers of cgroup v2 that are named: critest-vm.sh cgroupfs|systemd…
# The reports are .tools/reports/critest-vm-DRIVER-HANDLER.*. HANDLERS (rs runc): the last is the peer.
# It must never run against another containerd than the private one in the machine.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
(($#)) || { sed -n '2s/^# //p' "${BASH_SOURCE[0]}" >&2; exit 2; }
read -ra handlers <<<"${HANDLERS:-rs runc}"
"$hack/tools.sh"
"$hack/images.sh"
"$hack/registry.sh" --unpack
failed=()
for driver in "$@"; do
	case $driver in
	cgroupfs) flags=() ;;
	systemd) flags=(--systemd) ;;
	*) echo "critest-vm.sh: $driver is no cgroup driver" >&2; exit 2 ;;
	esac
	CRITEST_REPORT=critest-vm-$driver CRITEST_LIMIT=60m "$hack/vm.sh" "${flags[@]}" --memory 4096 --seconds $((3600 * ${#handlers[@]} + 600)) -- \
		hack/critest.sh "${handlers[@]}" || failed+=("$driver")
done
((!${#failed[@]})) || { echo "critest-vm: failed: ${failed[*]}" >&2; exit 1; }
