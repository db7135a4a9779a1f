#!/bin/busybox sh
# The first program of a virtual machine of vm.sh: the host's root read-only, below a layer of packages and a tmpfs; then its init.
# It must never mount the host's root writable.
set -e
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for word in $(cat /proc/cmdline); do
	case $word in vm.*=*) eval "$(echo "$word" | sed 's/^vm\.\([a-z]*\)=\(.*\)$/vm_\1="\2"/')" ;; esac
done
for module in $(cat /modules/order); do insmod "/modules/$module"; done
mkdir -p /host /new /rw
mount -t virtiofs -o ro host /host
mount -t tmpfs -o "size=80%,mode=755" rw /rw
mkdir -p /rw/upper /rw/work
cp -a "/host$vm_repo/.tools/vm/layer/." /rw/upper/ # overlayfs wants no layer that lies within another
mount -t overlay -o lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work root /new
mkdir -p "/new/usr/lib/modules/$(uname -r)"
mount --bind "/host$vm_repo/.tools/vm/$vm_kernel/modules" "/new/usr/lib/modules/$(uname -r)"
# A repository beneath /tmp stays.
mkdir /repo
mount --bind "/new$vm_repo" /repo
# Where containerd and tests write: an overlay cannot be the upper directory of another.
for folder in /tmp /run; do mount -t tmpfs -o mode=755 tmpfs "/new$folder"; done
mkdir -p "/new$vm_repo"
mount --bind /repo "/new$vm_repo"
for folder in "$vm_repo/.tools/run" "$vm_repo/.tools/reports"; do
	mkdir -p "/new$folder"
	mount -t tmpfs -o mode=755 tmpfs "/new$folder"
done
chmod 1777 /new/tmp
mkdir -p /new/run/vm
for port in /sys/class/virtio-ports/*; do ln -s "/dev/${port##*/}" "/new/run/vm/$(cat "$port/name")"; done
case $vm_init in
*/systemd) # One unit of ours, and none of those that somebody has enabled on the machine.
	for target in sockets timers paths sysinit basic local-fs; do rm -rf "/new/etc/systemd/system/$target.target.wants"; done
	mkdir -p /new/etc/systemd/system
	cat >/new/etc/systemd/system/vm.service <<-UNIT
		[Unit]
		Requires=basic.target dbus.service
		After=basic.target dbus.service
		[Service]
		ExecStart=$vm_repo/hack/vm/guest.sh $vm_run
		Delegate=yes
		TasksMax=infinity
	UNIT
	set -- --unit=vm.service
	;;
*) set -- "$vm_run" ;;
esac
for folder in proc sys dev; do mount --move "/$folder" "/new/$folder"; done
exec switch_root /new "$vm_init" "$@"
