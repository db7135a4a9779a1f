#!/usr/bin/env bash
# A pod of two containers lives and dies, to be watched: a web server, and a client that fetches its page over localhost. On a private
# containerd of its own, in .tools/demo. Its status says whether all went as it should and nothing is left.
# It must never leave anything running, whichever way it ends, nor touch what it did not start.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(dirname "$hack")
dir=$repo/.tools/demo
work=$(mktemp -d)
# shellcheck source=versions.env
source "$hack/versions.env"
# shellcheck source=traces.sh
source "$hack/traces.sh"
bold='' green='' red='' plain=''
if [[ -t 1 ]]; then bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'; fi
step=0
cgroup=rs-demo-$$ # kubelet would make it
trace_mark=$cgroup

title() {
	step=$((step + 1))
	printf '\n%s%d. %s%s\n' "$bold" "$step" "$1" "$plain"
}
good() { printf '   %s✓%s %s\n' "$green" "$plain" "$1"; }
bad() { printf '   %s✗ %s%s\n' "$red" "$1" "$plain" && return 1; }
# show WORD…: what a user would type. The command itself runs in the network namespace of the private containerd.
show() { printf '   $ %s\n' "$*"; }
# In the foreground: Ctrl-C reaches it.
cri() { timeout --foreground -k 1 60 nsenter --net="$CRI_NETNS" crictl "$@"; }
one() { cri inspect -o go-template --template "{{.$2}}" "$1"; }

end() {
	local status=$?
	trap '' INT TERM
	# A signal may have come while the output was another's.
	exec >&3
	timeout -k 5 120 "$hack/containerd.sh" stop "$dir" || status=1
	find /sys/fs/cgroup -depth -type d -name "$cgroup" -exec rmdir {} + 2>/dev/null || status=1
	if ((status == 0)); then
		printf '\n%sDone in %d s; containerd has ended, and its files are gone.%s\n' "$bold" $SECONDS "$plain"
	else
		mkdir -p "$repo/.tools/reports"
		cp "$dir/containerd.log" "$repo/.tools/reports/demo.log" || true
		printf '\n%sThe demo failed.%s All of it has been removed; .tools/reports/demo.log is the log of containerd.\n' "$red" "$plain"
	fi
	rm -rf "$work" "$dir"
	exit $status
}

prepare() {
	[[ $(id -u) == 0 ]] || bad 'this needs root: it makes namespaces, mounts and cgroups'
	"$hack/tools.sh"
	if [[ -z ${SHIM_DIR:-} ]]; then
		export SHIM_DIR=$repo/target/release
		[[ ${BUILD:-yes} == no ]] || "$hack/build.sh" >/dev/null
	fi
	mkdir -p "$dir"
	exec 3>&1
	trap end EXIT
	trap 'exit 130' INT TERM
	"$hack/containerd.sh" start "$dir" 3>&- # imports the images too
	eval "$("$hack/containerd.sh" env "$dir")"
	# A PID namespace for each container (1), as Kubernetes has it by default.
	echo "{\"metadata\": {\"name\": \"demo\", \"uid\": \"demo\", \"namespace\": \"default\"}, \"hostname\": \"demo\", \"log_directory\": \"$work\",
		\"linux\": {\"cgroup_parent\": \"/$cgroup\", \"security_context\": {\"namespace_options\": {\"pid\": 1}}}}" >"$work/pod.json"
	# A first pod, unseen: CNI makes its bridge once, and containerd its folders.
	pod=$(cri runp --runtime rs "$work/pod.json")
	container first busybox ', "command": ["sleep", "1000"]' >/dev/null
	cri rmp -f "$pod" >/dev/null
	traces "$work/before"
	good "containerd $CONTAINERD_VERSION runs; its handler rs has runtime_type = 'io.containerd.rs.v2' and sandboxer = 'shim'"
}

# container NAME IMAGE FIELDS: a container of CRI in the pod, started.
container() {
	echo "{\"metadata\": {\"name\": \"$1\"}, \"image\": {\"image\": \"docker.io/library/$2:latest\"}, \"log_path\": \"$1.log\"
		$3, \"linux\": {}}" >"$work/$1.json"
	show "crictl create \$POD $1.json pod.json; crictl start …"
	container=$(cri create "$pod" "$work/$1.json" "$work/pod.json")
	cri start "$container" >/dev/null
	[[ $(one "$container" status.state) == CONTAINER_RUNNING ]] || bad "$1 does not run"
	good "$1 runs ($2)"
}

run_pod() {
	show 'crictl runp --runtime rs pod.json'
	pod=$(cri runp --runtime rs "$work/pod.json")
	[[ $(cri inspectp -o go-template --template '{{.status.state}}' "$pod") == SANDBOX_READY ]] || bad 'the pod is not ready'
	good "pod ${pod:0:13} is ready, at $(cri inspectp -o go-template --template '{{.status.network.ip}}' "$pod")"
	container web nginx ''
	web=$container
	# shellcheck disable=SC2089
	container client busybox ', "command": ["sh", "-c", "until wget -qO- http://localhost/; do sleep 0.1; done; exec sleep 1000"]'
	client=$container
}

look_inside() {
	local page name i
	show 'crictl logs $CLIENT'
	for ((i = 0; i < 100; i++)); do
		page=$(cri logs "$client" 2>/dev/null)
		[[ $page != *'It works!'* ]] || break
		sleep 0.1
	done
	echo "   ${page:-(nothing)}"
	[[ $page == *'It works!'* ]] || bad 'no page in the log of the client'
	good 'the client fetched the page of the web server over localhost'
	show 'crictl exec $WEB hostname'
	name=$(cri exec "$web" hostname)
	echo "   $name"
	[[ $name == demo ]] || bad 'exec does not work'
	good 'exec works'
}

processes() {
	local server
	server=$(cri inspectp -o go-template --template '{{.info.pid}}' "$pod")
	show "ps -o pid,nlwp,rss,args --forest   # the shim and what is beneath it"
	printf '   %7s %7s %9s  %s\n' PID THREADS RSS ''
	tree "$server" ''
	[[ $(sed -n 's/^Threads:\t//p' "/proc/$server/status") == 1 ]] || bad 'the shim has more than one thread'
	[[ $(pgrep -fc -- "-address $CONTAINERD_ADDRESS ") == 1 ]] || bad 'there is more than one shim'
	! pgrep -x pause -P "$server" >/dev/null || bad 'there is a pause process'
	good "one shim, one thread, $(sed -nE 's/^RssAnon:\s*//p' "/proc/$server/status") of memory of its own; no pause container, no runc"
}
# tree PID INDENT
tree() {
	local child
	printf '   %7d %7d %6d kB  %s%s\n' "$1" "$(sed -n 's/^Threads:\t//p' "/proc/$1/status")" \
		"$(sed -nE 's/^VmRSS:\s*([0-9]+) kB/\1/p' "/proc/$1/status")" "$2" "$(tr '\0' ' ' <"/proc/$1/cmdline" | cut -c-60)"
	for child in $(pgrep -P "$1"); do tree "$child" "${2// └ /   } └ "; done
}

remove() {
	show 'crictl stopp $POD; crictl rmp $POD'
	cri stopp "$pod" >/dev/null
	good 'stopped'
	cri rmp "$pod" >/dev/null
	[[ -z $(cri pods -q) ]] || bad 'the pod is still there'
	good 'removed'
}

nothing_left() {
	if compare_traces "$work/before" "$work/after" 20; then
		good 'as before: nothing is left of the pod'
	else
		new_traces "$work/before" "$work/after" | sed 's/^/   /'
		bad 'something is left'
	fi
}

title 'What it takes: a private containerd, in its own network'
prepare
title 'A pod with a web server and a client'
run_pod
title 'It works'
look_inside
title 'Its processes'
processes
title 'Its end'
remove
title 'What is left on this machine'
nothing_left
