#!/usr/bin/env bash
# One subject of compat.sh (containerd-VERSION or docker-VERSION), as process 1 of namespaces of its own: whatever it leaves, but cgroups,
# ends with it. /run is a tmpfs, so that /run/containerd/s, which every containerd before 2.3 uses whatever it is told, is not the
# machine's; /etc and /var are written to on a tmpfs. It prints a line for each check.
# It must never run outside of those namespaces.
set -euo pipefail

hack=$(dirname "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)")
tools=$(dirname "$hack")/.tools
subject=${1:?usage: inside.sh SUBJECT MARK}
version=${subject#*-}
[[ $$ == 1 ]] || { echo 'inside.sh: only compat.sh runs this' >&2 && exit 2; }
log=$tools/reports/compat-$subject.log
mark=${2:?}
run=/run/$mark
shims=$(realpath "${SHIM_DIR:-$tools/../target/release}")
: >"$log"

# shellcheck source=../check.sh
source "$hack/check.sh"
# shellcheck source=daemon.sh
source "$hack/compat/daemon.sh"
# shellcheck source=smoke.sh
source "$hack/compat/smoke.sh"
# shellcheck source=docker.sh
source "$hack/compat/docker.sh"

private_files() {
	mount -n -t tmpfs -o mode=755 compat /run
	mkdir -p "$run/logs"
	local one
	for one in etc var; do
		mkdir -p "$run/over/$one"/{upper,work}
		mount -n -t overlay compat -o "lowerdir=/$one,upperdir=$run/over/$one/upper,workdir=$run/over/$one/work" "/$one"
	done
	ip link set lo up
}

programs() { # the first in PATH are those of the version
	PATH=$shims
	[[ ! -d $tools/compat/$1 ]] || PATH+=:$tools/compat/$1/usr/bin:$tools/compat/$1/usr/sbin
	PATH+=:$2
}

containerd_subject() {
	programs "$subject" "$tools/bin:$machine_path"
	configure_containerd "$version"
	is 'containerd starts' '' launch_containerd
	is "containerd is $version" "*Server:*Version:*$version.*" ctr version
	local one
	for one in "$ns" k8s.io; do
		ctr -n "$one" images import "$tools/images/test-images.tar" >>"$log" 2>&1 || true
		is "image of $one" "*$image*" ctr -n "$one" images ls -q
	done
	mounts >"$run/mounts"
	ctr_smoke
	for one in podsandbox shim; do
		! grep -q "runtimes.$one\]" "$run/config.toml" || cri_smoke $one
	done
	end TERM containerd
}

machine_path=$PATH
private_files
case $subject in
containerd-*) containerd_subject ;;
docker-*) docker_subject ;;
*) echo "inside.sh: $subject?" >&2 && exit 2 ;;
esac
closing
