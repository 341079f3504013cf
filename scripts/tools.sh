#!/usr/bin/env bash
# Installs the Debian packages whose programs the tests drive, where it can:
# as root on a system with apt-get; and builds the S3 servers that they run,
# through the Go module proxy, and takes the kernel and the busybox of the tests'
# guests, and NBD programs and the qemu of a newer Debian, from Debian packages without installing
# these, into $CAIRN_TOOLS (cairn-tools in the user's cache folder), once for all clones.
# Says plainly what stays missing; the tests
# that need it skip then (in CI they fail). Exits 0 unless --strict is given.
set -u
strict=0
[ "${1:-}" = --strict ] && strict=1

# program:package
wanted="nbdinfo:libnbd-bin nbdcopy:libnbd-bin nbdfuse:libnbd-bin qemu-img:qemu-utils qemu-io:qemu-utils fio:fio \
mke2fs:e2fsprogs e2fsck:e2fsprogs debugfs:e2fsprogs fusermount3:fuse3 nbdkit:nbdkit nbdsh:python3-libnbd qemu-system-x86_64:qemu-system-x86 \
openstack:python3-openstackclient cinder:python3-cinderclient keystone-manage:python3-keystone keystone-wsgi-public:python3-keystone initdb:postgresql ip:iproute2"

missing() {
	# Debian has the programs of PostgreSQL in a folder of each version.
	postgresql=$(printf ':%s' /usr/lib/postgresql/*/bin)
	for pair in $wanted; do
		PATH="$PATH:/sbin:/usr/sbin$postgresql" command -v "${pair%%:*}" >/dev/null 2>&1 || echo "$pair"
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
status=0
if [ -n "$pairs" ]; then
	echo "not installed, so the tests that drive them are skipped:"
	printf '%s\n' "$pairs" | sed 's/\(.*\):\(.*\)/  \1 (Debian package \2)/'
	status=$strict
fi

# S3 servers: program, package@version.
servers="versitygw=github.com/versity/versitygw/cmd/versitygw@v1.8.0
minio=github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c"
cache=${CAIRN_TOOLS:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/cairn-tools}

# server PROGRAM PACKAGE builds one that is missing or of another version.
server() {
	[ -x "$cache/$1" ] && [ "$(cat "$cache/$1.version" 2>/dev/null)" = "$2" ] && return 0
	command -v "${GO:-go}" >/dev/null 2>&1 || { echo "  $1: no Go to build it with"; return 1; }
	echo "building $1 into $cache, once; it takes some minutes ($2)"
	build=$(mktemp -d "$cache/build.XXXXXX") || return 1
	if (cd "$build" && GOFLAGS='-trimpath' GOWORK=off CGO_ENABLED=0 GOBIN="$build" nice -n 10 "${GO:-go}" install -ldflags '-s -w' "$2") >"$build/log" 2>&1; then
		# The program first: a version without it would not be built again.
		mv "$build/$1" "$cache/$1" && echo "$2" >"$cache/$1.version"
	else
		echo "$1 could not be built, so the tests that run it are skipped:"
		tail -n 5 "$build/log" | sed 's/^/  /'
		rm -rf "$build"
		return 1
	fi
	rm -rf "$build"
}

# What guests have: internal/guestvm. The modules by name, each with those that it needs.
modules="virtio virtio_ring virtio_pci virtio_pci_modern_dev virtio_pci_legacy_dev virtio_blk virtio_console \
virtio_net net_failover failover nbd loop"

# fetched FOLDER FILE MAKE WHAT has a function make a folder of the cache, once: FILE is there
# then. It makes it in the present folder.
fetched() {
	[ -e "$cache/$1/$2" ] && return 0
	echo "fetching $4 into $cache, once"
	build=$(mktemp -d "$cache/build.XXXXXX") || return 1
	if (cd "$build" && "$3") >"$build/log" 2>&1; then
		rm -rf "${cache:?}/$1" && mv "$build/$1" "$cache/$1"
	else
		echo "that failed, so the tests that need it are skipped:"
		tail -n 5 "$build/log" | sed 's/^/  /'
		rm -rf "$build"
		return 1
	fi
	rm -rf "$build"
}

# guestfiles makes the folder guest from the newest packages.
guestfiles() {
	[ "$(uname -m)" = x86_64 ] || { echo "guests are x86_64, and this is $(uname -m)"; return 1; }
	linux() { apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9]\)/\1/p' | head -n 1; }
	[ -n "$(linux)" ] || apt-get -o DPkg::Lock::Timeout=300 update -q
	apt-get download "$(linux)" busybox-static && mkdir -p guest/modules || return 1
	for deb in *.deb; do dpkg-deb -x "$deb" root || return 1; done
	mv root/boot/vmlinuz-* guest/vmlinuz && find root -name busybox -type f -perm -1 -exec mv {} guest/busybox \; || return 1
	for m in $modules; do
		# In the names of some files there are dashes, and some Debian compresses.
		file=$(find root -name "$(echo "$m" | sed 's/_/[_-]/g').ko*" | head -n 1)
		case $file in
		*.ko) mv "$file" "guest/modules/$m.ko" || return 1 ;;
		*.ko.xz) xz -dc "$file" >"guest/modules/$m.ko" || return 1 ;;
		*) echo "the kernel's package has no module $m"; return 1 ;;
		esac
	done
	[ -x guest/busybox ] || { echo "no busybox in its package"; return 1; }
}

# The Debian whose libnbd and qemu speak all of the protocol, with 64-bit lengths: Debian 12's
# do not yet. Its guests' disks may be in I/O threads.
newer=trixie

# newerfiles makes the folder of that Debian: the programs, with all the libraries that they need.
newerfiles() {
	site() { apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1; }
	[ -n "$(site)" ] || apt-get -o DPkg::Lock::Timeout=300 update -q
	site=$(site)
	[ -n "$site" ] || { echo "apt-get has no source of Debian's packages here"; return 1; }
	mkdir -p apt/lists/partial apt/cache/archives/partial "$newer/bin" || return 1
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site $newer main" >apt/sources.list
	# Of a system of its own, on which nothing is installed: so the C library comes along.
	apt() {
		apt-get -o Dir::Etc::sourcelist="$PWD/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
			-o Dir::State::lists="$PWD/apt/lists" -o Dir::State::status=/dev/null -o Dir::Cache="$PWD/apt/cache" \
			-o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -q "$@"
	}
	apt update && apt install -y --download-only --no-install-recommends libnbd-bin python3-libnbd qemu-utils qemu-system-x86 qemu-guest-agent || return 1
	for deb in apt/cache/archives/*.deb; do dpkg-deb -x "$deb" "$newer" || return 1; done
	mv "$newer/usr/share" share && mkdir "$newer/usr/share" && mv share/qemu share/seabios "$newer/usr/share" || return 1 # not documents and locales
	rm -f "$newer"/usr/bin/qemu-system-i386 "$newer"/usr/bin/*-microvm
	loader=$(find "$newer/usr/lib" -name 'ld-linux*.so.*' -type f | head -n 1)
	[ -n "$loader" ] || { echo "the C library's package has no loader"; return 1; }
	lib=$(dirname "${loader#"$newer"/}")
	for program in nbdinfo nbdcopy qemu-img qemu-io qemu-nbd qemu-system-x86_64 nbdsh; do
		run="\"\$d/usr/bin/$program\""
		case $program in
		nbdsh) run='"$d/usr/bin/python3" -m nbd' ;;
		qemu-system-*) run="$run"' -L "$d/usr/share/qemu" -L "$d/usr/share/seabios"' ;;
		esac
		cat >"$newer/bin/$program" <<-EOF || return 1
			#!/bin/sh
			# $program with the libraries of Debian $newer
			d=\$(cd "\$(dirname "\$0")/.." && pwd)
			export QEMU_MODULE_DIR="\$d/$lib/qemu"
			export PYTHONHOME="\$d/usr" PYTHONPATH="\$d/usr/lib/python3/dist-packages" PYTHONDONTWRITEBYTECODE=1
			exec "\$d/$lib/${loader##*/}" --library-path "\$d/$lib" $run "\$@"
		EOF
		chmod +x "$newer/bin/$program" && "$newer/bin/$program" --version || return 1
	done
}

if mkdir -p "$cache"; then
	# Not twice at once by two clones.
	exec 9>"$cache/lock"
	command -v flock >/dev/null 2>&1 && flock 9
	for s in $servers; do
		server "${s%%=*}" "${s#*=}" || status=$strict
	done
	fetched guest vmlinuz guestfiles "a kernel and busybox for the tests' guests" || status=$strict
	fetched "$newer" usr/sbin/qemu-ga newerfiles "libnbd, qemu and its guest agent of Debian $newer" || status=$strict
else
	echo "neither S3 servers nor guests nor newer NBD programs and qemu can be had without $cache: set CAIRN_TOOLS to a folder that can be written"
	status=$strict
fi
exit $status
