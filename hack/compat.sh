#!/usr/bin/env bash
# The same smoke on each containerd and docker that the shim is known to serve: compat.sh [SUBJECT…], of all when none is given. Others than
# the pinned containerd are unpacked from Debian's packages. Each runs in PID, mount and network namespaces of its own
# (compat/inside.sh). SHIM_DIR (target/release) holds containerd-shim-rs-v2. COMPAT_SECONDS (150): for each subject. Ends with a count; its
# status is that of all.
# It must never install a package, start a service of this machine, nor leave anything on it.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tools=$(dirname "$hack")/.tools
all=(containerd-1.6 containerd-1.7 containerd-2.1 containerd-2.3 docker-26.1 docker-28.5)
# shellcheck source=versions.env
source "$hack/versions.env"
# shellcheck source=check.sh
source "$hack/check.sh"
# shellcheck source=compat/packages.sh
source "$hack/compat/packages.sh"
mark=rs-compat-$$
work=$(mktemp -d)

# What this can leave on the machine, and what other programs do there at the same time is not: everything of ours has the mark in its name,
# and the folders are those that containerd, docker and CNI make where nobody tells them otherwise.
machine() {
	local one
	find /sys/fs/cgroup /run /var/lib /etc -path "*$mark*" 2>/dev/null || true
	for one in /run/{containerd,docker,docker.pid,netns} /var/lib/{cni,containerd,docker} /etc/{cni,docker}; do [[ ! -e $one ]] || echo "$one"; done
	grep -F "$mark" /proc/self/mountinfo || true
	for one in /proc/[0-9]*; do
		[[ $one == "/proc/$$" ]] || { tr '\0' ' ' <"$one/cmdline" && cat "$one/cgroup"; } 2>/dev/null | grep -F "$mark" || true
	done
}
new_on_machine() { comm -13 "$work/before" <(machine | sort); }

# The folders of containerd's namespace and of the pods' parent, which kubelet would make and remove. Processes that were killed take a moment.
remove_cgroups() {
	for ((i = 0; i < 50; i++)); do
		find /sys/fs/cgroup -depth -type d -path "*$mark*" -exec rmdir {} + 2>/dev/null && return 0
		sleep 0.1
	done
}

# The end of unshare is the end of all that it has started.
inside=''
end() {
	local status=$?
	[[ -z $inside ]] || kill -KILL "$inside" 2>/dev/null || true
	remove_cgroups
	rm -rf "$work"
	exit $status
}
trap end EXIT
trap 'exit 130' INT TERM

# smoke SUBJECT: a line for each check, and its count into passed and failed.
smoke() {
	local status=0 counts ok bad end=$((SECONDS + ${COMPAT_SECONDS:-150}))
	unshare --mount --net --pid --fork --kill-child --mount-proc --propagation private \
		bash "$hack/compat/inside.sh" "$1" "$mark" >"$work/out" 2>&1 </dev/null &
	inside=$!
	while [[ -n $(jobs -rp) ]] && ((SECONDS < end)); do sleep 0.1; done
	kill -KILL "$inside" 2>/dev/null || true
	wait "$inside" 2>/dev/null || status=$?
	inside=''
	sed "s/^\(ok  \|FAIL\) /\1 $1: /; /^[0-9]* passed, /d" "$work/out"
	counts=$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed.*/\1 \2/p' "$work/out")
	# Without its last line it did not come to its end.
	read -r ok bad <<<"${counts:-$(grep -c '^ok ' "$work/out" || true) 1}"
	[[ -n $counts ]] || echo "FAIL $1: ended early, with status $status"
	passed=$((passed + ok)) failed=$((failed + bad))
	((bad == 0)) || echo "     the log of its daemons: .tools/reports/compat-$1.log"
}

main() {
	local subject
	[[ $(id -u) == 0 ]] || { echo 'compat: this needs root: it makes namespaces, mounts and cgroups' >&2 && exit 1; }
	mkdir -p "$tools/reports" "$tools/compat"
	"$hack/tools.sh"
	"$hack/images.sh"
	for subject in "$@"; do
		[[ $subject == containerd-2.3 ]] || unpack "$subject" "$tools/compat/$subject"
		case $subject in
		docker-2[0-6].*) unpack containerd-1.7 "$tools/compat/containerd-1.7" ;;
		docker-*) unpack containerd-2.1 "$tools/compat/containerd-2.1" ;;
		esac
	done
	machine | sort >"$work/before"
	for subject in "$@"; do smoke "$subject"; done
	remove_cgroups
	is 'nothing is left on this machine' '' new_on_machine
	closing
}

(($#)) || set -- "${all[@]}"
main "$@"
