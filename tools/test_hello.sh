#!/usr/bin/env bash
# test_hello.sh BUILD: builds examples/hello.c with the shared library and generates text.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$PWD/$1
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

[ "$(wc -l <examples/hello.c)" -le 60 ]
gcc -std=c11 -Wall -Wextra -Werror -Iinclude examples/hello.c -L"$build" -lvkmoe -Wl,-rpath,"$build" \
    -o "$place/hello"
"$place/hello" models/emo-nano.gguf "In the beginning" >"$place/first"
"$place/hello" models/emo-nano.gguf "In the beginning" >"$place/second"
cat "$place/first"
grep -q '^In the beginning.' "$place/first"
cmp "$place/first" "$place/second" # the seed is fixed
! "$place/hello" nowhere.gguf 2>"$place/error"
grep -q 'nowhere.gguf' "$place/error"
