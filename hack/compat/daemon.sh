# A containerd of any version within the private namespaces of inside.sh, which sources this: everything of it is below $run, a tmpfs.
# Set by inside.sh: run, tools, log, mark.
# shellcheck shell=bash disable=SC2154

socket=$run/c.sock
export CONTAINERD_ADDRESS=$socket CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1
export CONTAINER_RUNTIME_ENDPOINT=unix://$socket IMAGE_SERVICE_ENDPOINT=unix://$socket

# within SECONDS COMMAND…: until the command succeeds.
within() {
	local end=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		((SECONDS < end)) || return 1
		sleep 0.05
	done
}

# The same settings under the names of each generation of the configuration.
configure_containerd() {
	mkdir -p "$run"/{root,state,opt,cni}
	cat >"$run/config.toml" <<-EOF
		version = $([[ $1 == 1.* ]] && echo 2 || echo 3)
		root = '$run/root'
		state = '$run/state'
		disabled_plugins = ['io.containerd.nri.v1.nri', 'io.containerd.internal.v1.tracing', 'io.containerd.tracing.processor.v1.otlp']
		[debug]
		  level = '${LOG_LEVEL:-info}'
		[grpc]
		  address = '$socket'
		[ttrpc]
		  address = '$socket.ttrpc'
		[plugins.'io.containerd.internal.v1.opt']
		  path = '$run/opt'
	EOF
	if [[ $1 == 1.* ]]; then
		cri_of_version_2 >>"$run/config.toml"
	else
		cri_of_version_3 >>"$run/config.toml"
	fi
	cat >"$run/cni/10-compat.conflist" <<-EOF
		{ "cniVersion": "1.0.0", "name": "compat", "plugins": [
		  { "type": "bridge", "bridge": "compat0", "isDefaultGateway": true,
		    "ipam": { "type": "host-local", "dataDir": "$run/cni/ipam", "ranges": [[{ "subnet": "10.209.0.0/16" }]] } } ] }
	EOF
	echo 'timeout: 60' >"$run/crictl.yaml"
	export CRI_CONFIG_FILE=$run/crictl.yaml
}

cri_of_version_2() {
	cat <<-EOF
		[plugins.'io.containerd.grpc.v1.cri']
		  sandbox_image = 'localhost/pause:local'
		  restrict_oom_score_adj = true
		  disable_apparmor = true
		[plugins.'io.containerd.grpc.v1.cri'.cni]
		  bin_dir = '$tools/bin'
		  conf_dir = '$run/cni'
		[plugins.'io.containerd.grpc.v1.cri'.containerd]
		  default_runtime_name = 'podsandbox'
		[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.podsandbox]
		  runtime_type = 'io.containerd.rs.v2'
	EOF
}

cri_of_version_3() {
	cat <<-EOF
		[plugins.'io.containerd.cri.v1.images'.pinned_images]
		  sandbox = 'localhost/pause:local'
		[plugins.'io.containerd.cri.v1.runtime']
		  restrict_oom_score_adj = true
		  disable_apparmor = true
		  cdi_spec_dirs = []
		[plugins.'io.containerd.cri.v1.runtime'.cni]
		  bin_dir = '$tools/bin'
		  conf_dir = '$run/cni'
		[plugins.'io.containerd.cri.v1.runtime'.containerd]
		  default_runtime_name = 'shim'
		[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.shim]
		  runtime_type = 'io.containerd.rs.v2'
		  sandboxer = 'shim'
		[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.podsandbox]
		  runtime_type = 'io.containerd.rs.v2'
		  sandboxer = 'podsandbox'
	EOF
}

# A daemon is a child of a subshell, hence never awaited; its pid is in a file. Neither is it ever of another PID namespace.
launch_containerd() {
	(cd "$run" && exec setsid containerd --config "$run/config.toml" >>"$log" 2>&1 </dev/null) &
	echo $! >"$run/containerd.pid"
	within 30 ctr version && within 30 crictl version
}

# end SIGNAL NAME: the daemon of that name, and waits for its end.
end() {
	local pid
	pid=$(cat "$run/$2.pid")
	kill "-$1" "$pid"
	within 20 gone "$pid"
}
gone() { [[ ! -e /proc/$1 || $(cut -d' ' -f3 "/proc/$1/stat" 2>/dev/null) == Z ]]; }

# It is away for a second: whoever ends meanwhile has to be known afterwards.
restart_containerd() {
	end KILL containerd
	sleep 1
	launch_containerd
}
