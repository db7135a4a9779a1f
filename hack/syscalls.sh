#!/usr/bin/env bash
# Writes src/plan/seccomp/syscalls.txt: the numbers of every system call on every architecture that a filter can be made for.
# It must never be run by a build: the file is committed, and a change of it is a change of behaviour.
# The numbers are those of src/syscalls.csv in libseccomp's source, from Debian's archive or from the file given.
set -euo pipefail

repo=$(dirname "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)")
version=2.6.0
url=https://deb.debian.org/debian/pool/main/libs/libseccomp/libseccomp_$version.orig.tar.gz
sha256=83b6085232d1588c379dc9b9cae47bb37407cf262e6e74993c61ba72d2a784dc

table=${1:-}
if [[ -z $table ]]; then
	dir=$(mktemp -d)
	trap 'rm -rf "$dir"' EXIT
	wget -qO "$dir/source.tar.gz" "$url"
	echo "$sha256  $dir/source.tar.gz" | sha256sum --check --quiet
	tar -xzf "$dir/source.tar.gz" -C "$dir" --strip-components=1 "libseccomp-$version/src/syscalls.csv"
	table=$dir/src/syscalls.csv
fi
# A line for each name: the columns in the order of `arch::TABLE`, "-" where an architecture lacks it.
LC_ALL=C awk -F, -v columns='x86 x86_64 x32 arm aarch64 riscv64 loongarch64 ppc64' '
	BEGIN { count = split(columns, wanted, " ") }
	NR == 1 { for (i = 1; i <= NF; i++) place[$i] = i; next }
	{
		line = $1; found = 0
		for (i = 1; i <= count; i++) {
			number = $(place[wanted[i]])
			if (number == "PNR") number = "-"; else found = 1
			line = line " " number
		}
		if (found) print line
	}' "$table" | LC_ALL=C sort >"$repo/src/plan/seccomp/syscalls.txt"
