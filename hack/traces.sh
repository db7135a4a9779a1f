# What a pod can leave on a machine, listed and compared; sourced by the demo and by leak-check.sh after `containerd.sh env`.
# trace_mark, a regular expression, is part of the path of every cgroup that the caller makes.
# It must never take for ours what others do on the machine, another private containerd say; and what is there for a moment only is
# nobody's. A mount anywhere else counts: that would be one that got out of a container.
# shellcheck shell=bash

trace_mark=${trace_mark:-}
trace_kinds=(processes mounts cgroups networks sockets files descriptors keyrings)

# One line for each that there is; equal machines give equal lines.
trace() {
	local dir=${CONTAINERD_LOG%/*} run=${CONTAINERD_ADDRESS%/*} one pid args
	pid=$(cat "$dir/containerd.pid")
	case $1 in
	processes)
		for one in /proc/[0-9]*; do
			args=$(tr '\0' ' ' <"$one/cmdline") || continue
			if [[ $args == *"$run/"* ]] || { [[ -n $args ]] && grep -Eq "$trace_mark" "$one/cgroup"; }; then echo "${one#/proc/} $args"; fi
		done 2>/dev/null
		;;
	mounts)
		cut -d' ' -f5- "/proc/$pid/mountinfo" | sed -E 's/ (shared|master):[0-9]+//g' |
			awk -v d="$dir/" -v r="$run/" 'index($1, d) == 1 || index($1, r) == 1 || $1 !~ /\/\.tools\/|^\/run\/rs-/'
		;;
	cgroups) find /sys/fs/cgroup -type d 2>/dev/null | grep -E "$trace_mark" ;;
	# The private network namespace has one end of each pod's link, CRI a file for each pod's network namespace.
	networks)
		nsenter --net="$CRI_NETNS" ip -o link 2>/dev/null | sed 's/^[0-9]*: \([^:]*\):.*/link \1/'
		find "$dir/state/io.containerd.grpc.v1.cri/netns" "$dir/cni/ipam" -type f ! -name 'last_reserved_ip.*'
		;;
	sockets)
		nsenter --net="$CRI_NETNS" awk -v run="$run/" 'index($8, run) == 1 { print $8 }' /proc/net/unix
		find "$run" -type s
		;;
	files)
		find "$dir/state" "$dir/root" "$run"
		find /run/containerd 2>/dev/null | grep -E "$trace_mark"
		;;
	descriptors) find "/proc/$pid/fd" -type l -printf '%l\n' 2>/dev/null | sed -E 's/(socket|pipe):.*/\1/' ;;
	keyrings) awk '{ $1 = $4 = ""; print }' /proc/keys ;;
	esac 2>/dev/null | sort || true
}

# traces FOLDER: all of it, a file for each kind.
traces() {
	local kind
	mkdir -p "$1"
	for kind in "${trace_kinds[@]}"; do trace "$kind" >"$1/$kind"; done
}

# new_traces BEFORE AFTER: what AFTER has and BEFORE has not.
new_traces() {
	local kind
	for kind in "${trace_kinds[@]}"; do comm -13 "$1/$kind" "$2/$kind" | sed "s/^/$kind: /"; done
}

# compare_traces BEFORE AFTER SECONDS: takes AFTER until nothing is new, and prints a table; fails if something stays new.
# containerd collects its snapshots a moment after the answer.
compare_traces() {
	local kind end=$((SECONDS + $3))
	traces "$2"
	while [[ -n $(new_traces "$1" "$2") ]] && ((SECONDS < end)); do
		sleep 0.5
		traces "$2"
	done
	printf '   %-12s %7s %7s\n' '' before after
	for kind in "${trace_kinds[@]}"; do
		printf '   %-12s %7d %7d\n' "$kind" "$(wc -l <"$1/$kind")" "$(wc -l <"$2/$kind")"
	done
	[[ -z $(new_traces "$1" "$2") ]]
}
