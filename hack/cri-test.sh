#!/usr/bin/env bash
# Runs containerd's own CRI integration tests against the private containerd: cri-test.sh HANDLER [go test flags…], for example
# `cri-test.sh rs -test.run TestContainerLog`. Writes .tools/reports/cri-HANDLER.{log,list}; its status is the tests'.
# It must never run a test that ends containerd by name: the suite's `pkill` would meet every containerd of this machine.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
reports=$(dirname "$hack")/.tools/reports
handler=${1:?usage: cri-test.sh HANDLER [go test flags…]}
shift

skip=(
	# restart or kill containerd by its name
	TestContainerdRestart.\* TestReload100Pods TestSandboxRemoveWithoutIPLeakage TestSandboxStopWithNilCNIResult
	TestUpdatePodSandboxWithRestart 'TestRunPodSandbox(With(Setup|Shim)|And).*'
	# start a containerd of their own, with the machine's CNI and no image
	TestOOMEventMonitor TestRunContainerWithVolatileOption TestContainerCgroupWritable TestIssue10467 TestIssue10244LoopbackV2 TestUpgrade
	# pull or remove an image
	'TestContainerd.*Image.*' TestImageLoad TestCRIImagePullTimeout TestContainerLifecycleWithoutImageRef 'TestImageVolume.*' TestRuntimeHandlerUnpack.\*
	# look for the shim's socket in containerd's default directory, or want a shim with fault injection, NRI, IPv6, `stress`
	TestContainerIOLeakAfterStartFailed TestContainerTTYLeakAfterExit 'TestIssue7496.*' TestPodSandboxController_.\*
	'TestN[rR][iI].*' TestUpdatePodSandbox TestPodDualStack TestContainerConsumedStats
)

"$hack/containerd.sh" start
eval "$("$hack/containerd.sh" env)"
mkdir -p "$reports"
log=$reports/cri-$handler.log
status=0
# Where the suite looks whether the file system can map ids; without it the tests of user namespaces are skipped.
probe=/var/lib/containerd-test
if mkdir "$probe" 2>/dev/null; then trap 'rmdir "$probe"' EXIT; fi
# The name given as --containerd-bin is what the suite would kill: no process has it.
"$hack/containerd.sh" run -- cri-integration.test --cri-endpoint="$CONTAINER_RUNTIME_ENDPOINT" \
	--containerd-bin=no-such-program --runtime-handler="$handler" --test.v --test.timeout=20m \
	--test.skip="^($(IFS='|' && echo "${skip[*]}"))\$" "$@" >"$log" 2>&1 || status=$?
sed -nE 's/^ *--- (PASS|FAIL|SKIP): (.*) \(.*/\1 \2/p' "$log" | tee "$reports/cri-$handler.list"
count() { grep -c "^$1" "$reports/cri-$handler.list" || true; }
echo "$(count PASS) passed, $(count FAIL) failed, $(count SKIP) skipped"
exit $status
