#!/bin/bash
# fetch.sh ARCH KERNEL...: fetches Debian's cloud kernels (5.10, 6.1, 6.12, newest = whatever sid has), a static busybox, the programs
# that tests start, and QEMU 10 for ARCH (amd64, arm64), and prints one line for each: "kernel NAME FOLDER", "busybox FILE",
# "userland FOLDER", "qemu FOLDER".
#
# Nothing is installed but the tools that are named below; the system's apt state is not touched: every suite has a state of
# its own. All of it is kept in $PICOSNITCH_KERNELS (default: picosnitch/kernels in the user's cache folder) and fetched
# once; sid's list is asked again when it is older than a day, so that the next kernel is met early.
#
# The packages come from the mirror that this machine's apt uses for Debian, else from deb.debian.org, and are verified with
# Debian's keyring. QEMU 7.2 (Debian 12) leaves garbage in EFLAGS after cmpxchg16b now and then, which kills guests with a
# double fault; therefore QEMU 10 comes from bookworm-backports there, unpacked, not installed.
#
# Exit codes: 0 all is there, 1 something went wrong (it says what), 2 usage, 3 the packages cannot be reached from here.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
home=${PICOSNITCH_KERNELS:-${XDG_CACHE_HOME:-$HOME/.cache}/picosnitch/kernels}
[ $# -ge 2 ] || { sed -n '2,3p' "$0" >&2; exit 2; }
arch=$1
shift
case $arch in amd64) system=qemu-system-x86 ;; arm64) system=qemu-system-arm ;; *) echo "fetch.sh: no architecture $arch: amd64 or arm64" >&2; exit 2 ;; esac
command -v apt-get >/dev/null || { echo "fetch.sh: kernels come as Debian packages, and this machine has no apt-get" >&2; exit 3; }
keys=/usr/share/keyrings/debian-archive-keyring.gpg
"$here/../deps.sh" debian-archive-keyring "$system" kmod xz-utils zstd >&2
mkdir -p "$home"
exec 9>"$home/lock"
flock 9

# mirror debian|debian-security: where this machine's apt gets it from.
mirror() {
	apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m1 -E "/$1/?\$" || echo "http://deb.debian.org/$1"
}

# state SUITE: sets $options, with which apt tools use a state of their own for this suite.
state() {
	local d=$home/apt/$arch-$1
	mkdir -p "$d/lists/partial" "$d/archives/partial"
	: >"$d/status"
	echo "deb [arch=$arch signed-by=$keys] $(mirror debian) $1 main" >"$d/sources.list"
	[ "$1" != bookworm ] || echo "deb [arch=$arch signed-by=$keys] $(mirror debian-security) $1-security main" >>"$d/sources.list"
	options=(-o "Dir::Etc::sourcelist=$d/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferencesparts=/dev/null
		-o "Dir::State::lists=$d/lists" -o "Dir::State::status=$d/status" -o "Dir::Cache::archives=$d/archives"
		-o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root
		-o "APT::Architecture=$arch" -o "APT::Architectures=$arch" -o Acquire::Retries=2 -o Acquire::http::Timeout=30)
	if [ ! -e "$d/updated" ] || { [ "$1" = sid ] && [ -z "$(find "$d/updated" -mmin -1440)" ]; }; then
		if apt-get -qq "${options[@]}" update >&2 && [ -n "$(ls "$d"/lists/*Packages* 2>/dev/null)" ]; then
			touch "$d/updated"
		elif [ ! -e "$d/updated" ]; then # an old list is better than none
			echo "fetch.sh: the list of $1 cannot be had from $(mirror debian)" >&2
			exit 3
		fi
	fi
}

# unpack FOLDER PACKAGE...: downloads and unpacks, into an empty folder.
unpack() {
	local to=$1 debs
	shift
	debs=$(mktemp -d)
	if ! (cd "$debs" && apt-get -qq "${options[@]}" download "$@" >&2); then
		rm -rf "$debs"
		echo "fetch.sh: cannot download $*" >&2
		apt-get -qq "${options[@]}" update >&2 && exit 1 # the package is not there any more, or never was
		exit 3
	fi
	rm -rf "$to"
	mkdir -p "$to"
	for p in "$debs"/*.deb; do dpkg-deb -x "$p" "$to"; done
	rm -rf "$debs"
}

kernel() {
	local suite prefix package release folder raw wanted
	case $1 in
	5.10) suite=bullseye prefix=5.10 ;;
	6.1) suite=bookworm prefix=6.1 ;; # its security archive has 6.12, too
	6.12) suite=trixie prefix=6.12 ;;
	newest) suite=sid prefix='[0-9]' ;;
	*) echo "fetch.sh: no kernel $1: 5.10, 6.1, 6.12 or newest" >&2; exit 2 ;;
	esac
	state "$suite"
	package=$(apt-cache "${options[@]}" pkgnames linux-image- | grep -E "^linux-image-$prefix\\..*-cloud-$arch\$" | sort -V | tail -1)
	[ -n "$package" ] || { echo "fetch.sh: $suite has no linux-image-$prefix*-cloud-$arch" >&2; exit 1; }
	release=${package#linux-image-}
	folder=$home/$arch/$release
	if [ ! -e "$folder/complete" ]; then
		# Newer suites split the package: the image depends on linux-binary-… and linux-modules-….
		wanted=$(apt-cache "${options[@]}" depends "$package" | awk '/Depends:/{print $2}' | grep -E '^linux-(binary|modules|image|base)-[0-9]' || true)
		raw=$home/unpack
		# shellcheck disable=SC2086
		unpack "$raw" "$package" $wanted
		rm -rf "$folder"
		mkdir -p "$folder/lib/modules/$release"
		# Up to trixie /boot/vmlinuz-X, from forky on /usr/lib/modules/X/vmlinuz.
		cp "$(ls -d "$raw"/boot/vmlinuz-* "$raw"/usr/lib/modules/*/vmlinuz 2>/dev/null | head -1)" "$folder/vmlinuz"
		for m in "$raw/usr/lib/modules/$release" "$raw/lib/modules/$release"; do
			[ ! -d "$m" ] || cp -a "$m/." "$folder/lib/modules/$release/"
		done
		rm -rf "$raw"
		depmod -b "$folder" "$release"
		touch "$folder/complete"
	fi
	echo "kernel $1 $folder"
}

# userland: what tests start in a guest, unpacked and not configured, with all that it needs.
userland() {
	local to=$home/$arch/userland wanted="$*"
	if [ "$(cat "$to/complete" 2>/dev/null)" != "$wanted" ]; then
		rm -f "$home/apt/$arch-bookworm/archives"/*.deb
		# The state says that nothing is installed: all of it comes.
		# shellcheck disable=SC2086
		if ! apt-get -qq -y --no-install-recommends --download-only "${options[@]}" install $wanted >&2; then
			echo "fetch.sh: cannot download $wanted" >&2
			exit 3
		fi
		rm -rf "$to"
		mkdir -p "$to"
		for p in "$home/apt/$arch-bookworm/archives"/*.deb; do dpkg-deb -x "$p" "$to"; done
		rm -f "$home/apt/$arch-bookworm/archives"/*.deb
		rm -rf "$to"/usr/share/{doc,man,locale,info,i18n,common-licenses,lintian,zoneinfo} "$to"/usr/lib/python3*/test "$to"/usr/lib/*/gconv \
			"$to"/usr/lib/*/lib{asan,hwasan,lsan,tsan,ubsan}.* "$to"/usr/lib/gcc/*/*/{lto1,g++-mapper-server} "$to"/usr/lib/gcc/*/*/*san* \
			"$to"/usr/bin/*-lto-dump-* "$to"/usr/share/perl "$to"/usr/lib/*/perl
		echo "$wanted" >"$to/complete"
	fi
	echo "userland $to"
}

for k in "$@"; do kernel "$k"; done

state bookworm
if [ ! -e "$home/$arch/busybox" ]; then
	unpack "$home/unpack" busybox-static
	mkdir -p "$home/$arch"
	cp "$home/unpack/bin/busybox" "$home/$arch/busybox"
	rm -rf "$home/unpack"
fi
echo "busybox $home/$arch/busybox"
userland bash coreutils gcc util-linux mount e2fsprogs btrfs-progs squashfs-tools erofs-utils squashfuse fuse3 perl-base python3-minimal procps systemd

case $arch in amd64) binary=qemu-system-x86_64 ;; arm64) binary=qemu-system-aarch64 ;; esac
if [ "$("$binary" --version | sed -n 's/.*version \([0-9]*\).*/\1/p')" -lt 10 ]; then
	host=$arch
	arch=$(dpkg --print-architecture)
	state bookworm-backports
	if [ ! -x "$home/qemu-$host/usr/bin/$binary" ]; then
		unpack "$home/qemu-$host" "$system" qemu-system-common qemu-system-data seabios
	fi
	echo "qemu $home/qemu-$host"
fi
