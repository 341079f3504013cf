#!/usr/bin/env bash
# Makes disk images for comparisons, the same bytes each time on the same host:
#   mkimage.sh OUTDIR [SIZE=4G] [FILL_MIB=2300]
#     v1.raw  an ext4 file system of SIZE with FILL_MIB of this host's files
#     v2.raw  v1 with 1 % of its 4 KiB blocks rewritten, scattered, and 2 % in runs of 1-8 MiB
#     v3.raw  v2 with 3 % rewritten in runs of 1-8 MiB
# Needs mke2fs (Debian package e2fsprogs) and python3.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
out=${1:?usage: mkimage.sh OUTDIR [SIZE] [FILL_MIB]} size=${2:-4G} fill=${3:-2300}
for tool in mke2fs python3; do
	command -v "$tool" >/dev/null || { echo "mkimage.sh: needs $tool" >&2; exit 1; }
done
mkdir -p "$out"
tree=$(mktemp -d -p "$out" tree.XXXXXX)
trap 'rm -rf "$tree"' EXIT
export LC_ALL=C E2FSPROGS_FAKE_TIME=1700000000 SOURCE_DATE_EPOCH=1700000000

# Regular files in the order of their paths' hashes: a mixture of text, programs
# and data that is the same on each run.
find /usr /etc /var/lib/dpkg -xdev -type f -size -64M -readable -printf '%s %p\n' 2>/dev/null | python3 -c '
import hashlib, sys
rows = []
for line in sys.stdin.buffer:
    size, path = line.rstrip(b"\n").split(b" ", 1)
    rows.append((hashlib.md5(path).digest(), int(size), path))
rows.sort()
left = int(sys.argv[1]) << 20
for _, size, path in rows:
    if size > left:
        break
    left -= size
    sys.stdout.buffer.write(path + b"\n")
' "$fill" >"$out/files.lst"
# tar says 1 or 2 when a listed file has vanished meanwhile: no matter.
{ tar -C / --no-recursion -cf - -T "$out/files.lst" --mtime=@1700000000 --owner=0 --group=0 2>/dev/null || true; } | tar -C "$tree" -xf -
id=11111111-2222-3333-4444-555555555555
rm -f "$out/v1.raw"
truncate -s "$size" "$out/v1.raw"
mke2fs -q -F -t ext4 -b 4096 -U $id -E hash_seed=$id,lazy_itable_init=0,nodiscard -d "$tree" "$out/v1.raw"

# variant FROM TO SEED SCATTERED% RUNS%: half of the new bytes do not compress,
# half are like text.
variant() {
	cp --sparse=always "$1" "$2"
	python3 - "$2" "$3" "$4" "$5" <<'PY'
import os, random, sys
path, seed, scattered, runs = sys.argv[1], *map(int, sys.argv[2:])
r = random.Random(seed)
size = os.path.getsize(path)
words = [b"w%05x " % i for i in range(4096)]

def text(n):
    o = bytearray()
    while len(o) < n:
        o += words[int(r.random() ** 3 * 4096)]
    return bytes(o[:n])

def content(n):
    return r.randbytes(n) if r.random() < .5 else text(n)

with open(path, "r+b") as f:
    blocks = size // 4096
    for b in sorted(r.sample(range(blocks), blocks * scattered // 100)):
        f.seek(b * 4096)
        f.write(content(4096))
    left = size * runs // 100
    while left > 0:
        n = min(left, r.randrange(1, 9) << 20)
        f.seek(r.randrange(0, (size - n) >> 12) << 12)
        f.write(content(n))
        left -= n
PY
}
variant "$out/v1.raw" "$out/v2.raw" 42 1 2
variant "$out/v2.raw" "$out/v3.raw" 43 0 3
ls -ls "$out"/v[123].raw
