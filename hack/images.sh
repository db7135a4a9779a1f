#!/usr/bin/env bash
# Builds the test images into .tools/images/test-images.tar, under the names that the CRI tests and the demo use, from Debian's
# busybox, nginx, procps and util-linux. A second run does nothing. `images.sh names` lists the names in the archive.
# It must never talk to an image registry, nor install nginx (a package's script would start a server on this machine).
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tools=$(dirname "$hack")/.tools
archive=$tools/images/test-images.tar
work=$tools/images/work

# unpack PACKAGE...: the newest packages of the distribution, unpacked beneath work/root without their scripts.
unpack() {
	mkdir -p "$work/deb" "$work/root"
	(cd "$work/deb" && chmod 777 . && { apt-get download -qq "$@" >/dev/null 2>&1 || { apt-get update -qq && apt-get download -qq "$@"; }; }) >&2
	for deb in "$work"/deb/*.deb; do dpkg-deb -x "$deb" "$work/root"; done
	rm -r "$work/deb"
}

# place FOLDER PROGRAM...: each program with the libraries that it needs, at their own places beneath FOLDER.
place() {
	local folder=$1 program found lib libs
	shift
	libs=$(find "$work/root" -name '*.so.*' -printf '%h\n' | sort -u | paste -sd:)
	for program in "$@"; do
		found=$(find "$work/root" -path "*/bin/$program" -o -path "*/sbin/$program" | head -n 1)
		install -D -m 755 "$found" "$folder/usr/bin/$program"
		# "libc.so.6 => /lib/x/libc.so.6 (0x…)", or the loader: "/lib64/ld-linux-x86-64.so.2 (0x…)"
		for lib in $(LD_LIBRARY_PATH=$libs ldd "$found" | sed -nE 's/.*=> (not found|\/[^ ]*).*/\1/p; s/^\t(\/[^ ]*) .*/\1/p'); do
			[[ $lib == /* ]] || { echo "images: $program: a library is missing: $(ldd "$found")" >&2 && return 1; }
			[[ -e $folder/${lib#"$work/root"} ]] || install -D -m 755 "$lib" "$folder/${lib#"$work/root"}"
		done
	done
}

main() {
	local stamp started=$SECONDS
	stamp=$(cat "${BASH_SOURCE[0]}" "$hack"/images/* | sha256sum)
	[[ -e $archive && $(cat "$archive.stamp" 2>/dev/null) == "$stamp" ]] && return 0
	rm -rf "$work"
	mkdir -p "$work/programs"
	# busybox-static's shell runs applets without an execve: it would not notice a masked /bin/ls. The shell is that of busybox.
	unpack busybox
	mv "$work/root/bin/busybox" "$work/root/bin/shell"
	unpack busybox-static nginx procps libproc2-0 util-linux libsmartcols1
	install -m 755 "$work/root/bin/busybox" "$work/programs/busybox"
	"$work/root/bin/busybox" --list-full >"$work/programs/applets"
	cc -static -Os -s -o "$work/programs/pause" "$hack/images/pause.c"
	cc -static -Os -s -o "$work/programs/nnp" "$hack/images/nnp.c"
	place "$work/programs/shell" shell
	place "$work/programs/nginx" nginx
	place "$work/programs/utilities" pgrep ipcs ipcmk lsns prlimit findmnt
	python3 "$hack/images/archive.py" "$work/programs" "$archive.new"
	rm -rf "$work"
	mv "$archive.new" "$archive"
	echo "$stamp" >"$archive.stamp"
	echo "images: $archive: $((SECONDS - started)) s"
}

case ${1:-} in
'') main ;;
names) tar -xOf "$archive" index.json | python3 -c 'import json, sys
for m in json.load(sys.stdin)["manifests"]: print(m["annotations"]["io.containerd.image.name"])' ;;
*) echo "usage: images.sh [names]" >&2 && exit 2 ;;
esac
