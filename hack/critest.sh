#!/usr/bin/env bash
# Runs critest (of cri-tools) against the private containerd, for one runtime handler:
#
#   critest.sh HANDLER [FOCUS…] [-- critest flags…]     for example: critest.sh rs 'PodSandbox|basic operations on container'
#
# Runs the specs that match a FOCUS (all, if none is given) but those about images, which want a registry; IMAGE_SPECS=yes: those
# too. Writes .tools/reports/critest-HANDLER.{log,json,list}; its status is critest's. The list says: verdict, seconds, spec, reason.
# It must never run against another containerd than the private one.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
reports=$(dirname "$hack")/.tools/reports
handler=${1:?usage: critest.sh HANDLER [FOCUS…] [-- critest flags…]}
shift
flags=()
while (($#)) && [[ $1 != -- ]]; do
	flags+=("--ginkgo.focus=$1")
	shift
done
[[ ${IMAGE_SPECS:-no} == yes ]] || flags+=('--ginkgo.skip=Image Manager|Image Consistency|Image Identifier Consistency')

"$hack/containerd.sh" start
eval "$("$hack/containerd.sh" env)"
mkdir -p "$reports"
report=$reports/critest-$handler
rm -f "$report".{log,json,list}
status=0
"$hack/containerd.sh" run -- critest --runtime-endpoint="$CONTAINER_RUNTIME_ENDPOINT" \
	--image-endpoint="$IMAGE_SERVICE_ENDPOINT" --runtime-handler="$handler" --ginkgo.no-color --ginkgo.json-report="$report.json" \
	"${flags[@]}" "${@:2}" >"$report.log" 2>&1 || status=$?
python3 - "$report.json" <<'END' | tee "$report.list"
import json, sys
verdicts = {"passed": "PASS", "skipped": "skip", "pending": "skip"}
lines, count = [], {}
for spec in json.load(open(sys.argv[1]))[0]["SpecReports"]:
    name = " ".join([*(spec.get("ContainerHierarchyTexts") or []), spec["LeafNodeText"]])
    reason = " ".join(spec.get("Failure", {}).get("Message", "").split())
    # A spec that no focus asks for is reported as skipped, without a reason.
    if spec["LeafNodeType"] == "It" and (spec["State"] != "skipped" or reason):
        verdict = verdicts.get(spec["State"], "FAIL")
        count[verdict] = count.get(verdict, 0) + 1
        lines.append(f"{verdict} {spec.get('RunTime', 0) / 1e9:5.1f} s  {name}" + (f": {reason[:300]}" if reason else ""))
    elif spec["LeafNodeType"] != "It" and spec["State"] != "passed":
        lines.append(f"FAIL {spec['LeafNodeType']}: {reason[:300]}")
print("\n".join(sorted(lines, key=lambda line: (line[:4], line[13:]))))
print(", ".join(f"{count.get(verdict, 0)} {what}" for verdict, what in (("PASS", "passed"), ("FAIL", "failed"), ("skip", "skipped"))))
END
exit $status
