# What is done with each version, by ctr and by crictl; sourced by inside.sh.
# Set by inside.sh: run, tools, log, mark.
# shellcheck shell=bash disable=SC2154

image=docker.io/library/busybox:latest
ns=$mark # a containerd namespace is also the folder of its cgroups

limited() { timeout -k 1 30 "$@"; }
c() { limited ctr -n "$ns" "$@"; }
status_of() { c task ls | awk -v id="$1" '$1 == id { print $3 }'; }
until_is() { for ((i = 0; i < 100; i++)); do [[ $("${@:2}" 2>&1) != "$1" ]] || return 0; sleep 0.05; done; }
cri() { limited crictl "$@"; }
one() { cri inspect -o go-template --template "{{.$2}}" "$1"; }
one_pod() { cri inspectp -o go-template --template "{{.$2}}" "$1"; }
sync() { cri exec -s "$@" | sed '/^$/d'; } # crictl puts an empty line after each stream

# The servers of the shim, which has no other process that goes on by that name.
servers() {
	local one
	for one in /proc/[0-9]*; do
		[[ $(tr '\0' ' ' <"$one/cmdline") != containerd-shim-rs-v2\ *\ "serve " ]] || echo "${one#/proc/}"
	done 2>/dev/null
}
# The server of a task that has just been removed may be ending by itself meanwhile; one at least has to be there to be killed.
kill_servers() {
	local pid killed=0
	for pid in $(servers); do ! kill -KILL "$pid" 2>/dev/null || killed=$((killed + 1)); done
	((killed > 0)) || echo 'no server was killed'
}

# Nothing but containerd's own processes, as few mounts, cgroups and sockets as before; said by name.
left() {
	local pid
	for pid in /proc/[0-9]*; do
		[[ $(cat "$pid/comm") != containerd-shim ]] || tr '\0' ' ' <"$pid/cmdline"
	done 2>/dev/null
	comm -13 "$run/mounts" <(mounts)
	find /sys/fs/cgroup -path "*$mark*" -type d ! -name "$mark" ! -name "$mark-pods" ! -name moby
	find /run/containerd/s "$run/s" /run/netns -mindepth 1 2>/dev/null || true
	find "$run"/state/io.containerd.{runtime.v2.task,sandbox.controller.v1.shim} -mindepth 2 2>/dev/null || true
}
mounts() { cut -d' ' -f5- /proc/self/mountinfo | sed -E 's/ (shared|master):[0-9]+//g' | sort; }
nothing_left() {
	for ((i = 0; i < 60; i++)); do [[ -n $(left) ]] || break; sleep 0.1; done
	left
}

ctr_smoke() {
	local run_it=(run --runtime io.containerd.rs.v2) terminal
	terminal="stty rows 33 cols 99; ctr -n $ns ${run_it[*]} --rm -t $image tty sh -c 'tty; sleep 0.3; stty size; exit 3'"
	is 'ctr: run, both streams, exit code' $'out\nerr <7>' c "${run_it[@]}" --rm $image both sh -c 'echo out; sleep 0.2; echo err >&2; exit 7'
	is 'ctr: run, no such program' '*not-there* <1>' c "${run_it[@]}" --rm $image missing not-there
	is 'ctr: run, terminal' $'*/dev/pts/*33 99* <3>' limited script -qec "$terminal" /dev/null
	is 'ctr: detached' '' c "${run_it[@]}" -d --memory-limit 67108864 $image main sh -c 'trap "exit 9" TERM; sleep 1000 & wait'
	is 'ctr: runs' RUNNING status_of main
	is 'ctr: exec, both streams, exit code' $'out\nerr <5>' c task exec --exec-id e1 main sh -c 'echo out; sleep 0.2; echo err >&2; exit 5'
	is 'ctr: metrics' '*67108864*' c task metrics --format json main
	is 'ctr: one that ends soon' '' c "${run_it[@]}" -d $image short sh -c 'sleep 0.7; exit 6'
	is 'ctr: containerd killed and back' '' restart_containerd
	is 'ctr: still runs' RUNNING status_of main
	is 'ctr: who ended meanwhile' STOPPED status_of short
	is 'ctr: its exit code' '*exit code 6*' c task rm short
	is 'ctr: exec after the restart' still c task exec --exec-id e2 main echo still
	is 'ctr: pause' '' c task pause main
	is 'ctr: paused' PAUSED status_of main
	is 'ctr: resume' '' c task resume main
	is 'ctr: kill' '' c task kill main
	until_is STOPPED status_of main
	is 'ctr: rm, exit code' '*exit code 9*' c task rm main
	is 'ctr: task again' '' c task start -d main
	is 'ctr: kill -9 of all' '' c task kill -a -s KILL main
	until_is STOPPED status_of main
	is 'ctr: rm, killed' '*exit code 137*' c task rm main
	is 'ctr: task a third time' '' c task start -d main
	is 'ctr: its shim is killed' '' kill_servers
	until_is '' status_of main
	is 'ctr: the task is gone' '' status_of main
	is 'ctr: container rm' '' c containers rm main short
	is 'ctr: nothing is left' '' nothing_left
}

# pod NAME HANDLER PID: runs one; its configuration is NAME.pod. PID: 1 is a namespace for each container, 0 one for the pod.
pod() {
	cat >"$run/$1.pod" <<-EOF
		{"metadata": {"name": "$1", "uid": "$1", "namespace": "default"}, "hostname": "checked", "log_directory": "$run/logs",
		 "dns_config": {"servers": ["10.10.10.10"]}, "linux": {"cgroup_parent": "/$mark-pods", "security_context": {"namespace_options": {"pid": $3}}}}
	EOF
	cri runp -r "$2" "$run/$1.pod"
}
# container POD-ID POD NAME PID COMMAND: creates it; the command is JSON.
container() {
	echo "{\"metadata\": {\"name\": \"$3\"}, \"image\": {\"image\": \"$image\"}, \"log_path\": \"$2-$3.log\", \"command\": $5,
		\"linux\": {\"security_context\": {\"namespace_options\": {\"pid\": $4}}}}" >"$run/$2-$3.json"
	cri create "$1" "$run/$2-$3.json" "$run/$2.pod"
}

cri_smoke() {
	local handler=$1 pod main once late short
	pod=$(pod "$handler-first" "$handler" 1)
	is "cri $handler: pod is ready" SANDBOX_READY one_pod "$pod" status.state
	main=$(container "$pod" "$handler-first" main 1 '["sh", "-c", "echo first; trap \"exit 9\" TERM; sleep 1000 & wait"]')
	is "cri $handler: start" "$main" cri start "$main"
	is "cri $handler: runs" CONTAINER_RUNNING one "$main" status.state
	until_is first cri logs "$main"
	is "cri $handler: log" first cri logs "$main"
	is "cri $handler: exec, both streams" $'out\nerr' sync "$main" sh -c 'echo out; echo err >&2'
	is "cri $handler: exec, status" '*exited with 7*' sync "$main" sh -c 'exit 7'
	is "cri $handler: exec, streamed" in cri exec -i "$main" cat <<<in
	is "cri $handler: hostname, address, hosts, names" $'checked\n10.209.*\n127.*localhost*\nnameserver 10.10.10.10' sync "$main" \
		sh -c 'hostname; ip -4 addr show eth0 | sed -n "s/ *inet \(.*\)\/.*/\1/p"; cat /etc/hosts | grep -m1 localhost; cat /etc/resolv.conf'
	once=$(container "$pod" "$handler-first" once 1 '["sh", "-c", "echo done; exit 5"]')
	cri start "$once" >/dev/null
	until_is CONTAINER_EXITED one "$once" status.state
	is "cri $handler: exit code" 5 one "$once" status.exitCode
	is "cri $handler: log of the ended" 'done' cri logs "$once"
	is "cri $handler: stats" "*$main*" cri stats -o json "$main"

	is "cri $handler: one shim for the pod" 1 eval 'servers | wc -l'
	short=$(container "$pod" "$handler-first" short 1 '["sh", "-c", "echo bye; sleep 0.7; exit 6"]')
	cri start "$short" >/dev/null
	is "cri $handler: containerd killed and back" '' restart_containerd
	is "cri $handler: pod is still ready" SANDBOX_READY one_pod "$pod" status.state
	is "cri $handler: still runs" CONTAINER_RUNNING one "$main" status.state
	is "cri $handler: still exited" 5 one "$once" status.exitCode
	is "cri $handler: who ended meanwhile" 6 one "$short" status.exitCode
	is "cri $handler: exec after the restart" still sync "$main" echo still
	late=$(container "$pod" "$handler-first" late 1 '["sleep", "1000"]') # pid 1: SIGTERM does nothing
	is "cri $handler: a container after the restart" "$late" cri start "$late"
	is "cri $handler: shares the pod's network" '*10.209.*' sync "$late" ip -4 addr show eth0
	is "cri $handler: stop" "$main" cri stop -t 5 "$main"
	is "cri $handler: its exit code" 9 one "$main" status.exitCode
	is "cri $handler: remove" "$main" cri rm "$main"
	is "cri $handler: stop, killed" "$late" cri stop -t 1 "$late"
	is "cri $handler: 137" 137 one "$late" status.exitCode
	is "cri $handler: pod stop" "*$pod" cri stopp "$pod"
	is "cri $handler: pod is not ready" SANDBOX_NOTREADY one_pod "$pod" status.state
	is "cri $handler: pod remove" "*$pod" cri rmp "$pod"

	pod=$(pod "$handler-shared" "$handler" 0)
	main=$(container "$pod" "$handler-shared" main 0 '["sleep", "1234"]')
	late=$(container "$pod" "$handler-shared" late 0 '["sleep", "1235"]')
	is "cri $handler: shared PID namespace" "$main*$late" cri start "$main" "$late"
	is "cri $handler: sees the other" '[1-9]*' sync "$main" pgrep -f 'sleep 1235'
	is "cri $handler: remove by force" "*$pod" cri rmp -f "$pod"

	pod=$(pod "$handler-crash" "$handler" 1)
	main=$(container "$pod" "$handler-crash" main 1 '["sleep", "1000"]')
	cri start "$main" >/dev/null
	is "cri $handler: its shim is killed" '' kill_servers
	until_is SANDBOX_NOTREADY one_pod "$pod" status.state
	is "cri $handler: the pod is not ready" SANDBOX_NOTREADY one_pod "$pod" status.state
	until_is CONTAINER_EXITED one "$main" status.state
	is "cri $handler: the container has ended" CONTAINER_EXITED one "$main" status.state
	is "cri $handler: remove what is left" "*$pod" cri rmp -f "$pod"
	is "cri $handler: no pods" '' cri pods -q
	is "cri $handler: nothing is left" '' nothing_left
}
