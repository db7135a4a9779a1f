#!/usr/bin/env bash
# Checks one runtime handler through a pod's whole life with crictl, as kubelet would use it: pod-check.sh HANDLER. Sandbox, containers,
# exec, attach, port-forward, logs, stats, networking, a containerd that is killed while the pod runs, ten pods at once, what is left.
# It must never touch a pod that it did not make, nor any network but the private containerd's.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=check.sh
source "$hack/check.sh"
handler=${1:?usage: pod-check.sh HANDLER}
"$hack/containerd.sh" start
eval "$("$hack/containerd.sh" env)"
work=$(mktemp -d)
: >"$work/pods" && : >"$work/containers"
cgroup=/rs-check-$$ # kubelet would make it; a runtime has to, if nobody did

# Streams go to an address in the network namespace of the private containerd. No logs of crictl's own, but for a fatal one.
in_net() { nsenter --net="$CRI_NETNS" "$@"; }
cri() { in_net crictl "$@"; }

end() {
	while read -r pod; do cri rmp -f "$pod" >/dev/null 2>&1 || true; done <"$work/pods"
	find /sys/fs/cgroup -depth -type d -path "*$cgroup*" -exec rmdir {} + 2>/dev/null || true
	rm -rf "$work"
}
trap end EXIT

# pod NAME FIELDS NAMESPACES: runs it. Its configuration stays in work/NAME.pod.
pod() {
	cat >"$work/$1.pod" <<-EOF
		{"metadata": {"name": "$1-$$", "uid": "$1-$$", "namespace": "default"}, "hostname": "checked", "log_directory": "$work",
		 "dns_config": {"servers": ["10.10.10.10"], "searches": ["example.org"], "options": ["ndots:8"]}, $2
		 "linux": {"cgroup_parent": "$cgroup", "sysctls": {"net.ipv4.ip_unprivileged_port_start": "1000"}, "security_context": {"namespace_options": $3}}}
	EOF
	cri runp -r "$handler" "$work/$1.pod" | tee -a "$work/pods"
}

# container POD-ID POD NAME IMAGE NAMESPACES FIELDS: creates it.
container() {
	echo "{\"metadata\": {\"name\": \"$3\"}, \"image\": {\"image\": \"docker.io/library/$4:latest\"}, \"log_path\": \"$2-$3.log\",
		\"linux\": {\"security_context\": {\"namespace_options\": $5}}$6}" >"$work/$2-$3.json"
	cri create "$1" "$work/$2-$3.json" "$work/$2.pod" | tee -a "$work/containers"
}

one() { cri inspect -o go-template --template "{{.$2}}" "$1"; }
one_pod() { cri inspectp -o go-template --template "{{.$2}}" "$1"; }
until_is() { for ((i = 0; i < 100; i++)); do [[ $("${@:2}" 2>&1) != "$1" ]] || return 0; sleep 0.05; done; }
sync() { cri exec -s "$@" | sed '/^$/d'; } # crictl puts an empty line after each stream
terminal() { script -qec "stty rows 33 cols 99; nsenter --net=$CRI_NETNS crictl exec -i -t $*" /dev/null | tr -d '\r'; }
network_of() { nsenter -t "$(one_pod "$1" info.pid)" -n ip -4 -brief address; }
stop_other() { cri stop -t 0 "$1" >/dev/null && one "$2" status.state; }
forward() {
	# shellcheck disable=SC2016
	in_net sh -c 'crictl port-forward "$1" 18080:80 >/dev/null & sleep 1; wget -qO- http://127.0.0.1:18080/; kill $!' - "$1"
}
attach() { # the first line that comes back for a line that is sent; containerd ends the output when the input ends
	local line=''
	coproc { exec nsenter --net="$CRI_NETNS" crictl attach -i "$1" 2>&1; }
	echo said >&"${COPROC[1]}"
	read -r -t 10 line <&"${COPROC[0]}" || true
	kill -KILL "$COPROC_PID" # it takes SIGTERM, and stays
	wait "$COPROC_PID" 2>/dev/null || true
	echo "$line"
}
ten() { # ten pods with a container each, all at once; then all are removed at once
	local n jobs=()
	for n in {0..9}; do
		{
			id=$(pod "ten$n" '' "$private") && c=$(container "$id" "ten$n" c busybox "$private" ', "command": ["sleep", "1000"]') &&
				cri start "$c" >/dev/null && sync "$c" echo "$n"
		} >"$work/ten$n.out" 2>&1 &
		jobs+=($!)
	done
	wait "${jobs[@]}"
	cat "$work"/ten?.out | paste -sd' '
	tail -n 10 "$work/pods" | xargs nsenter --net="$CRI_NETNS" crictl rmp -f | grep -c Removed
}
# Processes, mounts, cgroups and files that name a pod or container of this check.
left() {
	local id
	cat "$work/pods" "$work/containers" | while read -r id; do
		pgrep -fa "$id" || true
		grep -F "$id" /proc/self/mountinfo || true
		find /sys/fs/cgroup "${CONTAINERD_LOG%/*}/state" -name "*$id*" 2>/dev/null || true
	done
}

private='{"pid": 1}' shared='{"pid": 0}' # each container has a PID namespace of its own, or the pod has one
page='*It works!*'

pod=$(pod main '"port_mappings": [{"container_port": 80, "host_port": 18081}],' "$private")
is 'pod: ready' SANDBOX_READY one_pod "$pod" status.state
address=$(one_pod "$pod" status.network.ip)
is 'pod: has an address' '10.209.*' echo "$address"
is 'pod: its pid is in its network' "*eth0*$address/*" network_of "$pod"

web=$(container "$pod" main web nginx "$private" '')
is 'container: created' CONTAINER_CREATED one "$web" status.state
is 'container: starts' "$web" cri start "$web"
is 'container: runs' CONTAINER_RUNNING one "$web" status.state
is 'container: hostname' checked sync "$web" hostname
is 'container: resolv.conf' $'search example.org\nnameserver 10.10.10.10\noptions ndots:8' sync "$web" cat /etc/resolv.conf
is 'container: hosts' '*localhost*' sync "$web" cat /etc/hosts
is 'container: sysctl of the pod' 1000 sync "$web" cat /proc/sys/net/ipv4/ip_unprivileged_port_start
is 'container: its own PID namespace' '1 root *nginx: master*' sync "$web" sh -c 'ps | grep "[m]aster" | xargs'
is 'container: /dev/shm is 64 MiB' '*65536*/dev/shm' sync "$web" df -k /dev/shm
is 'container: stats' '*"workingSetBytes":*"value":  "[1-9]*' cri stats -o json "$web"
is 'pod: stats' "*$pod*" cri statsp -o json --id "$pod"
is 'network: the pod' "$page" in_net wget -qO- "http://$address/"
is 'network: port mapping' "$page" in_net wget -qO- http://127.0.0.1:18081/
is 'stream: port-forward' "$page" forward "$pod"
is 'exec: synchronous, both streams' $'out\nerr' sync "$web" sh -c 'echo out; echo err >&2'
is 'exec: synchronous, status' '*exited with 7*<1>' sync "$web" sh -c 'exit 7'
is 'exec: synchronous, deadline' '*DeadlineExceeded*<1>' sync --timeout 1 "$web" sleep 30
is 'exec: no such program' '*not-there*<1>' sync "$web" not-there
is 'stream: exec, both streams' $'out\nerr' cri exec "$web" sh -c 'echo out; sleep 0.2; echo err >&2'
is 'stream: exec, input' in cri exec -i "$web" cat <<<in
is 'stream: exec, status' '*exit code 9*<1>' cri exec "$web" sh -c 'exit 9'
# shellcheck disable=SC2016
is 'stream: exec, terminal' '*/dev/pts/*sum 23*' terminal "$web" sh <<<'tty; echo sum $((20 + 3)); exit'
is 'stream: exec, size of the terminal' '*33 99*' terminal "$web" sh <<<'sleep 0.3; stty size; exit'

talk=$(container "$pod" main talk busybox "$private" ', "stdin": true, "command": ["sh", "-c", "echo first; sleep 0.1; echo second >&2; cat"]')
cri start "$talk" >/dev/null
until_is $'first\nsecond' cri logs "$talk"
is 'stream: attach' said attach "$talk"
is 'log: both streams and what was said' $'first\nsecond\nsaid' cri logs "$talk"
is 'log: form' "$(printf '????-??-??T*Z stdout F first\n*stderr F second\n*')" cat "$work/main-talk.log"
mv "$work/main-talk.log" "$work/main-talk.log.1"
is 'log: reopen' '*reopened*' cri logs -r "$talk"
is 'log: the new file' '' cri logs "$talk"

once=$(container "$pod" main once busybox "$private" ', "command": ["sh", "-c", "printf unfinished; exit 5"]')
cri start "$once" >/dev/null
until_is CONTAINER_EXITED one "$once" status.state
is 'container: ends by itself' CONTAINER_EXITED one "$once" status.state
is 'container: exit code' 5 one "$once" status.exitCode
is 'log: a last line without its end' unfinished cri logs "$once"

bad=$(container "$pod" main bad busybox "$private" ', "command": ["not-there"]')
is 'container: error of a start' '*not-there*<1>' cri start "$bad"

is 'containerd: killed and back' '' "$hack/containerd.sh" restart
is 'restart: pod is ready' SANDBOX_READY one_pod "$pod" status.state
is 'restart: container runs' CONTAINER_RUNNING one "$web" status.state
is 'restart: ended container' 5 one "$once" status.exitCode
is 'restart: exec' still cri exec "$web" echo still
is 'restart: network' "$page" in_net wget -qO- http://127.0.0.1:18081/
is 'restart: attach' said attach "$talk"
is 'restart: log goes on' said cri logs "$talk"
late=$(container "$pod" main late busybox "$private" ', "command": ["sleep", "1000"]') # pid 1: SIGTERM does nothing
is 'restart: new container' "$late" cri start "$late"
is 'restart: its hosts' '*localhost*' sync "$late" cat /etc/hosts

is 'container: stop' "$late" cri stop -t 1 "$late"
is 'container: killed after its time' 137 one "$late" status.exitCode
is 'container: remove' "$late" cri rm -k "$late"
is 'container: remove, running' '*is running*<1>' cri rm "$talk"
is 'container: remove by force' "*$talk" cri rm -f -k "$talk"
is 'pod: stop' "*$pod" cri stopp "$pod"
is 'pod: stop, again' "*$pod" cri stopp "$pod"
is 'pod: not ready' SANDBOX_NOTREADY one_pod "$pod" status.state
is 'pod: its containers have ended' CONTAINER_EXITED one "$web" status.state
is 'pod: remove' "*$pod" cri rmp "$pod"
is 'pod: gone' '' cri pods -q --id "$pod"

pod=$(pod shared '' "$shared")
one=$(container "$pod" shared one busybox "$shared" ', "command": ["sleep", "1234"]')
two=$(container "$pod" shared two busybox "$shared" ', "command": ["sleep", "1235"]')
cri start "$one" "$two" >/dev/null
is 'shared PID namespace: sees the other' '[1-9]*' sync "$one" pgrep -f 'sleep 1235'
is 'shared PID namespace: pid 1 is the pod' '' sync "$one" sh -c 'grep -l sleep /proc/1/comm || true'
is 'shared PID namespace: a container ends alone' CONTAINER_RUNNING stop_other "$one" "$two"
is 'shared PID namespace: pod is removed' "*$pod" cri rmp -f "$pod"

is 'ten pods at once' $'0 1 2 3 4 5 6 7 8 9\n10' ten
is 'nothing is left' '' left
closing
