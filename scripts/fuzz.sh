#!/usr/bin/env bash
# Runs every fuzz target of the module for a short time: fuzz.sh [TIME=10s].
# New inputs go to the Go build cache; a failing one is written to testdata by
# the test program and named in its output.
#
# A package is built once for all its targets. As many targets run at once as
# there are processors, each with one worker: a target's start and its seeds keep
# one processor busy and no more.
#
# An input that reaches new code is not made smaller (-fuzzminimizetime 1x): the
# engine would spend most of a short time on that.
set -euo pipefail

# Before Go 1.27 a run whose time is up may end in "context deadline exceeded"
# though nothing was found (go.dev/issue/75804). Whatever is found is printed:
# an input written to testdata, or what the target itself said.
timesup() {
	[ "$(grep -v '^fuzz: elapsed' "$2" | sed 's/([0-9.]*s)//')" = "$(
		printf -- '--- FAIL: %s \n    context deadline exceeded\nFAIL' "$1"
	)" ]
}

# one TIME PROGRAM DIR PACKAGE FUNC runs one target, and prints all it has to say
# at its end. 255 tells xargs to begin no other.
one() {
	local log=$2.$5.log last
	if ! (cd "$3" && "$2" -test.run '^$' -test.fuzz "^$5\$" -test.fuzztime "$1" -test.fuzzminimizetime 1x \
		-test.parallel 1 -test.fuzzcachedir "$(go env GOCACHE)/fuzz/$4") >"$log" 2>&1 &&
		! timesup "$5" "$log"; then
		echo "fuzz: $5 in $3 failed"$'\n'"$(cat "$log")"
		return 255
	fi
	last=$(grep '^fuzz: elapsed' "$log" | tail -n 1) # that nothing ran is a failure
	echo "$last: $5 in $3"
}

if [ "${1:-}" = --one ]; then
	shift
	one "$@"
	exit
fi

time=${1:-10s}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
targets=$(git ls-files '*_test.go' | xargs grep -Ho '^func Fuzz[A-Za-z0-9_]*' | sed -E 's|^(.*)/[^/]*:func |./\1 |') || {
	echo "fuzz: no target found" >&2
	exit 1
}
while read -r dir; do
	program=$work/${dir//\//-}.test
	package=$(go list "$dir")
	echo "fuzz: building $dir"
	go test -c -fuzz . -o "$program" "$dir"
	awk -v d="$dir" -v before="$program $dir $package" '$1 == d { print before, $2 }' <<<"$targets" >>"$work/all"
done < <(cut -d' ' -f1 <<<"$targets" | sort -u)
xargs -P "$(nproc)" -L 1 "$0" --one "$time" <"$work/all"
echo "fuzz: $(wc -l <"$work/all") targets for $time"
