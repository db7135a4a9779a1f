#!/bin/sh
# Builds the release binary, static and not relocatable, and prints its path.
#
# musl where rustup has (or can get) the target, else the host's glibc linked statically. Either way
# a target is named, so that the flags reach neither build scripts nor procedural macros.
set -eu
cd "$(dirname "$0")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
musl="${host%%-*}-unknown-linux-musl"
if command -v rustup >/dev/null; then
	rustup target add "$musl" >/dev/null 2>&1 || true
fi
if [ -d "$(rustc --print sysroot)/lib/rustlib/$musl/lib" ]; then
	target=$musl
else
	target=$host
fi

SHIM_REVISION=$(git describe --always --abbrev=12 --exclude='*' --dirty 2>/dev/null || echo unknown)
SHIM_RUSTC=$(rustc --version | cut -d' ' -f1,2)
export SHIM_REVISION SHIM_RUSTC

cargo build --release --locked --package containerd-shim-rs-v2 --target "$target" --config \
	"target.$target.rustflags=['-C','target-feature=+crt-static','-C','relocation-model=static']" >&2

out="${CARGO_TARGET_DIR:-target}"
mkdir -p "$out/release"
# Not over the old file: it may be running.
install -m 0755 "$out/$target/release/containerd-shim-rs-v2" "$out/release/.containerd-shim-rs-v2"
mv -f "$out/release/.containerd-shim-rs-v2" "$out/release/containerd-shim-rs-v2"
echo "$out/release/containerd-shim-rs-v2"
