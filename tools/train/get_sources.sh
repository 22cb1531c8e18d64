#!/bin/sh
# Installs / downloads the Debian (bookworm, main) packages the corpus is made of and the tools
# the scripts need, as root.  Usage: sh get_sources.sh
set -e
here=$(cd "$(dirname "$0")" && pwd)
W=$(cd "$here" && /usr/bin/python3 -B -c "import paths; print(paths.WORK)")
mkdir -p "$W/debs"
apt-get install -y --no-install-recommends python3-torch libtorch-dev pybind11-dev python3-numpy python3-regex \
    libopenblas0-pthread g++ ninja-build libpython3-dev \
    bible-kjv bible-kjv-text manpages-de debian-handbook dict-gcide dict-foldoc anarchism
cd "$W/debs"
# Big ones are only unpacked, not installed.
for p in libcoq-stdlib glibc-source; do
    ls "$p"_*.deb >/dev/null 2>&1 || apt-get download "$p"
    mkdir -p "x-$p"
    dpkg-deb -x "$p"_*.deb "x-$p"
done
mkdir -p glibc
tar -C glibc -xJf x-glibc-source/usr/src/glibc/glibc-*.tar.xz
bible -f gen1:1-rev22:21 > "$W/kjv.txt"
dpkg-query -W -f='${Package} ${Version}\n' bible-kjv-text manpages-de debian-handbook dict-gcide \
    dict-foldoc anarchism libpython3.11-stdlib > "$W/versions.txt"
for p in libcoq-stdlib glibc-source; do
    echo "$p $(dpkg-deb -f "$W"/debs/"$p"_*.deb Version)" >> "$W/versions.txt"
done
cat "$W/versions.txt"
