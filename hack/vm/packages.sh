# What the virtual machines of vm.sh are made of, from Debian's packages; sourced by vm.sh.
# It must never install a kernel on this machine, nor take a package away: what is for the guests alone is unpacked beneath .tools/vm.
# shellcheck shell=bash

# The emulator, what an initramfs is made with, and what runs in the guest. Where systemd or dbus is missing, as in a container,
# nothing starts their services.
install_emulator() {
	local missing=() pair
	for pair in qemu-system-x86_64:qemu-system-x86 cpio:cpio xz:xz-utils mkfs.ext4:e2fsprogs dbus-daemon:dbus systemctl:systemd; do
		command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
	done
	[[ -x /usr/lib/qemu/virtiofsd || -x /usr/libexec/virtiofsd ]] || missing+=("$(apt-cache show virtiofsd >/dev/null 2>&1 && echo virtiofsd || echo qemu-system-common)")
	# Debian has but one of the two at a time.
	[[ ! -x /bin/busybox ]] || ! ldd /bin/busybox >/dev/null 2>&1 || {
		echo 'vm: busybox is not static, and no package is taken away here: apt-get install busybox-static' >&2
		return 1
	}
	[[ -x /bin/busybox ]] || missing+=(busybox-static)
	((${#missing[@]})) || return 0
	echo "vm: installing Debian packages: ${missing[*]}" >&2
	local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends --no-remove "${missing[@]}")
	"${install[@]}" >/dev/null 2>&1 || { apt-get update -qq && "${install[@]}" >/dev/null; }
}

# apt_of SUITE COMMAND…: apt with that suite alone, and with lists of its own: the machine's are left as they are.
apt_of() {
	local suite=$1 folder=$vm/apt/$1 mirror
	shift
	mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
	mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:?no Debian archive in the sources of apt} $suite main" >"$folder/sources.list"
	"$@" -qq -o Dir::Etc::SourceList="$folder/sources.list" -o Dir::Etc::SourceParts=- -o Dir::State::Lists="$folder/lists" \
		-o Dir::Cache="$folder/cache" -o APT::Sandbox::User=root -o Acquire::Languages=none
}

# of SUITE COMMAND ARGUMENT…: the same, with the options after the arguments of the command.
of() { local suite=$1; shift; apt_of "$suite" "$@"; }

# debs SUITE FOLDER PACKAGE…: the suite's newest packages, unpacked. The archive keeps no older ones, so what is pinned is the suite.
debs() {
	local suite=$1 folder=$2
	shift 2
	mkdir -p "$folder/deb"
	of "$suite" apt-get update >&2
	(cd "$folder/deb" && of "$suite" apt-get download "$@" >&2)
	for deb in "$folder"/deb/*.deb; do dpkg-deb -x "$deb" "$folder"; done
	rm -r "$folder/deb"
}

# kernel NAME SUITE: a kernel with its modules in $vm/NAME: vmlinuz, modules.
kernel() {
	local name=$1 suite=$2 package
	[[ $(cat "$vm/$name/stamp" 2>/dev/null) != "$suite" ]] || return 0
	echo "vm: the kernel of $suite" >&2
	rm -rf "${vm:?}/$name"
	mkdir -p "$vm/$name"
	of "$suite" apt-get update >&2
	package=$(of "$suite" apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*cloud-amd64\)$/\1/p' | head -n 1)
	debs "$suite" "$vm/$name/unpacked" "${package:?no kernel in $suite}"
	mv "$vm/$name"/unpacked/boot/vmlinuz-* "$vm/$name/vmlinuz"
	# What modprobe reads Debian makes when a kernel is installed; the layer has a depmod.
	LD_LIBRARY_PATH=$(dirname "$(find "$vm/layer" -name libkmod.so.2)") bash -c 'exec -a depmod "$@"' - "$vm/layer/usr/bin/kmod" \
		-b "$vm/$name/unpacked" "${package#linux-image-}"
	find "$vm/$name/unpacked" -type d -path '*/lib/modules/*' -prune -exec mv {} "$vm/$name/modules" \;
	rm -r "$vm/$name/unpacked"
	echo "$suite" >"$vm/$name/stamp"
}

# What the guests have and this machine may not: kmod and AppArmor's parser; a layer above the machine's own root, whose /lib and
# /sbin are links.
layer() {
	local folder=$vm/layer one
	[[ $(cat "$vm/layer.stamp" 2>/dev/null) != "$base_suite $*" ]] || return 0
	echo "vm: packages of the guest: $*" >&2
	rm -rf "$folder"
	debs "$base_suite" "$folder" "$@"
	mkdir -p "$folder/usr"
	for one in bin sbin lib lib64; do
		[[ ! -d $folder/$one || -L $folder/$one ]] || { cp -a "$folder/$one" "$folder/usr/" && rm -r "${folder:?}/$one"; }
	done
	echo "$base_suite $*" >"$vm/layer.stamp"
}

