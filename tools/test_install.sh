#!/usr/bin/env bash
# test_install.sh BUILD: installs a build to a temporary place and uses it from C and C++, through pkg-config
# (shared and static) and through find_package; the library must export the functions of vkmoe.h and no more.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$PWD/$1
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
flags=(-Wall -Wextra -Werror)

cmake --install "$build" --prefix "$place/first" --strip >/dev/null
mv "$place/first" "$place/moved" # an installation may be moved
root=$place/moved
libdir=$(dirname "$(find "$root" -name 'libvkmoe.so')")
export PKG_CONFIG_PATH=$libdir/pkgconfig LD_LIBRARY_PATH=$libdir

pkg() { pkg-config "$@" vkmoe; }
echo "--- pkg-config $(pkg --modversion)"
gcc -std=c11 "${flags[@]}" tests/consumer/c/main.c $(pkg --cflags --libs) -o "$place/c"
"$place/c"
gcc -std=c11 "${flags[@]}" tests/consumer/c/main.c $(pkg --cflags) "$libdir/libvkmoe.a" \
    $(pkg --static --libs-only-l | sed 's/-lvkmoe//') -o "$place/c-static"
"$place/c-static"
g++ -std=c++11 "${flags[@]}" -pedantic tests/consumer/cpp/main.cpp $(pkg --cflags --libs) -o "$place/cpp"
"$place/cpp"
gcc -std=c99 -pedantic "${flags[@]}" -fsyntax-only -x c $(pkg --cflags) "$root/include/vkmoe.h"

for language in c cpp; do
    echo "--- find_package, $language"
    cmake -G Ninja -S tests/consumer/$language -B "$place/$language-build" \
        -DCMAKE_PREFIX_PATH="$root" >/dev/null
    cmake --build "$place/$language-build" >/dev/null
    "$place/$language-build/consumer"
done

echo "--- sizes, stripped"
for file in "$root/bin/vkmoe" "$(readlink -f "$libdir/libvkmoe.so")"; do
    bytes=$(stat -c %s "$file")
    echo "$(basename "$file"): $bytes bytes"
    [ "$bytes" -lt 3000000 ]
done

echo "--- exported names against the header"
nm -D --defined-only "$libdir/libvkmoe.so" | awk '{print $3}' | sort -u >"$place/exported"
gcc -E -P -DVKMOE_BUILD_SHARED include/vkmoe.h | tr '\n' ' ' | grep -o 'visibility("default"))) [^;(]*(' |
    sed 's/.*[ *]\(vkmoe_[a-z0-9_]*\)($/\1/' | sort -u >"$place/declared"
[ -s "$place/declared" ]
diff "$place/declared" "$place/exported"
wc -l <"$place/exported"

echo "--- the installed program"
env -u LD_LIBRARY_PATH "$root/bin/vkmoe" --version
[ -s "$root/share/vkmoe/models/bench.txt" ] # what `vkmoe bench` replays
for model in models/*.gguf; do
    [ ! -e "$model" ] || [ -s "$root/share/vkmoe/$model" ]
done
size -B "$root/bin/vkmoe" "$libdir/libvkmoe.so"
