#!/bin/sh
# Compares Cairn's NBD server, with change tracking on, with nbdkit's file plugin
# and with qemu-nbd, on a cached file over a unix socket, and prints a table of
# medians and of the ratios to each. The servers take turns within each round, so
# that whatever else the machine does hits all of them.
#
# usage: bench-nbd.sh [ROUNDS [SECONDS]]     default: 3 rounds, 2 seconds for each job
#   SIZE=1G     size of the file
#   DIR=/tmp    where the files go (3 x SIZE)
#   TRACK=0     ours without change tracking
set -eu

rounds=${1:-3}
seconds=${2:-2}
size=${SIZE:-1G}
cd "$(dirname "$0")/.."

for tool in go fio nbdkit qemu-nbd nbdcopy; do
	command -v "$tool" >/dev/null || {
		echo "bench-nbd.sh: needs $tool (Debian packages: fio nbdkit qemu-utils libnbd-bin)" >&2
		exit 1
	}
done

tmp=$(mktemp -d "${DIR:-/tmp}/bench-nbd.XXXXXX")
pids=
cleanup() {
	for pid in $pids; do kill "$pid" 2>/dev/null || true; done
	wait 2>/dev/null || true
	rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

go build -o "$tmp/benchserver" ./nbd/testdata/benchserver

# Every file is filled in the same way: how the page cache came to be matters.
bytes=$(numfmt --from=iec "$size")
for s in cairn nbdkit qemu-nbd; do
	dd if=/dev/urandom of="$tmp/$s.img" bs=1M count=$((bytes >> 20)) status=none
	sync "$tmp/$s.img"
	mkdir "$tmp/$s.out"
done

track="-track $tmp/tracker"
if [ "${TRACK:-1}" = 0 ]; then track=; fi
# shellcheck disable=SC2086
"$tmp/benchserver" -socket "$tmp/cairn.sock" -file "$tmp/cairn.img" $track &
pids="$pids $!"
nbdkit -f -U "$tmp/nbdkit.sock" file "$tmp/nbdkit.img" &
pids="$pids $!"
qemu-nbd -t -e 8 -f raw -x disk -k "$tmp/qemu-nbd.sock" "$tmp/qemu-nbd.img" &
pids="$pids $!"
for s in cairn nbdkit qemu-nbd; do
	n=0
	until [ -S "$tmp/$s.sock" ]; do
		n=$((n + 1))
		[ "$n" -lt 100 ] || { echo "bench-nbd.sh: $s did not start" >&2; exit 1; }
		sleep 0.1
	done
done

uri() { echo "nbd+unix:///disk?socket=$tmp/$1.sock"; }

# run SERVER JOB RW BS DEPTH FIELD: adds one figure to a file. Of fio's terse
# output field 7 is KiB/s read, 8 read IOPS, 48 and 49 the same of writes.
run() {
	fio --name=b --ioengine=nbd --uri="$(uri "$1")" --rw="$3" --bs="$4" --iodepth="$5" \
		--size="$bytes" --runtime="$seconds" --time_based --randrepeat=1 \
		--output-format=terse --terse-version=3 | grep '^3;' | cut -d';' -f"$6" >>"$tmp/$1.out/$2"
}

# copy SERVER: MiB/s of nbdcopy to nowhere.
copy() {
	start=$(date +%s%N)
	nbdcopy "$(uri "$1")" null:
	end=$(date +%s%N)
	echo $(((bytes >> 20) * 1000000000 / (end - start))) >>"$tmp/$1.out/nbdcopy_MiBps"
}

round=0
while [ "$round" -lt "$rounds" ]; do
	round=$((round + 1))
	for s in cairn nbdkit qemu-nbd; do run $s 4k_randread_qd1_IOPS randread 4k 1 8; done
	for s in cairn nbdkit qemu-nbd; do run $s 4k_randwrite_qd1_IOPS randwrite 4k 1 49; done
	for s in cairn nbdkit qemu-nbd; do run $s 4k_randread_qd32_IOPS randread 4k 32 8; done
	for s in cairn nbdkit qemu-nbd; do run $s 4k_randwrite_qd32_IOPS randwrite 4k 32 49; done
	for s in cairn nbdkit qemu-nbd; do run $s 1M_read_qd8_KiBps read 1M 8 7; done
	for s in cairn nbdkit qemu-nbd; do run $s 1M_write_qd8_KiBps write 1M 8 48; done
	for s in cairn nbdkit qemu-nbd; do copy $s; done
	echo "round $round of $rounds done" >&2
done

median() { sort -n "$1" | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

printf '%-26s %12s %12s %12s %10s %10s\n' job cairn nbdkit qemu-nbd /nbdkit /qemu-nbd
for job in 4k_randread_qd1_IOPS 4k_randwrite_qd1_IOPS 4k_randread_qd32_IOPS 4k_randwrite_qd32_IOPS \
	1M_read_qd8_KiBps 1M_write_qd8_KiBps nbdcopy_MiBps; do
	c=$(median "$tmp/cairn.out/$job")
	n=$(median "$tmp/nbdkit.out/$job")
	q=$(median "$tmp/qemu-nbd.out/$job")
	awk -v j="$job" -v c="$c" -v n="$n" -v q="$q" \
		'BEGIN { printf "%-26s %12d %12d %12d %10.2f %10.2f\n", j, c, n, q, c / n, c / q }'
done
