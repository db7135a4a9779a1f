#!/usr/bin/env bash
# The tests of cargo in a virtual machine: cgroup v2 with every controller, AppArmor, Debian's kernel.
#
#   vm-test.sh [FLAGS of vm.sh]… [-- BINARY [FILTER…]]
#
# The tests are built here and run there, a binary after the other; with BINARY (runtime, stdio…) only that one, of it only what
# FILTER names. Emulation is ten times slower. It must never skip a test without saying why: see `left_out`.
set -euo pipefail

repo=$(dirname "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)")
cd "$repo"

# Not run there: what has nothing to do with the kernel and takes long.
#   fields, plans, tidy, config: text. seccomp: compares programs by a simulator, for minutes; its placement is in `runtime`.
#   footprint: measures the release binary on the machine that it is built on.
left_out=' fields plans tidy seccomp footprint config '

# A disk for what the tests write: a kernel before 6.3 maps no ids of a tmpfs. Its device is also one to limit.
disk() {
	export TMPDIR=/disk
	! mountpoint -q /disk || return 0
	modprobe loop
	modprobe bfq
	truncate -s 1G /run/disk
	mkfs.ext4 -q /run/disk
	mkdir -p /disk
	mount -o loop /run/disk /disk
	echo bfq >/sys/block/loop0/queue/scheduler
}

inside() {
	local binary name failed=() started status
	disk
	# The mount that the first of them makes stays.
	ip netns add first && ip netns delete first
	export RUNTIME_TEST_SECONDS=300
	export RUST_TEST_THREADS=2
	for binary in "${binaries[@]}"; do
		name=$(basename "${binary%-*}")
		started=$SECONDS
		{
			cd "$(folder "$name")"
			timeout -k 5 "${TEST_SECONDS:-900}" "$repo/$binary" "${filter[@]}" 2>&1 || echo "status $?"
		} | tee "/tmp/$name.log" | grep --line-buffered -e 'FAILED$' -e ' as runc' || true
		status=$(sed -n 's/^status //p' "/tmp/$name.log")
		printf '%-28s %4d s  %s\n' "$name" $((SECONDS - started)) "$(grep -h '^test result' "/tmp/$name.log" || echo "status ${status:-0}")"
		grep -h '^skipped' "/tmp/$name.log" | sort | uniq -c || true
		cp "/tmp/$name.log" "$repo/.tools/reports/vm-test-$name.log"
		! grep -q '^test result: ok. 0 passed' "/tmp/$name.log" || status=nothing
		[[ -z $status ]] || { failed+=("$name"); sed -n '/^failures:/,$p' "/tmp/$name.log"; }
	done
	((!${#failed[@]})) || { echo "vm-test: failed: ${failed[*]}" >&2; return 1; }
}

# A test runs in its package's folder.
folder() { case $1 in containerd_shim_rs_v2 | group | launch) echo "$repo/shim" ;; *) echo "$repo" ;; esac; }

if [[ ${1:-} == --inside ]]; then
	[[ -e /run/vm/out ]] || { echo 'vm-test: this is no machine of vm.sh' >&2; exit 2; }
	shift
	binaries=() filter=()
	while (($#)) && [[ $1 != -- ]]; do binaries+=("$1"); shift; done
	filter=("${@:2}")
	inside
	exit
fi
flags=()
while (($#)) && [[ $1 != -- ]]; do flags+=("$1"); shift; done
only=${2:-}
filter=("${@:3}")
# Not /dev/stderr: of a log it would be another open file, with a position of its own.
built=$(cargo test --workspace --locked --no-run 2>&1 | tee >(cat >&2))
mapfile -t binaries < <(sed -n 's/^ *Executable .*(\(.*\))$/\1/p' <<<"$built")
chosen=()
for binary in "${binaries[@]}"; do
	name=$(basename "${binary%-*}")
	if [[ -n $only ]]; then [[ $name != "$only" ]] || chosen+=("$binary"); else [[ $left_out == *" $name "* ]] || chosen+=("$binary"); fi
done
((${#chosen[@]})) || { echo "vm-test: no test binary ${only:-at all}" >&2; exit 1; }
exec hack/vm.sh --memory 2048 --seconds 1500 "${flags[@]}" -- env LIMITS_DRIVER="${LIMITS_DRIVER:-}" hack/vm-test.sh --inside "${chosen[@]}" -- "${filter[@]}"
