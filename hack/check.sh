# What the checks have in common; sourced by them.
# shellcheck shell=bash

passed=0 failed=0

# is NAME WANTED COMMAND…: the command's output, both streams, and its status, have to match ("text <status>").
is() {
	local name=$1 wanted=$2 got status=0
	shift 2
	got=$("$@" 2>&1) || status=$?
	((status == 0)) || got+=" <$status>"
	# A pattern, not a string: the names of random things vary.
	# shellcheck disable=SC2053
	if [[ $got == $wanted ]]; then
		echo "ok   $name" && passed=$((passed + 1))
	else
		printf 'FAIL %s\n     wanted: %s\n     got:    %s\n' "$name" "$wanted" "$got" && failed=$((failed + 1))
	fi
}

# The last line of a check, and its status.
closing() {
	echo "$passed passed, $failed failed in $SECONDS s"
	((failed == 0))
}
