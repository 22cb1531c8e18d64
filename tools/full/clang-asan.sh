#!/usr/bin/env bash
# The tests under clang's ASan and UBSan, on both drivers.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tools/lib.sh

install "${BUILD_PACKAGES[@]}" "${RUN_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
configure build-clang-asan -DCMAKE_C_COMPILER=clang -DVKMOE_WERROR=ON -DVKMOE_SANITIZE=ON \
    -DCMAKE_BUILD_TYPE=None -DCMAKE_C_FLAGS="-O1 -g"
cmake --build build-clang-asan
counts=$(mktemp)
trap 'rm -f "$counts"' EXIT
status=0
tools/run_tests.py --build build-clang-asan --sanitized --timeout 900 --counts "$counts" || status=1
sed 's/^/counts /' "$counts"
exit $status
