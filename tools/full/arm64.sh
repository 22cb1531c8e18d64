#!/usr/bin/env bash
# Library, program and tests for 64-bit ARM; tests run under qemu-user, those of the device on lavapipe:arm64.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tools/lib.sh

packages=(gcc-aarch64-linux-gnu qemu-user libc6-dev:arm64 libcjson-dev:arm64 libpcre2-dev:arm64
          nettle-dev:arm64 zlib1g-dev:arm64 libcmocka-dev:arm64 libvulkan1:arm64 mesa-vulkan-drivers:arm64)
install_foreign arm64 "${packages[@]}"
# Debian 12's cross compiler 12.2 breaks off (internal error) where it vectorises a reduction of a test.
configure build-arm64 -DCMAKE_TOOLCHAIN_FILE=cmake/toolchains/arm64-linux.cmake -DVKMOE_WERROR=ON \
    -DCMAKE_C_FLAGS=-fno-tree-vectorize
cmake --build build-arm64
file build-arm64/vkmoe 2>/dev/null || true

# Emulation costs 10 to 80 times: of the end-to-end tests only the shortest whole way, from text to text. Left
# out besides: what wants the validation layer, and single kernels, whose formats lavapipe:arm64 cannot all
# compile (LLVM 15: "Cannot select: v4f32 = truncate").
left_out='test_e2e*,test_gpu*,test_radv*,test_kernels*,test_bench_cases,test_fetch,test_tags'
counts=$(mktemp)
trap 'rm -f "$counts"' EXIT
status=0
tools/run_tests.py --build build-arm64 --wrapper qemu-aarch64 --foreign aarch64 --timeout 3000 \
    --leave-out "$left_out" --counts "$counts" || status=1
sed 's/^/counts /' "$counts"

# The same greedy tokens as here, where the golden tests hold.
greedy() { # MACHINE COMMAND...
    local icd=/usr/share/vulkan/icd.d/lvp_icd.$1.json
    shift
    VK_DRIVER_FILES=$icd VK_ICD_FILENAMES=$icd "$@" run -m models/emo-nano.gguf -p "And God said unto" -n 16 \
        --temp 0 --ignore-eos -ctk f32 -ctv f32 --json | grep -o '"tokens": [^]]*'
}
configure build-check -DVKMOE_WERROR=ON
cmake --build build-check --target vkmoe_cli
native=$(greedy "$(uname -m)" build-check/vkmoe)
foreign=$(greedy aarch64 qemu-aarch64 build-arm64/vkmoe)
echo "figure arm64 greedy $foreign"
[ -n "$native" ] && [ "$native" = "$foreign" ] || { echo "here: $native"; status=1; }
exit $status
