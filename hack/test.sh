#!/usr/bin/env bash
# Every test: what cargo runs (unit, golden plans, the child, root), then the end-to-end checks.
# It installs busybox-static and libseccomp-dev where they are missing: no test is skipped for want of a package. It must never take
# a package away.
set -euo pipefail

repo=$(dirname "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)")
cd "$repo"
[[ $(id -u) == 0 ]] || { echo "test: namespaces and mounts want root" >&2; exit 1; }
hack/tools.sh
# install PACKAGE
install() {
	local install=(apt-get install -y -qq --no-remove "$1")
	command -v apt-get >/dev/null || { echo "test: $1 is missing" >&2; exit 1; }
	echo "test: installing $1"
	"${install[@]}" >/dev/null 2>&1 || { apt-get update -qq && "${install[@]}" >/dev/null; }
}
# A dynamic busybox would do nothing in a root file system of its own. Debian has but one of the two at a time.
[[ ! -x /bin/busybox ]] || ! ldd /bin/busybox >/dev/null 2>&1 || {
	echo 'test: busybox is not static, and no package is taken away here: apt-get install busybox-static' >&2
	exit 1
}
[[ -x /bin/busybox ]] || install busybox-static
# tests/seccomp links the library that our filters are compared with.
[[ -e /usr/include/seccomp.h ]] || install libseccomp-dev
# shim/tests/footprint.rs measures what is shipped. A test runs in its package's folder: no relative path.
shim=$(timeout -k 10 1500 hack/build.sh)
SHIM_BINARY=$(realpath "$shim") timeout -k 10 1500 cargo test --workspace --locked
# The holder has no loader in its empty root: its test wants a static test binary.
host=$(rustc -vV | sed -n 's/^host: //p')
timeout -k 10 600 cargo test --locked --test runtime --target "$host" \
	--config "target.$host.rustflags=['-C','target-feature=+crt-static']" process_1 -- userpods::
hack/e2e.sh
