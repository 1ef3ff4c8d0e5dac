#!/bin/bash
# mysql.sh: fetches Debian sid's MySQL, which stable releases do not have, with the libraries that it needs, and prints the folder: usr/sbin/mysqld in
# it is run by its own loader. Nothing is installed, and the system's apt state is not touched. It is kept in $PICOSNITCH_MYSQL (default:
# picosnitch/mysql in the user's cache folder) and fetched once (a download of 52 MB). The packages are verified with Debian's keyring.
#
# Exit codes: 0 it is there, 1 something went wrong (it says what), 3 it cannot be had from here.
set -euo pipefail
home=${PICOSNITCH_MYSQL:-${XDG_CACHE_HOME:-$HOME/.cache}/picosnitch/mysql}
root=$home/root
if [ -e "$root/complete" ]; then
	echo "$root"
	exit 0
fi
command -v apt-get >/dev/null || { echo "mysql.sh: it comes as Debian packages, and this machine has no apt-get" >&2; exit 3; }
arch=$(dpkg --print-architecture)
keys=/usr/share/keyrings/debian-archive-keyring.gpg
"$(dirname "$0")/../deps.sh" debian-archive-keyring >&2
mkdir -p "$home/lists/partial" "$home/archives/partial" "$home/debs"
exec 9>"$home/lock"
flock 9
: >"$home/status"
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m1 -E '/debian/?$' || echo http://deb.debian.org/debian)
echo "deb [arch=$arch signed-by=$keys] $mirror sid main" >"$home/sources.list"
options=(-o "Dir::Etc::sourcelist=$home/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferencesparts=/dev/null
	-o "Dir::State::lists=$home/lists" -o "Dir::State::status=$home/status" -o "Dir::Cache::archives=$home/archives"
	-o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root -o Acquire::Retries=2 -o Acquire::http::Timeout=30)
apt-get -qq "${options[@]}" update >&2 || { echo "mysql.sh: the list of sid cannot be had from $mirror" >&2; exit 3; }
# All that they depend on, but for what only mysqld's scripts need.
mapfile -t packages < <(apt-cache "${options[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
	mysql-server-core mysql-client-core | grep '^[a-z]' | sort -u | grep -vE '^(perl|libperl|gcc-|libgdbm|libdb5|libc-gconv|libtirpc-common|openssl-)')
[ "${#packages[@]}" -gt 5 ] || { echo "mysql.sh: sid has no mysql-server-core for $arch" >&2; exit 3; }
(cd "$home/debs" && apt-get -qq "${options[@]}" download "${packages[@]}" >&2) || { echo "mysql.sh: cannot download ${packages[*]}" >&2; exit 3; }
rm -rf "$root"
mkdir -p "$root"
for p in "$home"/debs/*.deb; do dpkg-deb -x "$p" "$root"; done
# What the server and its client do not need to run.
rm -rf "$root"/usr/share/{doc,man,info,locale,lintian,gdb,gcc,bug} "$root"/usr/lib/mysql "$root"/usr/lib/*/{gconv,perl*} "$root"/var "$root"/etc
rm -rf "$home/debs" "$home/lists" "$home/archives"
touch "$root/complete"
echo "$root"
