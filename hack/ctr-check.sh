#!/usr/bin/env bash
# Checks a runtime without CRI, through `ctr run` and `ctr task`: ctr-check.sh [RUNTIME], which is io.containerd.rs.v2. Foreground
# and detached, with and without a terminal, exec, kill, pause, resume, metrics, ps, rm, exit codes, input, errors, what is left.
# It must never touch a container that it did not make, nor wait for ever for one.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=check.sh
source "$hack/check.sh"
runtime=${1:-io.containerd.rs.v2}
"$hack/containerd.sh" start
eval "$("$hack/containerd.sh" env)"
mark=ctr-check-$$
image=docker.io/library/busybox:latest
runc=()
[[ $runtime != io.containerd.runc.v2 ]] || runc=(--runc-binary "$(command -v runc)")

# ctr hands SIGTERM to the container, which may not mind: hence -k.
limited() { timeout -k 1 30 "$@"; }
task() { limited ctr task "$@"; }
# run ID [FLAG…] -- [COMMAND…]
run() {
	local id=$mark-$1 flags=()
	shift
	while [[ $1 != -- ]]; do flags+=("$1") && shift; done
	limited ctr run --runtime "$runtime" "${runc[@]}" "${flags[@]}" "$image" "$id" "${@:2}"
}
# terminal COMMAND…: on a terminal of 33 by 99.
terminal() { limited script -qec "stty rows 33 cols 99; ctr ${*@Q}" /dev/null </dev/null | tr -d '\r'; }
exec_in() { task exec --exec-id "e$RANDOM$RANDOM" "$@"; }
status_of() { task ls | awk -v id="$1" '$1 == id { print $3 }'; }
until_status() { for ((i = 0; i < 100; i++)); do [[ $(status_of "$1") != "$2" ]] || return 0; sleep 0.05; done; }
# ctr asks for the end of the input only if it comes after Create has returned: it misses the end of a pipe that is closed at once.
slowly() { (echo "$1" && sleep 1) | "${@:2}"; }
metric() { task metrics --format json "$1" | tr -d ' \n'; }
number() { task metrics "$1" | awk -v name="$2" '$1 == name { print ($2 > 0 ? "some" : "none") }'; }
ps_of() { task ps "$1" | awk 'NR > 1 { print $1 }' | while read -r pid; do cat "/proc/$pid/comm"; done | sort | paste -sd' '; }
# Everything with one of our ids in its name.
left() {
	pgrep -fa -- "$mark-" | grep -vF "$0" || true
	grep -F "$mark-" /proc/self/mountinfo || true
	find /sys/fs/cgroup "${CONTAINERD_LOG%/*}/state" -name "*$mark-*" 2>/dev/null || true
	{ task ls -q && limited ctr containers ls -q && limited ctr snapshots ls | cut -d' ' -f1; } | grep -F "$mark-" || true
}
end() {
	local one
	for one in $(task ls -q | grep -F "$mark-"); do task rm -f "$one" >/dev/null 2>&1 || true; done
	for one in $(limited ctr containers ls -q | grep -F "$mark-"); do limited ctr containers rm "$one" >/dev/null 2>&1 || true; done
}
trap end EXIT

is 'run: both streams, exit code' $'out\nerr <7>' run both --rm -- sh -c 'echo out; sleep 0.2; echo err >&2; exit 7'
is "run: the image's own program" '' slowly '' run own --rm --
is 'run: input and its end' said slowly said run input --rm -- cat
is 'run: no such program' '*not-there*ENOENT* <1>' run missing --rm -- not-there
is 'run: a working directory is made' 'ok*' run cwd --rm --cwd /made/by/it -- sh -c 'echo ok; pwd'
is 'run: a read-only root' '*Read-only file system* <1>' run readonly --rm --read-only -- touch /file
is 'run: a bind mount' 'root:*' run bind --rm --mount type=bind,src=/etc,dst=/mnt,options=rbind:ro -- head -n 1 /mnt/passwd
is 'run: user, environment, directory' '33 a /tmp' run user --rm --user 33 --env X=a --cwd /tmp -- sh -c 'echo $(id -u) $X $(pwd)'
is 'run: terminal' '*/dev/pts/*33 99* <3>' terminal run --rm -t --runtime "$runtime" "${runc[@]}" "$image" "$mark-tty" sh -c 'tty; sleep 0.3; stty size; exit 3'

name=$mark-main
is 'run: detached' '' run main -d -- sh -c 'trap "exit 9" TERM; sleep 1000 & wait'
is 'task: runs' RUNNING status_of "$name"
is 'ps: its processes' 'sh sleep' ps_of "$name"
is 'exec: both streams, exit code' $'out\nerr <5>' exec_in "$name" sh -c 'echo out; sleep 0.2; echo err >&2; exit 5'
is 'exec: a pipe that is closed at once ends it' x exec_in "$name" cat <<<x
is 'exec: a megabyte through its input' 1048576 exec_in "$name" wc -c < <(head -c 1048576 /dev/zero)
is 'exec: user and directory' '33 /tmp' exec_in --user 33 --cwd /tmp "$name" sh -c 'echo $(id -u) $(pwd)'
is 'exec: exit code of a signal' ' <137>' exec_in "$name" sh -c 'kill -KILL $$'
is 'exec: terminal' '*/dev/pts/*33 99* <4>' terminal task exec -t --exec-id tty "$name" sh -c 'tty; sleep 0.3; stty size; exit 4'
is 'exec: no such program' '*not-there*ENOENT* <1>' exec_in "$name" not-there
is 'exec: detached' '' exec_in -d "$name" sleep 1000
is 'ps: the exec too' 'sh sleep sleep' ps_of "$name"
is 'exec: no such task' '*not found* <1>' exec_in "$mark-none" true
if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then memory=memory.usage processor=cpu.usage_usec; else memory=memory.usage_in_bytes processor=cpuacct.usage; fi
is 'metrics: memory' some number "$name" $memory
is 'metrics: processor' some number "$name" $processor
is 'metrics: processes' '*"pids":{"current":[3-9]*' metric "$name"
is 'pause' '' task pause "$name"
is 'pause: state' PAUSED status_of "$name"
is 'pause: no exec' '*paused* <1>' exec_in "$name" true
is 'resume' '' task resume "$name"
is 'resume: state' RUNNING status_of "$name"
is 'resume: exec' again exec_in "$name" echo again
is 'rm: not while it runs' '*stopped before deletion*' task rm "$name"
is 'kill' '' task kill "$name"
until_status "$name" STOPPED
is 'kill: state' STOPPED status_of "$name"
is 'kill: again' '* <1>' task kill "$name"
is 'rm: exit code' '*non-zero exit code 9*' task rm "$name"
is 'rm: again' '*not found*' task rm "$name"
is 'start: a second task of the container' '' task start -d "$name"
is 'kill: all, at once' '' task kill -a -s KILL "$name"
until_status "$name" STOPPED
is 'rm: killed' '*non-zero exit code 137*' task rm "$name"
is 'container: remove' '' limited ctr containers rm "$name"

is 'run: paused' '' run frozen -d --memory-limit 67108864 -- sleep 1000
is 'metrics: memory limit' '*:67108864,*' metric "$mark-frozen"
is 'pause: once more' '' task pause "$mark-frozen"
is 'rm: by force, paused' '*137*' task rm -f "$mark-frozen"
is 'container: remove, paused' '' limited ctr containers rm "$mark-frozen"

for ((i = 0; i < 40; i++)); do [[ -n $(left) ]] || break; sleep 0.1; done
is 'nothing is left' '' left
closing
