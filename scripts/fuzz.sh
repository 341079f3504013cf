#!/usr/bin/env bash
# Runs every fuzz target of the module for a short time: fuzz.sh [TIME=10s].
# New inputs go to the Go build cache; a failing one is written to testdata by
# the go command and named in its output.
set -euo pipefail
time=${1:-10s}
count=0
while IFS=: read -r file func; do
	echo "fuzz: $func in $(dirname "$file") for $time"
	go test -run '^$' -fuzz "^$func\$" -fuzztime "$time" "./$(dirname "$file")" | tail -n 3
	count=$((count + 1))
done < <(git ls-files '*_test.go' | xargs grep -Ho '^func Fuzz[A-Za-z0-9_]*' | sed 's/func //')
[ "$count" -gt 0 ] || { echo "fuzz: no target found" >&2; exit 1; }
echo "fuzz: $count targets"
