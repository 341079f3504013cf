#!/usr/bin/env bash
# The main job, end to end: demo.sh PATH/TO/cairn (see "make demo").
# A volume with a real file system is written through NBD, backed up in full and
# incrementally, two of six stores are lost, and a mount, an export and a
# restore are compared with the volume, byte for byte. Exit 0 only if every
# comparison held. Everything is in temporary folders, removed at the end.
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin
cairn=$(realpath "${1:?usage: demo.sh PATH/TO/cairn}")
size=1GiB fill_mib=${CAIRN_DEMO_MIB:-320}

die() { echo "demo: $*" >&2; exit 1; }
note() { printf '\n== %s\n' "$*"; }

command -v mke2fs >/dev/null && command -v debugfs >/dev/null ||
	die "needs mke2fs and debugfs to make a real file system: install the Debian package e2fsprogs"
[ -e /dev/fuse ] ||
	die "needs /dev/fuse to show the mount: load it with \"modprobe fuse\"; a container is started with \"--device /dev/fuse --cap-add SYS_ADMIN\""
{ [ -r /dev/fuse ] && [ -w /dev/fuse ]; } ||
	die "may not open /dev/fuse to show the mount: run the demo as root, or \"chmod 666 /dev/fuse\" as most systems have it"
[ "$(id -u)" = 0 ] || command -v fusermount3 >/dev/null ||
	die "needs fusermount3 to mount without root: install the Debian package fuse3, or run the demo as root"

# shellcheck source=scripts/demohost.sh
. "$(dirname "$0")/demohost.sh"
logs="agent.log mount.log state/serve.log"
free=$(df -Pk "$work" | awk 'NR==2 {print int($4/1024)}')
[ "$free" -ge $((fill_mib * 12)) ] || die "needs $((fill_mib * 12)) MiB free in $work, there are $free: set TMPDIR"

# field NAME <<<JSON: the value of a key.
field() { sed -n 's/^ *"'"$1"'": *"\{0,1\}\([^",]*\)"\{0,1\},\{0,1\}$/\1/p' | awk "NR == 1"; }

rows=() failed=0
now() { echo "${EPOCHREALTIME/[.,]/}"; }
row() { rows+=("$1|$2|$3|$4"); }               # step, bytes read, bytes stored, microseconds
took() { echo $(($(now) - t0)); }
start() { note "$*"; t0=$(now); }

# compare WHAT FILE FILE: the verdict goes into the table.
compare() {
	if cmp -- "$2" "$3"; then
		verdicts+=("$1|same, byte for byte")
	else
		verdicts+=("$1|DIFFERENT") failed=1
	fi
}
verdicts=()

# put FILE URI: with a foreign client if there is one.
put() {
	if command -v nbdcopy >/dev/null; then
		nbdcopy --flush -- "$1" "$2"
	elif command -v qemu-img >/dev/null; then
		qemu-img convert -n -f raw -O raw "$1" "$2"
	else
		"$cairn" copy "$1" "$2" >/dev/null
	fi
}
# take URI FILE: a new file.
take() {
	if command -v nbdcopy >/dev/null; then
		nbdcopy -- "$1" "$2"
	else
		"$cairn" copy "$1" "$2" >/dev/null
	fi
}

start "1. an agent on an empty machine makes six local stores"
"$cairn" agent >"$work/agent.log" 2>&1 &
agent_pid=$!
until "$cairn" status >/dev/null 2>&1; do
	kill -0 "$agent_pid" 2>/dev/null || die "the agent ended"
	sleep 0.05
done
"$cairn" status
row "start agent and data plane" - - "$(took)"

start "2. a file system with $fill_mib MiB of this machine's files"
mkdir "$work/tree"
find /usr -xdev -type f -size -16M -readable -printf '%s %p\n' 2>/dev/null | sort -k 2 |
	awk -v left=$((fill_mib << 20)) '{ size = $1; sub(/^[0-9]+ /, ""); if (full || size > left) { full = 1; next } left -= size; print }' >"$work/files"
{ tar -C / --no-recursion -cf - -T "$work/files" 2>/dev/null || true; } | tar -C "$work/tree" -xf - --no-same-owner
truncate -s 1G "$work/v1.img"
mke2fs -q -F -t ext4 -d "$work/tree" "$work/v1.img"
echo "$(wc -l <"$work/files") files"

start "3. a volume of $size, written through NBD"
uri=$("$cairn" volume create demo --size $size -o json | field uri)
put "$work/v1.img" "$uri"
echo "$uri"
row "write the volume by NBD" "$(du -B1 "$work/v1.img" | cut -f 1)" - "$(took)"

start "4. a full backup"
out=$("$cairn" backup create demo --name full -o json)
full=$(field id <<<"$out")
row "full backup" "$(field bytes_read <<<"$out")" "$(field bytes_stored <<<"$out")" "$(took)"
"$cairn" backup show full

start "5. about 1 % changes, through NBD"
# New files, and others deleted, in the file system itself.
cp "$work/v1.img" "$work/v2.img"
for i in 1 2 3; do
	head -c $((3 << 20)) /dev/urandom >"$work/new$i"
	printf 'write %s /new-file-%s\n' "$work/new$i" "$i"
done >"$work/changes"
sed -n '100p;500p;900p' "$work/files" | sed 's/.*/rm "&"/' >>"$work/changes"
debugfs -w -f "$work/changes" "$work/v2.img" >/dev/null 2>"$work/debugfs.log" || die "debugfs: $(cat "$work/debugfs.log")"
out=$("$cairn" copy "$work/v2.img" "$uri" -o json)
row "change through NBD" "$(field bytes_written <<<"$out")" - "$(took)"
echo "$(field bytes_written <<<"$out") bytes written, in the blocks that differ"

start "6. an incremental backup"
out=$("$cairn" backup create demo --incremental --name incr -o json)
row "incremental backup" "$(field bytes_read <<<"$out")" "$(field bytes_stored <<<"$out")" "$(took)"
"$cairn" backup show incr

start "7. two of the six stores are lost"
rm -rf "$CAIRN_STATE/stores/2" "$CAIRN_STATE/stores/5"
"$cairn" status | grep ^store

note "the volume as it is, to compare with"
take "${uri/\/demo?/\/demo@ro?}" "$work/volume.img"

start "8. a mount"
mkdir "$work/mnt"
"$cairn" mount "$work/mnt" >"$work/mount.log" 2>&1 &
mount_pid=$!
until [ -e "$work/mnt/demo/latest/disk.raw" ]; do
	kill -0 "$mount_pid" 2>/dev/null || die "the mount ended"
	sleep 0.02
done
row "mount, first look" - - "$(took)"
ls -l "$work/mnt/demo"
t0=$(now)
compare "mount, the incremental" "$work/mnt/demo/latest/disk.raw" "$work/volume.img"
row "read the mounted disk" "$(stat -c %s "$work/volume.img")" - "$(took)"
first=$(find "$work/mnt/demo" -mindepth 1 -maxdepth 1 -name '2*' | sort | head -n 1)
compare "mount, the full backup" "$first/disk.raw" "$work/v1.img"
"$cairn" umount "$work/mnt" >/dev/null
wait "$mount_pid" || die "the mount did not end well"
mount_pid=''

start "9. an NBD export"
out=$("$cairn" export incr -o json)
take "$(field uri <<<"$out")" "$work/export.img"
row "read the export by NBD" "$(stat -c %s "$work/export.img")" - "$(took)"
compare "export" "$work/export.img" "$work/volume.img"
"$cairn" unexport "$(field name <<<"$out")" >/dev/null
rm "$work/export.img"

start "10. a restore, to a new volume"
out=$("$cairn" backup restore incr --name restored -o json)
row "restore to a volume" "$(field bytes_read <<<"$out")" - "$(took)"
take "$("$cairn" export restored -o json | field uri)" "$work/restored.img"
compare "restored volume" "$work/restored.img" "$work/volume.img"
if e2fsck -fn "$work/restored.img" >"$work/e2fsck.log" 2>&1; then
	verdicts+=("file system of the restored volume|e2fsck finds no fault")
else
	verdicts+=("file system of the restored volume|DAMAGED: $(tail -n 1 "$work/e2fsck.log")") failed=1
fi
rm "$work/restored.img"

start "11. without agent and catalog: straight from the four stores that are left"
out=$("$cairn" repo restore "$full" "$work/full.img" -o json)
row "repo restore of the full" "$(field bytes_read <<<"$out")" - "$(took)"
compare "repo restore of the full" "$work/full.img" "$work/v1.img"

note "the result"
mib() { [ "$1" = - ] && echo - || awk -v n="$1" 'BEGIN { printf "%.1f MiB", n / 1048576 }'; }
printf '%-28s %14s %14s %10s\n' step 'bytes read' 'bytes stored' time
for r in "${rows[@]}"; do
	IFS='|' read -r step read stored us <<<"$r"
	printf '%-28s %14s %14s %8.2f s\n' "$step" "$(mib "$read")" "$(mib "$stored")" "$(awk -v u="$us" 'BEGIN { print u / 1e6 }')"
done
echo
for v in "${verdicts[@]}"; do printf '%-36s %s\n' "${v%%|*}" "${v#*|}"; done
[ $failed = 0 ] || die "what came back is not what was backed up"
echo
echo "All that came back is what was backed up, with two of six stores lost."
