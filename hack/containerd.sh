#!/usr/bin/env bash
# A private containerd for tests and demos: its own network and IPC namespaces, root, state, sockets, CNI and log, beside any that
# the machine runs. CRI handlers: rs (the shim is the sandbox), rs-streaming (the same, with streams for stdio), rs-podsandbox (the
# shim, pause mode), runc (the peer).
#
#   containerd.sh start [DIR]      start, wait until it answers, import the test images (IMAGES=no: do not)
#   containerd.sh restart [DIR]    kill -9 containerd alone, start it again on the same state; pods go on
#   containerd.sh stop [DIR]       end all pods and containerd, remove everything that was made (the log stays)
#   containerd.sh env [DIR]        lines to eval: CONTAINERD_ADDRESS, CONTAINER_RUNTIME_ENDPOINT, CRI_CONFIG_FILE, CRI_NETNS, PATH …
#   containerd.sh run [DIR] -- COMMAND…   run a command with that environment, in those namespaces
#
# DIR is .tools/run. SHIM_DIR (target/release) holds containerd-shim-rs-v2; LOG_LEVEL (info) is containerd's, from the next start after a stop.
# crictl's exec, attach and port-forward need `run --`: containerd's streaming server listens in that network namespace.
# It must never touch the machine's own containerd, network, cgroup mounts or CNI files, nor end a process that is not its own.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(dirname "$hack")
tools=$repo/.tools
pause_image=localhost/pause:local
export CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1 # cgroup v1: said once in the log is enough

usage() { sed -n '/^#   /s/^#   //p' "${BASH_SOURCE[0]}" >&2; exit 2; }

# Names, all from DIR alone. Sockets are below /run because a socket's path has at most 107 bytes.
names() {
	dir=$(realpath -m "${1:-$tools/run}")
	id=rs-$(printf %s "$dir" | sha256sum | cut -c1-8)
	run=/run/$id
	socket=$run/c.sock
	netns=$run/net
	ipcns=$run/ipc # critest leaves shared memory behind
	pidfile=$dir/containerd.pid
	[[ $dir != *[[:space:]\'\"\\]* ]] || { echo "containerd.sh: $dir: no blanks or quotes, please" >&2; exit 2; }
}

# The pid of our containerd, if it lives: the pid file may be stale, so the command line has to name our configuration.
alive() {
	pid=$(cat "$pidfile" 2>/dev/null) && [[ -n $pid ]] &&
		tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "--config $dir/config.toml "
}

config() {
	mkdir -p "$dir"/{root,state,opt,cni/net.d} "$run/s"
	chmod 700 "$run" "$run/s"
	# A file of its own beneath each: the machine's /etc/containerd, /etc/cni, /etc/cdi, /opt and /run/containerd are not read.
	cat >"$dir/config.toml" <<-EOF
		version = 4
		root = '$dir/root'
		state = '$dir/state'
		imports = []
		disabled_plugins = [
		  'io.containerd.nri.v1.nri', 'io.containerd.image-verifier.v1.bindir', 'io.containerd.internal.v1.tracing',
		  'io.containerd.tracing.processor.v1.otlp', 'io.containerd.snapshotter.v1.blockfile', 'io.containerd.snapshotter.v1.btrfs',
		  'io.containerd.snapshotter.v1.devmapper', 'io.containerd.snapshotter.v1.erofs', 'io.containerd.differ.v1.erofs',
		  'io.containerd.mount-handler.v1.erofs', 'io.containerd.snapshotter.v1.zfs',
		]
		[debug]
		  level = '${LOG_LEVEL:-info}'
		[plugins.'io.containerd.server.v1.grpc']
		  address = '$socket'
		[plugins.'io.containerd.server.v1.ttrpc']
		  address = '$socket.ttrpc'
		[plugins.'io.containerd.shim.v1.manager']
		  socket_dir = '$run/s'
		[plugins.'io.containerd.internal.v1.opt']
		  path = '$dir/opt'
		[plugins.'io.containerd.cri.v1.images']
		  snapshotter = '$(snapshotter)'
		[plugins.'io.containerd.cri.v1.images'.pinned_images]
		  sandbox = '$pause_image'
		[plugins.'io.containerd.cri.v1.images'.registry]
		  config_path = '$dir/registries'
		[plugins.'io.containerd.cri.v1.runtime']
		  restrict_oom_score_adj = true
		  disable_apparmor = $(apparmor && echo false || echo true)
		  netns_mounts_under_state_dir = true
		  drain_exec_sync_io_timeout = '10s'
		  cdi_spec_dirs = []
		[plugins.'io.containerd.cri.v1.runtime'.cni]
		  bin_dirs = ['$tools/bin']
		  conf_dir = '$dir/cni/net.d'
		[plugins.'io.containerd.cri.v1.runtime'.containerd]
		  default_runtime_name = 'rs'
		[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.rs]
		  runtime_type = 'io.containerd.rs.v2'
		  sandboxer = 'shim'
		[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.rs-streaming]
		  runtime_type = 'io.containerd.rs.v2'
		  sandboxer = 'shim'
		  io_type = 'streaming'
		[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.rs-podsandbox]
		  runtime_type = 'io.containerd.rs.v2'
		  sandboxer = 'podsandbox'
		[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
		  runtime_type = 'io.containerd.runc.v2'
		  sandboxer = 'podsandbox'
		[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
		  BinaryName = '$tools/bin/runc'
		  Root = '$dir/state/runc'
		  # The kubelet asks for the driver, and critest does as it: that of the host.
		  SystemdCgroup = $([[ -d /run/systemd/system && -e /sys/fs/cgroup/cgroup.controllers ]] && echo true || echo false)
	EOF
	# Whatever registry an image's name has, registry.sh's is asked; there is no way out of our network namespace.
	mkdir -p "$dir/registries/_default"
	echo "server = 'http://127.0.0.1:5000'" >"$dir/registries/_default/hosts.toml"
	# crictl gives every call 2 s unless told otherwise, and would read the machine's /etc/crictl.yaml.
	printf '%s: unix://%s\n' runtime-endpoint "$socket" image-endpoint "$socket" >"$dir/crictl.yaml"
	echo 'timeout: 60' >>"$dir/crictl.yaml"
	# The bridge lives in our own network namespace, so that neither its name nor its addresses can meet another's.
	cat >"$dir/cni/net.d/10-$id.conflist" <<-EOF
		{ "cniVersion": "1.0.0", "name": "$id", "plugins": [
		  { "type": "bridge", "bridge": "rs0", "isDefaultGateway": true, "hairpinMode": true,
		    "ipam": { "type": "host-local", "dataDir": "$dir/cni/ipam", "ranges": [[{ "subnet": "10.209.0.0/16" }]] } },
		  { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true } ] }
	EOF
}

# Whether containerd can load its default profile: the kernel has AppArmor, and its parser is there.
apparmor() {
	[[ $(cat /sys/module/apparmor/parameters/enabled 2>/dev/null) == Y && -d /sys/kernel/security/apparmor ]] && command -v apparmor_parser >/dev/null
}

# overlayfs, where DIR's file system can hold an upper directory.
snapshotter() {
	local probe=$dir/probe kind=native
	mkdir -p "$probe"/{l,u,w,m}
	if mount -n -t overlay "$id" -o "lowerdir=$probe/l,upperdir=$probe/u,workdir=$probe/w" "$probe/m" 2>/dev/null; then
		umount -n "$probe/m"
		kind=overlayfs
	fi
	rm -rf "$probe"
	echo $kind
}

ctr() { "$tools/bin/ctr" --address "$socket" "$@"; }

# within SECONDS COMMAND…: until the command succeeds.
within() {
	local end=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		((SECONDS < end)) || return 1
		sleep 0.05
	done
}

# What other programs make outside of DIR by default; only what was not there before is removed later.
outside=(/run/containerd /var/lib/cni)
for controller in /sys/fs/cgroup /sys/fs/cgroup/*/; do
	[[ ! -e ${controller%/}/cgroup.procs ]] || outside+=("${controller%/}"/{k8s.io,default})
done

launch() {
	local shims=${SHIM_DIR:-$repo/target/release}
	# A new session: Ctrl-C in the caller's terminal does not reach it. containerd looks up a shim in its PATH.
	(cd "$dir" && PATH=$(realpath -m "$shims"):$tools/bin:$PATH exec setsid nsenter --net="$netns" --ipc="$ipcns" \
		"$tools/bin/containerd" --config "$dir/config.toml" >>"$dir/containerd.log" 2>&1 </dev/null) &
	echo $! >"$pidfile"
	if ! { within 30 answers_or_ended && ctr version >/dev/null 2>&1; }; then
		echo "containerd.sh: it does not answer; the end of $dir/containerd.log:" >&2
		tail -n 20 "$dir/containerd.log" >&2
		return 1
	fi
}

answers_or_ended() { ctr version || gone "$(cat "$pidfile")"; }

start() {
	local path
	"$hack/tools.sh"
	if alive; then
		[[ ${IMAGES:-yes} == no ]] || import
		return 0
	fi
	mkdir -p "$dir"
	if [[ ! -e $dir/before ]]; then
		for path in "${outside[@]}"; do [[ ! -e $path ]] || echo "$path"; done >"$dir/before"
		: >"$dir/containerd.log"
	fi
	config
	if [[ ! -e $netns ]]; then
		touch "$netns" "$ipcns"
		unshare --net="$netns" --ipc="$ipcns" ip link set lo up
	fi
	launch
	[[ ${IMAGES:-yes} == no ]] || import
}

# The images in the namespaces of CRI and of plain `ctr`; again when the archive is another one.
import() {
	local ns archive=$tools/images/test-images.tar
	"$hack/images.sh"
	! cmp -s "$archive.stamp" "$dir/imported" || return 0
	for ns in k8s.io default; do
		ctr -n $ns images import --snapshotter "$(sed -n "s/.*snapshotter = '\(.*\)'/\1/p" "$dir/config.toml")" "$archive" >/dev/null
	done
	cp "$archive.stamp" "$dir/imported"
}

# kill_wait SIGNAL PID SECONDS: only ever by pid.
kill_wait() {
	kill "-$1" "$2" 2>/dev/null || return 0
	within "$3" gone "$2"
}
gone() { [[ ! -e /proc/$1 || $(cut -d' ' -f3 "/proc/$1/stat" 2>/dev/null) == Z ]]; }

restart() {
	alive || { echo "containerd.sh: it does not run" >&2 && return 1; }
	kill_wait KILL "$pid" 5
	launch
}

# Asks containerd to end every pod and container. Whatever fails here is ended by force afterwards.
end_pods() {
	local ns one
	CRI_CONFIG_FILE=$dir/crictl.yaml timeout 60 "$tools/bin/crictl" rmp -f -a || true
	for ns in $(timeout 5 "$tools/bin/ctr" --address "$socket" ns ls -q); do
		for one in $(ctr -n "$ns" tasks ls -q 2>/dev/null); do timeout 10 "$tools/bin/ctr" --address "$socket" -n "$ns" tasks rm -f "$one" || true; done
		for one in $(ctr -n "$ns" containers ls -q 2>/dev/null); do timeout 10 "$tools/bin/ctr" --address "$socket" -n "$ns" containers rm "$one" || true; done
	done
}

# The pids of shims that were started for our socket: their command line names it.
our_shims() {
	local one
	for one in /proc/[0-9]*; do
		if tr '\0' ' ' 2>/dev/null <"$one/cmdline" | grep -qF -- "-address $socket "; then echo "${one#/proc/}"; fi
	done
}

# our_cgroups NAMESPACE ID: those of a pod or container, the deepest first. CRI's ids are nobody else's; one that a user chose may
# be part of any name.
our_cgroups() {
	if random "$2"; then
		find /sys/fs/cgroup -depth -type d -name "*$2*"
	else
		find /sys/fs/cgroup -depth -type d \( -path "*/$1/$2" -o -path "*/$1/$2/*" \)
	fi 2>/dev/null
}
random() { [[ $1 =~ ^[0-9a-f]{64}$ ]]; }

# A cgroup goes only if nothing is beneath it; of a folder, all that is empty.
remove_empty() {
	if [[ $1 == /sys/* ]]; then rmdir "$1"; else find "$1" -depth -type d -exec rmdir {} +; fi 2>/dev/null || true
}

stop() {
	local one ns group target
	[[ -e $dir/before ]] || return 0
	# A containerd that has died is started again, to end its pods as it should.
	if alive || launch 2>>"$dir/containerd.log"; then
		alive
		end_pods >/dev/null 2>>"$dir/containerd.log"
		kill_wait TERM "$pid" 10 || kill_wait KILL "$pid" 5 || true
	fi
	for one in $(our_shims); do kill_wait KILL "$one" 5 || true; done
	for one in "$dir"/state/io.containerd.{runtime.v2.task,sandbox.controller.v1.shim}/*/*/; do
		[[ -d $one ]] || continue
		ns=$(basename "$(dirname "$one")") one=$(basename "$one")
		! random "$one" || rm -f /var/lib/cni/results/*"-$one-"*
		for group in $(our_cgroups "$ns" "$one"); do
			# On v2, 0 is a process that our PID namespace does not see.
			while read -r target; do ((target == 0)) || kill -9 "$target" 2>/dev/null || true; done <"$group/cgroup.procs"
			within 5 rmdir "$group" || true
		done
	done
	while read -r target; do umount -n -l "$target" || true; done < <(awk -v d="$dir/" -v r="$run/" 'index($5, d) == 1 || index($5, r) == 1 { print $5 }' /proc/self/mountinfo | sort -r)
	rm -rf "/var/lib/cni/results/$id"-* "/var/lib/cni/networks/$id"
	for one in "${outside[@]}"; do
		grep -qxF "$one" "$dir/before" || remove_empty "$one"
	done
	rm -rf "$run" "$dir"/{root,state,opt,cni,registries,registry,config.toml,crictl.yaml,imported,containerd.pid,before}
}

environment() {
	cat <<-EOF
		export CONTAINERD_ADDRESS='$socket'
		export CRI_CONFIG_FILE='$dir/crictl.yaml'
		export CONTAINER_RUNTIME_ENDPOINT='unix://$socket'
		export IMAGE_SERVICE_ENDPOINT='unix://$socket'
		export CRI_NETNS='$netns'
		export CONTAINERD_LOG='$dir/containerd.log'
		export CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1
		export PATH='$tools/bin':"\$PATH"
	EOF
}

action=${1:-}
shift || true
case $action in
start | restart | stop)
	names "${1:-}"
	"$action"
	;;
env)
	names "${1:-}"
	environment
	;;
run)
	names "$([[ ${1:-} == -- ]] || echo "${1:-}")"
	[[ ${1:-} == -- ]] || shift
	[[ ${1:-} == -- && $# -gt 1 ]] || usage
	shift
	eval "$(environment)"
	unset CRI_NETNS
	exec nsenter --net="$netns" --ipc="$ipcns" "$@"
	;;
*) usage ;;
esac
