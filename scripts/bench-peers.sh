#!/usr/bin/env bash
# Full backup, two incrementals, restore and mount beside restic and borg, on
# the images of mkimage.sh:
#   bench-peers.sh [--size 4G] [--fill 2300] [--images DIR] [--cairn PATH]
# prints wall and CPU seconds, peak memory, and what each step stored; of the
# mounts the time to the first byte, of a random 4 KiB read, and the sequential
# rate. Smaller values than the default are for trying. Peers that are not
# installed (Debian packages restic, borgbackup) are left out, and that is said.
# What counts are ratios within one run: machines differ.
#
# Each step begins when what was written before is on the disk, and a restore
# ends when its file is. "restore --verify" reads the file back as well, which
# the peers' restores do not.
#
# CPU seconds of cairn are those of the command, the agent and the data plane;
# its peak is the sum of the peaks of agent and data plane. Sizes are before
# parity, like the peers'; with 4+2 the stores take 1.5 times that.
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin
here=$(dirname "$(realpath "$0")")
size=4G fill=2300 images='' cairn=$here/../bin/cairn
while [ $# -gt 0 ]; do
	case $1 in
	--size) size=$2 ;;
	--fill) fill=$2 ;;
	--images) images=$2 ;;
	--cairn) cairn=$2 ;;
	*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
	esac
	shift 2
done
cairn=$(realpath "$cairn")
command -v python3 >/dev/null || { echo "bench-peers: needs python3" >&2; exit 1; }

work=$(mktemp -d "${TMPDIR:-/tmp}/cairn-bench.XXXXXX")
run=$(mktemp -d /tmp/cairn-run.XXXXXX) # sockets: their paths must be short
agent_pid='' serve_pid=''
export CAIRN_STATE=$work/state CAIRN_SOCKET=$run/agent.sock CAIRN_CONTROL=$run/serve.sock CAIRN_NBD_DIR=$run/nbd
export RESTIC_PASSWORD=bench RESTIC_REPOSITORY=$work/restic XDG_CACHE_HOME=$work/cache
export BORG_PASSPHRASE=bench BORG_REPO=$work/borg BORG_BASE_DIR=$work/borgbase
end_process() {
	[ -n "$1" ] && kill -TERM "$1" 2>/dev/null || return 0
	for _ in $(seq 100); do kill -0 "$1" 2>/dev/null || return 0; sleep 0.1; done
	kill -KILL "$1" 2>/dev/null || true
}
cleanup() {
	code=$?
	trap - EXIT
	end_process "$agent_pid"
	end_process "$serve_pid"
	rm -rf --one-file-system "$work" "$run"
	exit $code
}
trap cleanup EXIT
trap 'exit 130' INT TERM

if [ -z "$images" ]; then
	images=$work/images
	echo "making images of $size with $fill MiB in them …"
	"$here/mkimage.sh" "$images" "$size" "$fill"
fi

# measure COMMAND…: "wall cpu peak_kib" of the command and its children, in $figures.
measure() {
	figures=$(python3 - "$work" "$@" <<'PY'
import resource, subprocess, sys, time
work, command = sys.argv[1], sys.argv[2:]
t = time.monotonic()
with open(work + "/out", "wb") as out, open(work + "/err", "wb") as err:
    code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err).returncode
wall = time.monotonic() - t
u = resource.getrusage(resource.RUSAGE_CHILDREN)
if code:
    sys.stderr.write(open(work + "/err", errors="replace").read())
    sys.exit("bench-peers: %s failed with exit code %d" % (" ".join(command), code))
print(wall, u.ru_utime + u.ru_stime, u.ru_maxrss)
PY
	)
}
rows=()
row() { # tool, step, wall, cpu, peak KiB, stored bytes or -
	local stored=-
	[ "$6" = - ] || stored=$(awk -v n="$6" 'BEGIN { printf "%.0f", n / 1048576 }')
	rows+=("$(printf '%-8s %-16s %8.2f %8.2f %8.0f %10s' "$1" "$2" "$3" "$4" "$(($5 / 1024))" "$stored")")
	echo "${rows[-1]}"
}
settle() { sync; }                             # nobody pays for what was written before
warm() { cat "$1" >/dev/null; }                # sources are in the page cache, for all alike
held() { du -s -B1 "$1" | cut -f 1; }
field() { sed -n 's/^ *"'"$1"'": *"\{0,1\}\([^",]*\)"\{0,1\},\{0,1\}$/\1/p' "$work/out" | head -n 1; }

# peer NAME REPOSITORY: calls NAME_backup and NAME_restore.
peer() {
	local before after
	mkdir -p "$work/source"
	before=$(held "$2")
	for v in 1 2 3; do
		ln -f "$images/v$v.raw" "$work/source/disk.raw" 2>/dev/null || cp --sparse=always "$images/v$v.raw" "$work/source/disk.raw"
		warm "$work/source/disk.raw"
		settle
		measure "$1_backup" "$v"
		after=$(held "$2")
		# shellcheck disable=SC2086 # three figures
		row "$1" "${steps[$v]}" $figures $((after - before))
		before=$after
	done
	mkdir "$work/restored"
	settle
	measure "$1_restore"
	# shellcheck disable=SC2086
	row "$1" restore $figures -
	cmp "$(find "$work/restored" -name disk.raw)" "$images/v3.raw"
	rm -rf "$work/restored" "$work/source"
}
steps=('' full 'then v2' 'then v3')

# The commands of the peers are programs of their own, to be measured as one.
mkdir -p "$work/bin"
export PATH=$work/bin:$PATH work
cat >"$work/bin/restic_backup" <<'SH'
#!/bin/sh
cd "$work/source" && exec restic backup disk.raw
SH
cat >"$work/bin/restic_restore" <<'SH'
#!/bin/sh
restic restore latest --target "$work/restored" && exec sync "$work/restored/disk.raw"
SH
cat >"$work/bin/borg_backup" <<'SH'
#!/bin/sh
cd "$work/source" && exec borg create --compression zstd,1 "::v$1" disk.raw
SH
cat >"$work/bin/borg_restore" <<'SH'
#!/bin/sh
cd "$work/restored" && borg extract --sparse ::v3 && exec sync disk.raw
SH
chmod +x "$work"/bin/*

# cpu_of and peak_of the two processes of cairn.
cpu_of() {
	awk -v hz="$(getconf CLK_TCK)" '{ sub(/^.*\) /, ""); n += $12 + $13 } END { print n / hz }' "/proc/$agent_pid/stat" "/proc/$serve_pid/stat"
}
peak_of() { cat "/proc/$agent_pid/status" "/proc/$serve_pid/status" | awk '/^VmHWM/ { n += $2 } END { print n }'; }

# cairn_step STEP COMMAND…
cairn_step() {
	local step=$1 before
	shift
	settle
	echo 5 >"/proc/$agent_pid/clear_refs"
	echo 5 >"/proc/$serve_pid/clear_refs"
	before=$(cpu_of)
	measure "$@"
	read -r wall cpu _ <<<"$figures"
	row cairn "$step" "$wall" "$(awk -v a="$(cpu_of)" -v b="$before" -v c="$cpu" 'BEGIN { print a - b + c }')" "$(peak_of)" "$(field bytes_stored | grep . || echo -)"
}

bench_cairn() {
	"$cairn" agent --keep-priority >"$work/agent.log" 2>&1 &
	agent_pid=$!
	until "$cairn" status >/dev/null 2>&1; do
		kill -0 "$agent_pid" 2>/dev/null || { cat "$work/agent.log" >&2; exit 1; }
		sleep 0.05
	done
	serve_pid=$(tr -dc 0-9 <"$CAIRN_STATE/serve.lock")
	"$cairn" volume create bench --size "$(stat -c %s "$images/v1.raw")" -o json >"$work/out"
	uri=$(field uri)
	for v in 1 2 3; do
		"$cairn" copy "$images/v$v.raw" "$uri" >/dev/null
		cairn_step "${steps[$v]}" "$cairn" backup create bench --auto -o json
	done
	id=$(field id)
	for how in restore 'restore --verify'; do
		# shellcheck disable=SC2086 # a command and its flag
		cairn_step "$how" "$cairn" backup $how "$id" --file "$work/restored.raw" -o json
		cmp "$work/restored.raw" "$images/v3.raw"
		rm "$work/restored.raw"
	done
	mounted cairn bench/latest/disk.raw "$cairn" mount "$work/mnt"
}

# mounted TOOL FILE COMMAND…: what reading FILE of the mount that COMMAND makes on
# $work/mnt costs, with nothing of the stores in the page cache where we may
# empty that.
mounts=()
mounted() {
	local tool=$1 file=$work/mnt/$2 pid
	shift 2
	mkdir "$work/mnt"
	sync
	[ -w /proc/sys/vm/drop_caches ] && echo 3 >/proc/sys/vm/drop_caches
	"$@" >"$work/mount.log" 2>&1 &
	pid=$!
	until [ -e "$file" ]; do
		kill -0 "$pid" 2>/dev/null || { cat "$work/mount.log" >&2; exit 1; }
		sleep 0.02
	done
	mounts+=("$(printf '%-8s' "$tool") $(python3 - "$file" "$images/v3.raw" <<'PY'
import os, random, sys, time
mounted, image = (os.open(p, os.O_RDONLY) for p in sys.argv[1:])
size = os.fstat(image).st_size

def took(n, off):
    t = time.monotonic()
    got = os.pread(mounted, n, off)
    t = time.monotonic() - t
    if got != os.pread(image, n, off):
        sys.exit("bench-peers: the mount differs at byte %d" % off)
    return t

# Where there is data: a hole costs nothing, and says nothing.
r, places = random.Random(7), []
while len(places) < 201:
    off = r.randrange(size >> 12) << 12
    if os.pread(image, 4096, off).strip(b"\0"):
        places.append(off)
first = took(4096, places[0])
some = sorted(took(4096, off) for off in places[1:])
t = time.monotonic()
for off in range(0, size, 1 << 20):
    os.pread(mounted, 1 << 20, off)
t = time.monotonic() - t
print("%12.1f %14.2f %16.0f" % (first * 1e3, some[len(some) // 2] * 1e3, size / t / 1e6))
PY
	)")
	umount "$work/mnt"
	wait "$pid"
	rmdir "$work/mnt"
}

printf '%-8s %-16s %8s %8s %8s %10s\n' tool step 'wall s' 'CPU s' 'peak MiB' 'stored MiB'
bench_cairn
end_process "$agent_pid"
agent_pid=''
end_process "$serve_pid"
serve_pid=''
rm -rf "$work/state"
if command -v restic >/dev/null; then
	restic init -q
	peer restic "$work/restic"
	mounted restic snapshots/latest/disk.raw restic mount "$work/mnt"
else
	echo "restic is not installed: left out (Debian package restic)"
fi
if command -v borg >/dev/null; then
	borg init -e repokey-blake2 2>/dev/null
	peer borg "$work/borg"
else
	echo "borg is not installed: left out (Debian package borgbackup)"
fi
echo
printf '%-8s %-16s %8s %8s %8s %10s\n' tool step 'wall s' 'CPU s' 'peak MiB' 'stored MiB'
printf '%s\n' "${rows[@]}"
echo
printf '%-8s %12s %14s %16s\n' mount 'first ms' 'random 4K ms' 'sequential MB/s'
printf '%s\n' "${mounts[@]}"
