#!/usr/bin/env bash
# The demo: a pod of two containers, a web server and a client that fetches its page over localhost, runs through
# containerd-shim-rs-v2 on a private containerd, is looked at, and is removed; then it is proved that nothing is left.
# It must never touch the machine's own containerd, nor leave a process, mount, cgroup or file outside of .tools/ and target/.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(dirname "$hack")
dir=$repo/.tools/demo
[[ $(id -u) == 0 ]] || { echo "demo: it makes namespaces and mounts, so it has to be root" >&2; exit 1; }

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() { printf '  $ %s\n' "$*" && "$@" | sed 's/^/    /'; }
cri() { timeout 30 crictl "$@"; }

step "Tools, images and the shim (built if they are missing; the first time takes some minutes)"
"$hack/tools.sh"
"$hack/images.sh" >/dev/null
shim=${SHIM_DIR:-$repo/target/release}
if [[ -z ${SHIM_DIR:-} ]]; then
	echo "  building the shim"
	"$hack/build.sh" >/dev/null 2>"$repo/.tools/build.log" || { cat "$repo/.tools/build.log" >&2; exit 1; }
fi

# Everything on the machine that names the pod, its containers or the private containerd. Nothing may, at the end.
left() {
	local name
	for name in ${pod:-} ${web:-} ${client:-} "$run" "$dir/state"; do
		pgrep -fa -- "$name" | grep -v demo.sh | sed 's/^/process /' || true
		grep -F -- "$name" /proc/self/mountinfo | sed 's/^/mount /' || true
		find /sys/fs/cgroup /run -path "*$name*" 2>/dev/null | sed 's/^/file /' || true
	done
}
end() { SHIM_DIR=$shim "$hack/containerd.sh" stop "$dir" >/dev/null 2>&1 || true; }
trap end EXIT
run=/run/rs-$(printf %s "$dir" | sha256sum | cut -c1-8)
end

step "A private containerd"
SHIM_DIR=$shim "$hack/containerd.sh" start "$dir"
eval "$("$hack/containerd.sh" env "$dir")"
work=$dir/demo && rm -rf "$work" && mkdir -p "$work/logs"
cat >"$work/pod.json" <<END
{"metadata": {"name": "demo", "namespace": "default", "uid": "demo"}, "hostname": "demo", "log_directory": "$work/logs", "linux": {"security_context": {"namespace_options": {"pid": 1}}}}
END
cat >"$work/web.json" <<END
{"metadata": {"name": "web"}, "image": {"image": "docker.io/library/nginx:latest"}, "log_path": "web.log", "linux": {}}
END
cat >"$work/client.json" <<END
{"metadata": {"name": "client"}, "image": {"image": "docker.io/library/busybox:latest"}, "log_path": "client.log", "linux": {},
 "command": ["sh", "-c", "until wget -qO- http://127.0.0.1/; do sleep 0.1; done; echo fetched; sleep 1000"]}
END

step "A pod, with sandboxer = \"shim\": no runc, no pause container"
pod=$(cri runp -r rs "$work/pod.json" 2>/dev/null)
web=$(cri create "$pod" "$work/web.json" "$work/pod.json" 2>/dev/null)
client=$(cri create "$pod" "$work/client.json" "$work/pod.json" 2>/dev/null)
cri start "$web" >/dev/null
cri start "$client" >/dev/null
show cri pods
show cri ps

step "Its processes: one shim of one thread, and the containers' own"
shim_pid=$(cri inspectp -o go-template --template '{{.info.pid}}' "$pod")
[[ $(tr '\0' ' ' <"/proc/$shim_pid/cmdline") == containerd-shim-rs-v2* ]] || { echo "demo: $shim_pid is no shim" >&2; exit 1; }
show ps -o pid,nlwp,rss,args --forest -g "$shim_pid" --ppid "$shim_pid"
[[ $(awk '/^Threads/ {print $2}' "/proc/$shim_pid/status") == 1 ]] || { echo "demo: more than one thread" >&2; exit 1; }
if pgrep -P "$shim_pid" -x pause >/dev/null; then echo "demo: a pause process" >&2 && exit 1; fi

step "The client's log: the page of its neighbour, over localhost"
for _ in $(seq 100); do
	if cri logs "$client" 2>/dev/null | grep -q fetched; then break; fi
	sleep 0.1
done
show cri logs "$client"
cri logs "$client" | grep -q fetched || { echo "demo: the page was not fetched" >&2; exit 1; }

step "An exec"
show cri exec -s "$web" sh -c 'echo "I am $(id -un) on $(hostname)"'

step "And away with it"
cri stopp "$pod" >/dev/null && cri rmp "$pod" >/dev/null && echo "  pod removed"
end
for _ in $(seq 50); do
	[[ -n $(left) ]] || break
	sleep 0.1
done
if [[ -n $(left) ]]; then
	left | sed 's/^/  left behind: /' >&2
	exit 1
fi
printf '  nothing is left: no process, mount, cgroup, socket or namespace\n\n\033[1mIt works.\033[0m\n'
