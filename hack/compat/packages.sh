# The programs of other versions, from Debian's packages; sourced by compat.sh.
# It must never install a package: its scripts would start a server on this machine.
# shellcheck shell=bash

# unpack SUBJECT FOLDER: the packages of versions.env, beneath the folder. A second run does nothing.
unpack() {
	local wanted mirror name path sum deb
	wanted=$(awk -v name="$1" '$1 == name' <<<"$COMPAT_AMD64")
	[[ -n $wanted ]] || { echo "compat: no package of $1 in versions.env" >&2 && return 1; }
	[[ $(dpkg --print-architecture) == amd64 ]] || { echo 'compat: the pinned packages are those of amd64' >&2 && return 1; }
	[[ $(cat "$2/stamp" 2>/dev/null) != "$wanted" ]] || return 0
	rm -rf "$2"
	mkdir -p "$2/deb"
	chmod 777 "$2/deb" # apt downloads as a user of its own
	mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
	while read -r name path sum; do
		deb=$2/deb/${path##*/}
		if ! /usr/lib/apt/apt-helper -qq download-file "${mirror:?no Debian archive in the sources of apt}$path" "$deb" "SHA256:$sum" >"$2/log" 2>&1; then
			echo "compat: $name: ${path##*/} cannot be had; if a newer one has replaced it: hack/versions.env" >&2
			cat "$2/log" >&2
			return 1
		fi
		dpkg-deb -x "$deb" "$2"
	done <<<"$wanted"
	rm -r "$2/deb" "$2/log"
	echo "$wanted" >"$2/stamp"
}
