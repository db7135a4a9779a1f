#!/bin/bash
# Inside a virtual machine of vm.sh: runs the command of folder $1, gives its output, its status and the reports to the host, and
# ends the machine. It is pid 1 of the plain flavour, and a service of systemd in the other.
# It must never run outside of such a machine.
[[ -e /run/vm/out && -e /run/vm/status ]] || { echo 'guest.sh: this is no virtual machine of vm.sh' >&2; exit 2; }
run=$1
repo=$(dirname "$(dirname "$(dirname "$(realpath "${BASH_SOURCE[0]}")")")")
# shellcheck source=/dev/null
source "$run/environment"
cd "$repo" || exit 2

mounted() { mountpoint -q "$2" || mount -t "$1" "$1" "$2" "${@:3}"; }
mounted cgroup2 /sys/fs/cgroup
mounted securityfs /sys/kernel/security
mounted bpf /sys/fs/bpf
mkdir -p /dev/pts /dev/shm /dev/mqueue
mounted devpts /dev/pts -o mode=620,ptmxmode=666
[[ -c /dev/ptmx && ! -L /dev/ptmx ]] || ln -sf pts/ptmx /dev/ptmx
mounted tmpfs /dev/shm -o mode=1777
mounted mqueue /dev/mqueue
for link in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
	[[ -e /dev/${link%%:*} ]] || ln -s "/proc/self/${link##*:}" "/dev/${link%%:*}"
done
ip link set lo up
hostname vm
for module in overlay veth bridge br_netfilter; do modprobe "$module" 2>/dev/null; done
# containerd's own on a disk: a tmpfs has no id-mapped mounts before Linux 6.3.
modprobe loop
truncate -s 2G /run/vm/disk
{ mkfs.ext4 -q /run/vm/disk && mount -o loop /run/vm/disk "$repo/.tools/run"; } || echo 'guest.sh: no disk: containerd lies on a tmpfs' >/run/vm/out

bash "$run/command" </dev/null >/run/vm/out 2>&1
status=$?
tar -C "$repo/.tools" -cf /run/vm/reports reports
echo "$status" >/run/vm/status
sync
# Nobody waits for anything: the machine's disks are the host's, and read-only.
echo o >/proc/sysrq-trigger
sleep 60
