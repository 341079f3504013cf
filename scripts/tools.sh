#!/usr/bin/env bash
# Installs the Debian packages whose programs the tests drive, where it can:
# as root on a system with apt-get. Says plainly what stays missing; the tests
# that need it skip then (in CI they fail). Exits 0 unless --strict is given.
set -u
strict=0
[ "${1:-}" = --strict ] && strict=1

# program:package
wanted="nbdinfo:libnbd-bin nbdcopy:libnbd-bin qemu-img:qemu-utils qemu-io:qemu-utils fio:fio \
mke2fs:e2fsprogs e2fsck:e2fsprogs debugfs:e2fsprogs fusermount3:fuse3 nbdkit:nbdkit nbdsh:python3-libnbd"

missing() {
	for pair in $wanted; do
		PATH="$PATH:/sbin:/usr/sbin" command -v "${pair%%:*}" >/dev/null 2>&1 || echo "$pair"
	done
}

pairs=$(missing)
if [ -n "$pairs" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
	packages=$(printf '%s\n' "$pairs" | sed 's/.*://' | sort -u | tr '\n' ' ')
	echo "installing Debian packages for the tests: $packages"
	export DEBIAN_FRONTEND=noninteractive
	# shellcheck disable=SC2086 # a list of package names
	{ apt-get -o DPkg::Lock::Timeout=300 update -q &&
		apt-get -o DPkg::Lock::Timeout=300 install -y -q --no-install-recommends $packages; } >/tmp/cairn-tools.$$.log 2>&1 ||
		{ echo "apt-get failed:"; tail -n 5 /tmp/cairn-tools.$$.log; }
	rm -f /tmp/cairn-tools.$$.log
	pairs=$(missing)
fi
[ -n "$pairs" ] || exit 0
echo "not installed, so the tests that drive them are skipped:"
printf '%s\n' "$pairs" | sed 's/\(.*\):\(.*\)/  \1 (Debian package \2)/'
exit $strict
