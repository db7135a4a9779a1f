#!/usr/bin/env bash
# Checks systemd's cgroup driver where systemd is pid 1, through a private containerd: systemd-check.sh [SCOPES], which are 200. Limits
# in systemctl and in the files, reloads, a unit that exists, an OOM kill, pause and update, a bus that hangs or starts anew, a shim
# that is killed, many scopes: vm.sh --systemd -- hack/systemd-check.sh
# It must never run outside of a machine of vm.sh: it takes D-Bus's sockets away, kills the bus, and restarts systemd.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=check.sh
source "$hack/check.sh"
scopes=${1:-200}
[[ -e /run/vm/out ]] || { echo 'systemd-check: this is no machine of vm.sh' >&2; exit 2; }
[[ -d /run/systemd/system ]] || { echo 'systemd-check: systemd is not pid 1 here' >&2; exit 2; }
"$hack/containerd.sh" start
eval "$("$hack/containerd.sh" env)"
work=$(mktemp -d)
mark=sc$$
slice=$mark-a.slice
image=docker.io/library/busybox:latest
runtime=io.containerd.rs.v2
private=/run/systemd/private

limited() { timeout -k 1 60 "$@"; }
task() { limited ctr task "$@"; }
unit() { echo "t-$mark-$1.scope"; }
path() { echo "/sys/fs/cgroup/$mark.slice/$slice/$(unit "$1")"; }
show() { systemctl show --value -p "$2" "$(unit "$1")"; }
read_of() { cat "$(path "$1")/$2"; }
# Slices that systemd made for a scope stay: they have no end but by somebody's will.
units() { systemctl list-units --all --plain --no-legend "*$mark*.scope" | awk '{ print $1 }'; }
state_of() { task ls | awk -v id="$mark-$1" '$1 == id { print $3 }'; }
until_is() { for ((i = 0; i < 200; i++)); do [[ $("${@:2}" 2>&1) != "$1" ]] || return 0; sleep 0.1; done; "${@:2}"; }
# run ID [FLAG…] -- COMMAND…: in a scope of our slice.
run() {
	local id=$mark-$1 flags=()
	shift
	while [[ $1 != -- ]]; do flags+=("$1") && shift; done
	limited ctr run --runtime $runtime --cgroup "$slice:t:$id" "${flags[@]}" $image "$id" "${@:2}"
}
remove() { task kill -s KILL "$mark-$1" >/dev/null 2>&1; until_is STOPPED state_of "$1"; task rm "$mark-$1" 2>&1 | grep -v 'exit code 137'; [[ -z $(state_of "$1") ]] && limited ctr containers rm "$mark-$1"; }
# seconds COMMAND…: how long it takes, whatever it says.
seconds() { local from=$SECONDS; "$@" >/dev/null 2>&1 || true; echo $((SECONDS - from)); }
# A socket at a path that takes connections and never says a word.
silence() {
	python3 -c 'import socket, sys, time
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(64)
time.sleep(600)' "$1" &
	silent+=($!)
	for ((i = 0; i < 50; i++)); do [[ ! -S $1 ]] || return 0; sleep 0.1; done
}
silent=()
speak() {
	((${#silent[@]} == 0)) || kill "${silent[@]}" 2>/dev/null || true
	silent=()
	for path in $private /run/dbus/system_bus_socket; do
		[[ ! -e $path.away ]] || mv -f "$path.away" "$path"
	done
}
away() { mv "$1" "$1.away"; }
end() {
	local one
	speak
	for one in $(task ls -q | grep -F "$mark-"); do task rm -f "$one" >/dev/null 2>&1 || true; done
	for one in $(limited ctr containers ls -q | grep -F "$mark-"); do limited ctr containers rm "$one" >/dev/null 2>&1 || true; done
	for one in $(units) "$slice" "$mark.slice"; do systemctl stop "$one" >/dev/null 2>&1 || true; done
	rm -rf "$work"
}
trap end EXIT

echo "# $(systemctl --version | head -n 1), kernel $(uname -r)"
is 'it says so' '*"systemd":true*' env PATH="${SHIM_DIR:-$hack/../target/release}:$PATH" sh -c 'containerd-shim-rs-v2 -info </dev/null | tr -cd "[:print:]"'

# A spec of its own, for what ctr has no flags for.
mkdir -p "$work"/rootfs/{bin,tmp,proc,dev,sys}
for applet in busybox sh sleep cat head wc mknod; do cp /bin/busybox "$work/rootfs/bin/$applet"; done
ctr oci spec >"$work/default.json"
# spec NAME PYTHON: writes it.
spec() {
	python3 - "$work" "$1" "$slice:t:$mark-$1" "$2" <<-'PY'
		import json, sys
		work, name, path, change = sys.argv[1:]
		s = json.load(open(work + "/default.json"))
		s["root"]["path"] = work + "/rootfs"
		s["process"]["args"] = ["sleep", "1000"]
		s["process"]["terminal"] = False
		s["linux"]["cgroupsPath"] = path
		s["linux"]["namespaces"].append({"type": "cgroup"})
		r = s["linux"]["resources"]
		exec(change)
		json.dump(s, open(work + "/" + name + ".json", "w"))
	PY
	limited ctr run -d --runtime $runtime --config "$work/$1.json" "$mark-$1"
}

is 'a scope with every limit' '' spec all '
r["memory"] = {"limit": 67108864, "swap": 134217728, "reservation": 33554432}
r["cpu"] = {"shares": 2048, "quota": 12345, "period": 50000, "cpus": "0", "mems": "0"}
r["pids"] = {"limit": 99}
r["unified"] = {"memory.high": "60000000", "memory.min": "4096"}
s["annotations"] = {"org.systemd.property.TimeoutStopSec": "uint64 7", "org.systemd.property.Documentation": "[\"man:x(1)\"]"}'
limits() {
	for name in MemoryMax MemorySwapMax MemoryLow MemoryHigh MemoryMin CPUWeight CPUQuotaPerSecUSec CPUQuotaPeriodUSec AllowedCPUs AllowedMemoryNodes TasksMax; do
		show all $name
	done | paste -sd' '
}
files() {
	for name in memory.max memory.swap.max memory.low memory.high memory.min cpu.weight cpu.max cpuset.cpus cpuset.mems pids.max; do
		read_of all $name
	done | paste -sd' '
}
want_files='67108864 67108864 33554432 59998208 4096 174 12500 50000 0 0 99'
is 'limits in systemctl' '67108864 67108864 33554432 60000000 4096 174 250ms 50ms 0 0 99' limits
is 'limits in the files' "$want_files" files
is 'properties' "7s $slice yes \"man:x(1)\" container $mark-all inactive-or-failed" \
	sh -c "systemctl show --value -p Description -p Slice -p Delegate -p TimeoutStopUSec -p CollectMode -p Documentation $(unit all) | paste -sd' ' | tr -s ' '"
is 'no process but its own' 1 sh -c "wc -l <$(path all)/cgroup.procs"
is 'its cgroup is the root of its namespace' '0::/' task exec --exec-id a "$mark-all" cat /proc/self/cgroup
device() { task exec --exec-id "d$RANDOM" "$mark-all" sh -c 'rm -f /tmp/kmsg; mknod /tmp/kmsg c 1 11; head -c 1 /tmp/kmsg; head -c 1 /dev/zero | wc -c' 2>&1 | tr '\n' ' '; }
is 'devices are filtered' '*not permitted*1 *' device
systemctl daemon-reload
is 'files after a reload of systemd' "$want_files" files
is 'devices after a reload' '*not permitted*1 *' device

is 'pause' '' task pause "$mark-all"
is 'resume' '' task resume "$mark-all"
is 'the end of it' '' remove all
is 'nothing is left' '' units

is 'a limit of one process' '' spec one 'r["pids"] = {"limit": 1}'
is 'its pids.max' 1 read_of one pids.max
is 'the end of it' '' remove one

# A unit that exists.
systemd-run --quiet --scope --unit "$(unit there)" --slice "$slice" sleep 1000 &
other=$!
until_is active systemctl is-active "$(unit there)"
is 'a unit that exists' '*start unit "*": it exists, and is not ours*<1>' run there -d -- sleep 1000
is 'it is as it was' $'active\nsleep' sh -c "systemctl is-active $(unit there); cat /proc/\$(head -n 1 $(path there)/cgroup.procs)/comm"
systemctl stop "$(unit there)"
wait $other 2>/dev/null || true
systemd-run --quiet --scope --unit "$(unit failed)" --slice "$slice" -p RuntimeMaxSec=1 sleep 1000 >/dev/null 2>&1 || true
until_is failed systemctl is-failed "$(unit failed)"
is "one that has failed is in nobody's way" '' run failed -d -- sleep 1000
is 'the end of it' '' remove failed

# Memory.
limited ctr events >"$work/events" 2>/dev/null &
listener=$!
for i in 1 2 3; do
	is "an init that is killed for want of memory, $i" ' <137>' run "oom$i" --memory-limit 20000000 -- sh -c 'sleep 1; exec tail /dev/zero'
	limited ctr containers rm "$mark-oom$i" >/dev/null 2>&1 || true
	task rm "$mark-oom$i" >/dev/null 2>&1 || true
done
sleep 1
kill $listener
is 'each is told of' 3 sh -c "grep /tasks/oom $work/events | grep -c $mark-oom"
is 'numbers after the end' '' run num -d --memory-limit 20000000 -- sh -c 'sleep 1; exec tail /dev/zero'
until_is STOPPED state_of num
is 'its numbers' '*"oom_kill":1*' sh -c "ctr task metrics --format json $mark-num | tr -d ' \n'"
is 'the end of it' '' remove num
is 'nothing is left' '' units

# A shim that is killed.
is 'a container whose shim is killed' '' run killed -d -- sleep 1000
shim=$(pgrep -f -- "containerd-shim-rs-v2.*$mark-killed" | head -n 1)
kill -9 "$shim"
until_is '' units
is 'nothing is left of it' '' units
limited ctr containers rm "$mark-killed" >/dev/null 2>&1 || true

# A bus that hangs: nobody answers, on either socket.
is 'before' '' run before -d -- sleep 1000
away $private && away /run/dbus/system_bus_socket
silence $private && silence /run/dbus/system_bus_socket
is 'a bus that hangs' '*start unit "*": authenticate: no answer in time*<1>' run hung -d -- sleep 1000
is 'others are alive' RUNNING state_of before
is 'and can be deleted' '' remove before
speak
until_is '' units
is 'nothing is left' '' units

# systemd itself starts anew in the middle of everything; then the bus does, while there is no other way. (It is killed: vm.sh's
# service, and so this, requires the bus, and would be restarted with it.)
: >"$work/again"
(while [[ -e $work/again ]]; do systemctl daemon-reexec; sleep 1; done) &
again=$!
count=0
for i in $(seq 10); do [[ $(run "r$i" --rm -- echo "$i" 2>&1) == "$i" ]] && count=$((count + 1)); done
is 'ten containers while systemd starts anew' 10 echo $count
rm "$work/again"
wait $again
away $private
count=0
for i in $(seq 6); do
	bus=$(systemctl show --value -p MainPID dbus)
	((i % 2 || bus == 0)) || kill -9 "$bus" || true
	[[ $(run "b$i" --rm -- echo "$i" 2>&1) == "$i" ]] && count=$((count + 1))
done
is 'six containers by a bus that starts anew' 6 echo $count
speak
until_is '' units
is 'nothing is left' '' units

# Many.
before=$(systemctl list-units --all --plain --no-legend | wc -l)
many() { for ((n = $1; n <= scopes; n += 4)); do [[ $(run "m$n" --rm -- echo "$n" 2>&1) == "$n" ]] || echo "$n"; done; }
from=$SECONDS
for i in 1 2 3 4; do many $i >"$work/many$i" & done
wait
is "$scopes scopes" '' cat "$work"/many{1,2,3,4}
echo "# $scopes scopes in $((SECONDS - from)) s"
until_is '' units
is 'no unit is left' '' units
is 'no file of a unit is left' '' find /run/systemd -name "*$mark*.scope*"
is 'no cgroup is left' '' find /sys/fs/cgroup -name "*$mark*.scope"
echo "# units before: $before, after: $(systemctl list-units --all --plain --no-legend | wc -l)"
closing
