#!/usr/bin/env bash
# Runs a command while a registry serves the test images to the private containerd: registry.sh COMMAND…, for example
# `registry.sh hack/containerd.sh run -- crictl pull registry.k8s.io/pause:3.9`. Its status is the command's. --unpack: only fetches it.
# The registry is Debian's docker-registry, at 127.0.0.1:5000 in containerd's network namespace. containerd.sh has it asked for the
# images of every registry, so that names are what they are elsewhere. Its files are beside containerd's, and go with them.
# It must never fetch an image from elsewhere, nor outlive the command, nor install the package (its script would start a server).
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tools=$(dirname "$hack")/.tools
(($#)) || { sed -n '2,3s/^# //p' "${BASH_SOURCE[0]}" >&2; exit 2; }

# unpack PACKAGE PROGRAM: a program of the distribution's newest package into .tools/bin.
unpack() {
	local work=$tools/$1
	[[ ! -x $tools/bin/$1 ]] || return 0
	rm -rf "$work"
	mkdir -p "$work"
	chmod 777 "$work" # apt-get downloads as a user of its own
	(cd "$work" && { apt-get download -qq "$1" >/dev/null 2>&1 || { apt-get update -qq && apt-get download -qq "$1"; }; }) >&2
	dpkg-deb -x "$work"/*.deb "$work"
	mv "$work/$2" "$tools/bin/$1"
	rm -r "$work"
}

# The archive's images, each under its own name without the registry's. `default` has them all; CRI removes its own as it likes.
push() {
	local name stamp=$tools/images/test-images.tar.stamp
	! cmp -s "$stamp" "$dir/pushed" || return 0
	for name in $("$hack/images.sh" names); do
		"$hack/containerd.sh" run -- ctr -n default images push --plain-http "127.0.0.1:5000/${name#*/}" "$name" >/dev/null
	done
	cp "$stamp" "$dir/pushed"
}

if [[ $1 == --unpack ]]; then
	mkdir -p "$tools/bin"
	unpack docker-registry usr/bin/docker-registry
	exit
fi
"$hack/containerd.sh" start
eval "$("$hack/containerd.sh" env)"
dir=${CONTAINERD_LOG%/*}/registry
mkdir -p "$dir"
unpack docker-registry usr/bin/docker-registry
cat >"$dir/config.yml" <<-END
	version: 0.1
	log: { level: error, accesslog: { disabled: true } }
	storage: { filesystem: { rootdirectory: $dir/storage } }
	http: { addr: "127.0.0.1:5000" }
END
# It ends with this script, however that ends.
"$hack/containerd.sh" run -- setpriv --pdeathsig KILL docker-registry serve "$dir/config.yml" >"$dir/log" 2>&1 &
registry=$!
trap 'kill -KILL $registry 2>/dev/null || true; wait $registry 2>/dev/null || true' EXIT
for ((i = 0; ; i++)); do
	! "$hack/containerd.sh" run -- wget -qO- http://127.0.0.1:5000/v2/ >/dev/null 2>&1 || break
	if ((i == 100)) || [[ ! -e /proc/$registry ]]; then
		echo "registry: it does not answer; the end of $dir/log:" >&2
		tail -n 20 "$dir/log" >&2
		exit 1
	fi
	sleep 0.1
done
push
"$@"
