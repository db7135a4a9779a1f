#!/usr/bin/env bash
# Every test: what cargo runs (unit, golden plans, the child, root), then the end-to-end checks.
# It must never skip what a missing package would skip: Debian's busybox-static is installed if it is not there.
set -euo pipefail

repo=$(dirname "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)")
cd "$repo"
[[ $(id -u) == 0 ]] || { echo "test: namespaces and mounts want root" >&2; exit 1; }
hack/tools.sh
# A dynamic busybox, as initramfs-tools wants it, would do nothing in a root file system of its own.
if { [[ ! -x /bin/busybox ]] || ldd /bin/busybox >/dev/null 2>&1; } && command -v apt-get >/dev/null; then
	echo "test: installing busybox-static"
	apt-get install -y -qq busybox-static >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq busybox-static >/dev/null; }
fi
# tests/seccomp links the library that our filters are compared with.
if [[ ! -e /usr/include/seccomp.h ]]; then
	echo "test: installing libseccomp-dev"
	apt-get install -y -qq libseccomp-dev >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq libseccomp-dev >/dev/null; }
fi
# shim/tests/footprint.rs measures what is shipped. A test runs in its package's folder: no relative path.
shim=$(timeout -k 10 1500 hack/build.sh)
SHIM_BINARY=$(realpath "$shim") timeout -k 10 1500 cargo test --workspace --locked
# The holder has no loader in its empty root: its test wants a static test binary.
host=$(rustc -vV | sed -n 's/^host: //p')
timeout -k 10 600 cargo test --locked --test runtime --target "$host" \
	--config "target.$host.rustflags=['-C','target-feature=+crt-static']" process_1 -- userpods::
hack/e2e.sh
