#!/usr/bin/env bash
# Every source file of library and program compiles with mingw-w64. Debian has no cJSON, PCRE2 and nettle for
# it, so nothing is linked; headers that are the same for every system come from the Linux packages.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tools/lib.sh

install gcc-mingw-w64-x86-64 "${BUILD_PACKAGES[@]}"
headers=$(mktemp -d)
trap 'rm -rf "$headers"' EXIT
for name in vulkan vk_video volk.h volk.c cjson nettle; do
    ln -s "/usr/include/$name" "$headers"
done
for name in pcre2.h zlib.h zconf.h; do
    ln -s "$(find /usr/include -name "$name" | head -n 1)" "$headers/$name"
done
mkdir -p "$headers/generated"
: >"$headers/generated/cli_commands.inc"

flags=(-std=c11 -O2 -Wall -Wextra -Wshadow -Wundef -Wpointer-arith -Wstrict-prototypes -Werror
       -D_FILE_OFFSET_BITS=64 -Iinclude -Isrc -Ishaders -isystem "$headers" -I"$headers/generated"
       '-DVKMOE_SOURCE_MODELS="models"' '-DVKMOE_INSTALL_MODELS="models"'
       '-DVKMOE_BUILD_COMMIT="none"')
bad=0 n=0
for source in src/*/*.c; do
    n=$((n + 1))
    x86_64-w64-mingw32-gcc "${flags[@]}" -c "$source" -o /dev/null || bad=$((bad + 1))
done
echo "$n files, $bad failed"
[ "$bad" = 0 ]
