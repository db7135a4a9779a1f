#!/usr/bin/env bash
# Runs critest (of cri-tools) against the private containerd, for one runtime handler after the other:
#
#   critest.sh [--focus REGEX]… HANDLER… [-- critest flags…]     for example: critest.sh rs runc
#
# The whole of critest, but its benchmarks; with --focus what matches. Images come from registry.sh. One handler: every spec has to
# pass but those in critest-exceptions.txt. Several: the last is the peer, there is a table of all verdicts, and the others have to
# pass what the peer passes, exception or not. Writes .tools/reports/critest-HANDLER.{log,json,list}; CRITEST_REPORT: another word than
# critest. CRITEST_LIMIT: for each handler (15m).
# It must never run against another containerd than the private one.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tools=$(dirname "$hack")/.tools
reports=$tools/reports
report=$reports/${CRITEST_REPORT:-critest}
focus=() handlers=()
while (($#)) && [[ $1 != -- ]]; do
	case $1 in
	--focus) focus+=("--ginkgo.focus=${2:?a regular expression}") && shift ;;
	-*) handlers=() && break ;;
	*) handlers+=("$1") ;;
	esac
	shift
done
((${#handlers[@]})) || { sed -n '2,9s/^# \?//p' "${BASH_SOURCE[0]}" >&2; exit 2; }

"$hack/containerd.sh" start
eval "$("$hack/containerd.sh" env)"
mkdir -p "$reports"
# critest loads AppArmor profiles by it; we are root.
command -v sudo >/dev/null || { printf '#!/bin/sh\nexec "$@"\n' >"$tools/bin/sudo" && chmod +x "$tools/bin/sudo"; }
trap 'exit 130' INT TERM # critest takes them, cleans up, and ends as if it had failed
for handler in "${handlers[@]}"; do
	rm -f "$report-$handler".{log,json,list}
	echo "critest: $handler …" >&2
	# Whether it went well is for the report to say.
	"$hack/registry.sh" "$hack/containerd.sh" run -- critest --runtime-endpoint="$CONTAINER_RUNTIME_ENDPOINT" \
		--image-endpoint="$IMAGE_SERVICE_ENDPOINT" --runtime-handler="$handler" --ginkgo.no-color --ginkgo.timeout="${CRITEST_LIMIT:-15m}" \
		--ginkgo.json-report="$report-$handler.json" "${focus[@]}" "${@:2}" >"$report-$handler.log" 2>&1 || true
done
exceptions=$reports/critest-exceptions.txt
cp "$hack/critest-exceptions.txt" "$exceptions"
! grep -q '^  disable_apparmor = false' "${CONTAINERD_LOG%/*}/config.toml" || sed -i '/# the host has no AppArmor$/d' "$exceptions"
exec "$hack/critest.py" "$exceptions" "$report" "${handlers[@]}"
