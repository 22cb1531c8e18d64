#!/usr/bin/env bash
# Library, program and tests for 64-bit ARM; tests run under qemu-user, those of the device on lavapipe:arm64.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tools/lib.sh

packages=(gcc-aarch64-linux-gnu qemu-user libc6-dev:arm64 libcjson-dev:arm64 libpcre2-dev:arm64
          libcmocka-dev:arm64 libvulkan1:arm64 mesa-vulkan-drivers:arm64)
install_foreign arm64 "${packages[@]}"
configure build-arm64 -DCMAKE_TOOLCHAIN_FILE=cmake/toolchains/arm64-linux.cmake -DVKMOE_WERROR=ON
cmake --build build-arm64
file build-arm64/vkmoe 2>/dev/null || true

# Emulation costs 10 to 50 times; the last of these is the whole way from text to text on the device.
counts=$(mktemp)
trap 'rm -f "$counts"' EXIT
status=0
tools/run_tests.py --build build-arm64 --wrapper qemu-aarch64 --foreign aarch64 --timeout 1500 \
    --counts "$counts" || status=1
sed 's/^/counts /' "$counts"
exit $status
