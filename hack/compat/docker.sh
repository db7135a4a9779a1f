# What is done with docker: a dockerd of its own on a containerd of its own; sourced by inside.sh.
# Set by inside.sh: run, tools, log, mark.
# shellcheck shell=bash disable=SC2154

export DOCKER_HOST=unix://$run/d.sock DOCKER_CONFIG=$run/docker-config

d() { limited docker "$@"; }
docker_run() { d run --runtime io.containerd.rs.v2 "$@"; }

launch_dockerd() {
	(cd "$run" && exec setsid dockerd --containerd "$socket" --data-root "$run/docker" --exec-root "$run/exec" -p "$run/d.pid" \
		--host "$DOCKER_HOST" --iptables=false --ip6tables=false --live-restore --storage-driver overlay2 --cgroup-parent "/$mark-pods" \
		>>"$log" 2>&1 </dev/null) &
	echo $! >"$run/dockerd.pid"
	within 30 docker version
}

# docker_image: the image of busybox under that name, from the archive of OCI: docker wants a manifest.json in it.
docker_image() {
	python3 - "$tools/images/test-images.tar" "$run/busybox.tar" <<-'EOF'
		import io, json, sys, tarfile
		archive = tarfile.open(sys.argv[1])
		read = lambda path: json.load(archive.extractfile(path))
		path = lambda of: "blobs/sha256/" + of["digest"].partition(":")[2]
		of = next(m for m in read("index.json")["manifests"] if m["annotations"]["io.containerd.image.name"] == "docker.io/library/busybox:latest")
		manifest = read(path(of))
		out = tarfile.open(sys.argv[2], "w")
		for blob in [manifest["config"]] + manifest["layers"]:
		    out.addfile(archive.getmember(path(blob)), archive.extractfile(path(blob)))
		text = json.dumps([{"Config": path(manifest["config"]), "RepoTags": ["busybox:latest"], "Layers": [path(l) for l in manifest["layers"]]}]).encode()
		entry = tarfile.TarInfo("manifest.json")
		entry.size = len(text)
		out.addfile(entry, io.BytesIO(text))
		out.close()
	EOF
	d load -q -i "$run/busybox.tar"
}

# supports PATTERN: what the shim says of itself.
supports() { containerd-shim-rs-v2 -info </dev/null | grep -aqE "$1"; }

# state NAME FIELD…: of its state.
state() { d inspect -f "$(printf '{{.State.%s}} ' "${@:2}" | sed 's/ $//')" "$1"; }
terminal() { limited script -qec "stty rows 33 cols 99; sleep 0.1; docker ${*@Q}" /dev/null | tr -d '\r'; }
# A container that logs a number every 100 ms, ends with 9 on SIGTERM, and never twice with one name.
start_counter() {
	docker_run -d "${plain[@]}" --name "$1" busybox sh -c 'trap "exit 9" TERM; while true; do echo $((i = i + 1)); sleep 0.1; done' >/dev/null
}
logs_go_on() {
	local before
	before=$(d logs --tail 1 "$1")
	within 10 newer "$1" "$before" && echo 'go on'
}
newer() { (($(d logs --tail 1 "$1") > $2)); }

docker_run_smoke() {
	local once=(run --runtime io.containerd.rs.v2 --rm "${plain[@]}")
	is 'docker: run, both streams, exit code' $'out\nerr <7>' docker_run --rm "${plain[@]}" busybox sh -c 'echo out; sleep 0.2; echo err >&2; exit 7'
	is 'docker: run, input' in d "${once[@]}" -i busybox cat <<<in
	is 'docker: run, terminal and its input' '*/dev/pts/*33 99*got word* <3>' terminal "${once[@]}" -it busybox \
		sh -c 'tty; sleep 0.3; stty size; read x; echo got $x; exit 3' <<<word
	is 'docker: run, no such program' '*not-there* <127>' d "${once[@]}" busybox not-there
	is 'docker: run, no program' '*permission denied*<126>' d "${once[@]}" busybox /etc/passwd
	is 'docker: run, a directory' '*is a directory*<126>' d "${once[@]}" busybox /etc
	printf '#!/not-there\n' >"$run/script" && chmod +x "$run/script"
	is 'docker: run, no interpreter' '*no such file or directory*<127>' d "${once[@]}" -v "$run/script:/script" busybox /script
	is 'docker: run, user and rights' '33 44 /tmp b 0000000000002000 1' d "${once[@]}" --user 33:33 --group-add 44 -w /tmp -e A=b \
		--cap-drop ALL --cap-add NET_RAW --security-opt no-new-privileges busybox \
		sh -c 'echo $(id -u) $(id -G | cut -d" " -f2) $(pwd) $A $(sed -n "s/CapBnd:.//p; s/NoNewPrivs:.//p" /proc/self/status)'
	is 'docker: run, volumes' 'root:* 1024 32768' d "${once[@]}" -v /etc:/x:ro -v data:/data --tmpfs /t:size=1m --shm-size 32m busybox \
		sh -c 'touch /data/a; echo $(head -n 1 /x/passwd) $(df /t /dev/shm | awk "/^(tmpfs|shm)/ { print \$2 }")'
	# Before the answer may come that there is no swap on this host.
	is 'docker: run, limits' '*67108864 20 50000' d "${once[@]}" --memory 64m --cpus 0.5 --pids-limit 20 busybox \
		sh -c 'cd /sys/fs/cgroup; echo $(cat memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us 2>/dev/null || cat memory.max pids.max cpu.max) | cut -d" " -f1-3'
	is 'docker: run, a read-only root' '*Read-only file system <1>' d "${once[@]}" --read-only busybox touch /file
	is 'docker: run, privileged' ok d "${once[@]}" --privileged busybox sh -c 'mount -t tmpfs none /home && echo ok'
	is 'docker: run, out of memory' '* <137>' docker_run "${plain[@]}" --name oom --memory 16m busybox tail /dev/zero
	is 'docker: and docker knows' 'true 137' state oom OOMKilled ExitCode
	is 'docker: rm' oom d rm oom
}

docker_smoke() {
	is 'docker: detached' '' start_counter main
	within 10 newer main 1
	is 'docker: logs' $'1\n2*' d logs main
	is 'docker: exec, both streams, exit code' $'out\nerr <5>' d exec main sh -c 'echo out; sleep 0.2; echo err >&2; exit 5'
	is 'docker: exec, input' in d exec -i main cat <<<in
	is 'docker: exec, terminal' '*/dev/pts/* <4>' terminal exec -it main sh -c 'tty; exit 4'
	is 'docker: exec, no such program' '*not-there* <12[67]>' d exec main not-there # 126: docker 26, by whatever runtime
	is 'docker: top' '*sh -c trap*' d top main
	is 'docker: stats' 'main [1-9]*' d stats --no-stream --format '{{.Name}} {{.PIDs}}' main
	is 'docker: update' main* d update --memory 64m --memory-swap 64m main
	is 'docker: the new limit' 67108864 d exec main sh -c 'cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes 2>/dev/null || cat memory.max'
	# Before Linux 6.6 (fchmodat2) docker 28.5 cannot set the mode of what it has copied; it asks no runtime for that.
	is 'docker: cp' '?(*chmod copy: *)' d cp /etc/passwd main:/tmp/copy
	is 'docker: the copy' 'root:*' d exec main head -n 1 /tmp/copy
	is 'docker: pause' main d pause main
	is 'docker: paused' paused state main Status
	is 'docker: unpause' main d unpause main
	is 'docker: stop' main d stop -t 10 main
	is 'docker: exit code' '9 exited' state main ExitCode Status
	is 'docker: start' main d start main
	is 'docker: kill' main d kill main
	is 'docker: wait' 137 d wait main
	is 'docker: restart' main d restart main
	is 'docker: rm by force' main d rm -f main
	docker_run -d "${plain[@]}" --name again --restart on-failure:2 busybox sh -c 'exit 1' >/dev/null
	for ((i = 0; i < 100; i++)); do [[ $(d inspect -f '{{.RestartCount}} {{.State.Status}}' again) != '2 exited' ]] || break; sleep 0.1; done
	is 'docker: restart policy' '2 exited' d inspect -f '{{.RestartCount}} {{.State.Status}}' again
	is 'docker: rm again' again d rm again
}

# One after the other, under containers that go on.
docker_restarts() {
	start_counter live
	docker_run -d "${plain[@]}" --name short busybox sh -c 'sleep 1; exit 6' >/dev/null
	end KILL dockerd
	sleep 1.5
	is 'dockerd: killed and back' '' launch_dockerd
	is 'dockerd: the container runs' running state live Status
	is 'dockerd: exec' still d exec live echo still
	is 'dockerd: logs' 'go on' logs_go_on live
	is 'dockerd: who ended meanwhile' '6 exited' state short ExitCode Status
	is 'containerd: killed and back' '' restart_containerd
	within 20 d exec live true # dockerd has to find it first
	is 'containerd: the container runs' running state live Status
	is 'containerd: exec' still d exec live echo still
	is 'containerd: logs' 'go on' logs_go_on live
	is 'containerd: stop' live d stop -t 10 live
	is 'containerd: exit code' '9 exited' state live ExitCode Status
	is 'containerd: rm' $'live\nshort' d rm live short
}

# Up to docker 26 (or 27) a network of its own comes by a prestart hook.
docker_network() {
	local mode open=(--security-opt seccomp=unconfined)
	if [[ $version != 2[0-6].* ]] || supports '"hooks":\["'; then
		is 'network: none' '*: lo: *' docker_run --rm "${open[@]}" --network none busybox ip -o link
		is 'network: bridge' '*172.17.0.*' docker_run --rm "${open[@]}" --network bridge busybox ip -o -4 addr show eth0
		docker_run --rm -d "${open[@]}" --network bridge --name web busybox httpd -f -h /www >/dev/null
		is 'network: from the host' '*It works!*' wget -qO- "http://$(d inspect -f '{{.NetworkSettings.IPAddress}}' web)/"
		is "network: another container's, and its processes" '*httpd*It works!*' docker_run --rm "${open[@]}" \
			--network container:web --pid container:web busybox sh -c 'ps; wget -qO- http://127.0.0.1/'
		is 'network: kill' web d kill web
	else
		for mode in none bridge; do
			is "network: $mode is refused by name, without hooks" '*hooks.prestart is not supported*<125>' \
				docker_run --rm "${open[@]}" --network $mode busybox true
		done
	fi
}

docker_seccomp() {
	if supports '"seccomp":\{[^}]*"enabled":true'; then
		is "seccomp: docker's profile" $'Seccomp:\t2' docker_run --rm --network host busybox grep Seccomp: /proc/self/status
	else
		is "seccomp: docker's profile is refused by name" '*linux.seccomp is not supported*<125>' docker_run --rm --network host busybox true
	fi
}

docker_subject() {
	local containerd plain=(--security-opt seccomp=unconfined --network host)
	case $version in
	2[0-6].*) containerd='containerd-1.7' ;;
	*) containerd='containerd-2.1' ;;
	esac
	# dockerd wants a runc, if only to build.
	programs "$containerd" "$tools/compat/$subject/usr/bin:$tools/compat/$subject/usr/sbin:$tools/bin:$machine_path"
	configure_containerd "${containerd#*-}"
	is 'containerd starts' '' launch_containerd
	is 'dockerd starts' '' launch_dockerd
	is "dockerd is $version, containerd is ${containerd#*-}" "$version.*Version:*${containerd#*-}.*" \
		sh -c 'docker version -f "{{.Server.Version}}"; ctr version | sed 1,/Server/d'
	is 'image' '*busybox:latest*' docker_image
	docker_run --rm "${plain[@]}" busybox true # docker keeps the network namespace of the host in a mount
	mounts >"$run/mounts"
	docker_seccomp
	docker_network
	docker_run_smoke
	docker_smoke
	docker_restarts
	is 'docker: nothing is left' '' nothing_left
	end TERM dockerd
	end TERM containerd
}
