#!/usr/bin/env bash
# Runs every fuzz target of the module for a short time: fuzz.sh [TIME=10s].
# New inputs go to the Go build cache; a failing one is written to testdata by
# the go command and named in its output.
#
# An input that reaches new code is not made smaller (-fuzzminimizetime 1x): the
# engine would spend most of a short time on that.
set -euo pipefail
time=${1:-10s}
count=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Before Go 1.27 a run whose time is up may end in "context deadline exceeded"
# though nothing was found (go.dev/issue/75804). Whatever is found is printed:
# an input written to testdata, or what the target itself said.
timesup() {
	[ "$(grep -v '^fuzz: elapsed' "$log" | sed 's/([0-9.]*s)//; s/\t[0-9.]*s$//')" = "$(
		printf -- '--- FAIL: %s \n    context deadline exceeded\nFAIL\nexit status 1\nFAIL\t%s' "$1" "$2"
	)" ]
}

while IFS=: read -r file func; do
	dir=./$(dirname "$file")
	echo "fuzz: $func in $dir for $time"
	if ! go test -run '^$' -fuzz "^$func\$" -fuzztime "$time" -fuzzminimizetime 1x "$dir" >"$log" 2>&1 &&
		! timesup "$func" "$(go list "$dir")"; then
		cat "$log"
		exit 1
	fi
	grep '^fuzz: elapsed' "$log" | tail -n 1
	count=$((count + 1))
done < <(git ls-files '*_test.go' | xargs grep -Ho '^func Fuzz[A-Za-z0-9_]*' | sed 's/func //')
[ "$count" -gt 0 ] || { echo "fuzz: no target found" >&2; exit 1; }
echo "fuzz: $count targets"
