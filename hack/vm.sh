#!/usr/bin/env bash
# Runs a command in a virtual machine that is this machine's root, read-only below a tmpfs, with Debian's kernel: cgroup v2 with
# every controller, and AppArmor. Emulated (TCG): no KVM is needed, and it is about ten times slower.
#
#   vm.sh [--systemd] [--kernel stable|newer] [--memory MIB] [--seconds N] -- COMMAND…
#
# Plain: the command is run by pid 1. --systemd: this machine's systemd is pid 1 there, with D-Bus. --kernel: stable is that of
# Debian 12 (6.1), newer that of its backports (6.12). The command runs in the repository's folder, as root; its output is ours as it
# comes, its status ours (125: the machine did not come to its end). What it leaves in .tools/reports is copied to the host's.
# Everything else is lost.
# It must never write to this machine but beneath .tools, nor leave a process.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(dirname "$hack")
vm=$repo/.tools/vm
base_suite=bookworm
# shellcheck source=vm/packages.sh
source "$hack/vm/packages.sh"

usage() { sed -n '5p' "${BASH_SOURCE[0]}" | cut -c5- >&2; exit 2; }
init=$hack/vm/guest.sh kernel=stable memory=3072 seconds=1200
while (($#)) && [[ $1 != -- ]]; do
	case $1 in
	--systemd) init=/usr/lib/systemd/systemd ;;
	--kernel) kernel=${2:?}; shift ;;
	--memory) memory=${2:?}; shift ;;
	--seconds) seconds=${2:?}; shift ;;
	*) usage ;;
	esac
	shift
done
[[ ${1:-} == -- && $# -gt 1 ]] || usage
shift
case $kernel in stable) suite=$base_suite ;; newer) suite=$base_suite-backports ;; *) usage ;; esac

# The modules that the root needs, in the order of their needs.
initramfs() {
	local folder=$run/initramfs name file
	mkdir -p "$folder"/{bin,modules,proc,sys,dev}
	cp /bin/busybox "$folder/bin/"
	cp "$hack/vm/initramfs.sh" "$folder/init"
	for name in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_console fuse virtiofs overlay; do
		file=$(find "$vm/$kernel/modules" -name "$name.ko*" | head -n 1)
		[[ -n $file ]] || continue # built in
		case $file in *.xz) xz -dc "$file" >"$folder/modules/$name.ko" ;; *) cp "$file" "$folder/modules/$name.ko" ;; esac
		echo "$name.ko" >>"$folder/modules/order"
	done
	(cd "$folder" && find . | cpio --quiet -o -H newc) >"$run/initramfs.cpio"
}

# The host's root file system, without what is mounted in it, read-only, in a mount namespace that ends with its server.
share() {
	local server
	for server in /usr/lib/qemu/virtiofsd /usr/libexec/virtiofsd; do [[ ! -x $server ]] || break; done
	mkdir -p "$run/root"
	# The words are for the inner shell.
	# shellcheck disable=SC2016
	unshare --mount --propagation private bash -c '
		mount --bind / "$1/root" && mount -o remount,bind,ro "$1/root" &&
		exec "$2" --socket-path="$1/fs.sock" -o source="$1/root" -o sandbox=chroot -o cache=always -o xattr' \
		- "$run" "$server" >"$run/virtiofsd.log" 2>&1 &
	for ((i = 0; i < 100; i++)); do [[ -S $run/fs.sock ]] && return 0 || sleep 0.05; done
	echo "vm: no file system server:" >&2
	cat "$run/virtiofsd.log" >&2
	return 1
}

end() {
	local status=$?
	trap - EXIT
	# shellcheck disable=SC2046 # pids
	kill $(jobs -p) 2>/dev/null || true
	wait || true
	rm -rf "$run"
	exit $status
}

[[ $(id -u) == 0 ]] || { echo 'vm: root, please' >&2; exit 1; }
[[ $(stat -c %d /) == "$(stat -c %d "$repo")" ]] || { echo "vm: $repo is not on the root file system, which is all that the guest sees" >&2; exit 1; }
# The kernel's command line has it.
[[ $repo =~ ^[A-Za-z0-9/._+-]+$ ]] || { echo "vm: $repo: only letters, digits and /._+- can be passed on" >&2; exit 1; }
mkdir -p "$vm" "$repo"/.tools/{run,reports}
install_emulator
# Not joined by `&&`: a failure in the middle of them would be none.
(flock 9; layer kmod libkmod2 apparmor; kernel "$kernel" "$suite") 9>"$vm/lock"
run=$(mktemp -d "$vm/run-XXXXXX")
trap end EXIT
trap 'exit 130' INT TERM
printf '%q ' "$@" >"$run/command"
export HOME=${HOME:-/root}
declare -p PATH HOME >"$run/environment"
for name in CARGO_HOME RUSTUP_HOME SHIM_DIR CARGO_TARGET_DIR LOG_LEVEL CRITEST_LIMIT CRITEST_REPORT LIMITS_DRIVER TEST_SECONDS RUNTIME_TEST_SECONDS; do [[ ! -v $name ]] || declare -p "$name" >>"$run/environment"; done
sed -i 's/^declare -[^ ]*/export/' "$run/environment"
initramfs
share
# Through a pipe: a regular file would be opened anew, with a position of its own.
exec 3> >(exec cat)
printer=$!
# Without cx16: the flags after that instruction are wrong in QEMU 7.2, and kernels from 6.12 on crash of it.
timeout --foreground -k 5 "$seconds" qemu-system-x86_64 -accel tcg,thread=multi -cpu max,-cx16 -smp 2 -m "$memory" -nodefaults -no-user-config -display none -no-reboot \
	-object "memory-backend-memfd,id=ram,size=${memory}M,share=on" -numa node,memdev=ram \
	-chardev "socket,id=fs,path=$run/fs.sock" -device vhost-user-fs-pci,chardev=fs,tag=host \
	-device virtio-serial-pci -chardev file,id=out,path=/dev/fd/3 -device virtserialport,chardev=out,name=out \
	-chardev "file,id=reports,path=$run/reports.tar" -device virtserialport,chardev=reports,name=reports \
	-chardev "file,id=status,path=$run/status" -device virtserialport,chardev=status,name=status \
	-serial "file:$run/console.log" -device virtio-rng-pci \
	-kernel "$vm/$kernel/vmlinuz" -initrd "$run/initramfs.cpio" \
	-append "console=ttyS0 quiet panic=-1 apparmor=1 security=apparmor systemd.unified_cgroup_hierarchy=1 systemd.show_status=no \
fstab=no luks=no systemd.gpt_auto=no \
vm.repo=$repo vm.kernel=$kernel vm.run=$run vm.init=$init" </dev/null &
emulator=$!
exec 3>&-
ended=0
wait "$emulator" || ended=$?
wait "$printer"
((ended != 124)) || echo "vm: it did not end in $seconds s" >&2
cp "$run/console.log" "$repo/.tools/reports/vm-console.log" 2>/dev/null || true
status=$(cat "$run/status" 2>/dev/null || true)
if [[ -z $status ]]; then
	echo 'vm: the machine did not come to its end; the end of .tools/reports/vm-console.log:' >&2
	tail -n 30 "$run/console.log" >&2
	exit 125
fi
tar -C "$repo/.tools" -xf "$run/reports.tar"
exit "$status"
