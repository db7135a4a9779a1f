#!/usr/bin/env bash
# Builds the pinned tools that tests and demos run (containerd, ctr, runc, CNI plugins, crictl, critest, containerd's own CRI
# tests) into .tools/bin. A second run does nothing. `tools.sh list` says what it would build.
# It must never install a tool outside .tools/ nor replace a Debian package that is present.
set -euo pipefail

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tools=$(dirname "$hack")/.tools
# shellcheck source=versions.env
source "$hack/versions.env"

# What is built: name, version, module, package within it, how (build, or test: a test binary), and build tags.
containerd=github.com/containerd/containerd/v2
plugins=github.com/containernetworking/plugins
cri_tools=sigs.k8s.io/cri-tools
list() {
	cat <<-EOF
		containerd              $CONTAINERD_VERSION  $containerd  cmd/containerd  build
		ctr                     $CONTAINERD_VERSION  $containerd  cmd/ctr  build
		containerd-shim-runc-v2 $CONTAINERD_VERSION  $containerd  cmd/containerd-shim-runc-v2  build
		cri-integration.test    $CONTAINERD_VERSION  $containerd  integration  test
		runc                    $RUNC_VERSION  github.com/opencontainers/runc  .  build  seccomp
		bridge                  $CNI_PLUGINS_VERSION  $plugins  plugins/main/bridge  build
		loopback                $CNI_PLUGINS_VERSION  $plugins  plugins/main/loopback  build
		host-local              $CNI_PLUGINS_VERSION  $plugins  plugins/ipam/host-local  build
		portmap                 $CNI_PLUGINS_VERSION  $plugins  plugins/meta/portmap  build
		crictl                  $CRI_TOOLS_VERSION  $cri_tools  cmd/crictl  build
		critest                 $CRI_TOOLS_VERSION  $cri_tools  cmd/critest  test
	EOF
}

# One Debian package per thing that is looked for; only the missing ones are installed.
packages() {
	local missing=() pair
	for pair in gcc:gcc iptables:iptables ip:iproute2 nsenter:util-linux script:bsdutils pgrep:procps python3:python3 wget:wget; do
		command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
	done
	[[ -e /usr/include/stdlib.h ]] || missing+=(libc6-dev)
	[[ -e /usr/include/seccomp.h ]] || missing+=(libseccomp-dev)
	[[ -e /etc/ssl/certs/ca-certificates.crt ]] || missing+=(ca-certificates)
	command -v go >/dev/null || [[ -x /usr/local/go/bin/go ]] || missing+=(golang-go)
	((${#missing[@]})) || return 0
	echo "tools: installing Debian packages: ${missing[*]}"
	local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends --no-remove "${missing[@]}")
	"${install[@]}" >/dev/null 2>&1 || { apt-get update -qq && "${install[@]}" >/dev/null; }
}

# A Go that can build every tool: from 1.21 on it fetches the toolchain that a module asks for; an older one (Debian 12 has 1.19)
# fetches a newer Go as the module that it also is, whose files then only lack their mode.
go_to_build_with() {
	local have folder
	command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
	have=$(GOTOOLCHAIN=local go env GOVERSION)
	export GOTOOLCHAIN=auto
	[[ $(printf '%s\n' go1.21 "$have" | sort -V | head -n 1) != go1.21 ]] || return 0
	if [[ ! -x $tools/go/bin/go ]]; then
		echo "tools: $have is too old; fetching $GO_VERSION"
		folder=$(cd "$tools" && module "golang.org/toolchain@v0.0.1-$GO_VERSION.linux-$(go env GOARCH)")
		rm -rf "$tools/go" && cp -r "$folder" "$tools/go"
		chmod -R u+w "$tools/go" && chmod +x "$tools"/go/bin/* "$tools"/go/pkg/tool/*/*
	fi
	PATH=$tools/go/bin:$PATH
	unset GOROOT
}

# module MODULE@VERSION: the folder that it is in.
module() { go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",\?$/\1/p'; }

# build NAME VERSION MODULE PACKAGE HOW [TAGS]: in the module's own folder, so that its go.mod and go.sum decide every dependency.
# `go install PACKAGE@VERSION` would ignore the module's own replace directives.
build() {
	local name=$1 version=$2 module=$3 package=$4 how=$5 tags=${6:-} folder verb=(build)
	[[ $how != test ]] || verb=(test -c)
	folder=$(cd "$tools" && module "$module@$version")
	cd "${folder:?no such module}"
	nice go "${verb[@]}" -mod=readonly -trimpath -ldflags "-s -w -X $cri_tools/pkg/version.Version=$CRI_TOOLS_VERSION" \
		-tags "$tags" -o "$tools/bin/$name" "./$package"
}

main() {
	local todo=() line name of started log=$tools/build.log
	mkdir -p "$tools/bin" "$tools/stamps"
	while read -r name of; do
		[[ -x $tools/bin/$name && $(cat "$tools/stamps/$name" 2>/dev/null) == "$of" ]] || todo+=("$name $of")
	done < <(list)
	((${#todo[@]})) || return 0

	packages
	go_to_build_with
	export CGO_ENABLED=1 GOWORK=off GOFLAGS=
	: >"$log"
	for line in "${todo[@]}"; do
		read -r name of <<<"$line"
		started=$SECONDS
		printf 'tools: %-24s %-8s ' "$name" "${of%% *}"
		# Words: the fields of the list.
		# shellcheck disable=SC2086
		if ! (build "$name" $of) >>"$log" 2>&1; then
			echo "FAILED; the end of $log:"
			tail -n 20 "$log"
			return 1
		fi
		echo "$of" >"$tools/stamps/$name"
		echo "$((SECONDS - started)) s"
	done
}

case ${1:-} in
'') main ;;
list) list ;;
*) echo "usage: tools.sh [list]" >&2 && exit 2 ;;
esac
