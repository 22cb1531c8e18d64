# Shared by demo, check and tools/full: packages, drivers, timing. Sourced, never run.

# What building needs, what running needs, and what the tests need besides (Debian 12 names).
BUILD_PACKAGES=(gcc libc6-dev cmake ninja-build pkgconf glslang-tools spirv-tools libvulkan-dev
                libvulkan-volk-dev libcjson-dev libpcre2-dev nettle-dev
                zlib1g-dev)
RUN_PACKAGES=(libvulkan1 mesa-vulkan-drivers)
# chromium opens the report page; its chromium-common brings SwiftShader, the second software driver.
TEST_PACKAGES=(git clang g++ python3 binutils libcmocka-dev vulkan-validationlayers chromium)

say() { printf '%s\n' "$*" >&2; }

# A package may be there for several architectures: one line each.
is_installed() { dpkg-query -W -f='${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed; }

# install NAME...: with apt, only what is missing, as root or through sudo -n; otherwise says how and ends.
install() {
    local missing=() as=() name
    command -v dpkg-query >/dev/null || { say "this is no Debian: install the equivalents of $*"; exit 1; }
    for name in "$@"; do
        is_installed "$name" || missing+=("$name")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null || ! sudo -n true 2>/dev/null; then
            say "missing packages; as root:"
            say "  apt-get update && apt-get install -y --no-install-recommends ${missing[*]}"
            exit 1
        fi
        as=(sudo -n)
    fi
    say "installing ${missing[*]}"
    apt_run "${as[@]}" apt-get update
    apt_run "${as[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends "${missing[@]}"
}

# install_foreign ARCHITECTURE NAME...: the same for packages of another architecture; refuses when apt would
# remove anything for them.
install_foreign() {
    local arch=$1 name missing=0 as=()
    shift
    for name in "$@"; do
        is_installed "$name" || missing=1
    done
    [ "$missing" = 1 ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        as=(sudo -n)
    fi
    apt_run "${as[@]}" dpkg --add-architecture "$arch"
    apt_run "${as[@]}" apt-get update
    if apt-get install -s --no-install-recommends "$@" | grep '^Remv'; then
        say "apt would remove packages for those of $arch: not done"
        exit 1
    fi
    install "$@"
}

# Runs a command, shows its output only when it fails.
apt_run() {
    local log
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        say "failed: $*"
        exit 1
    fi
    rm -f "$log"
}

# configure DIR ARGUMENT...: once; afterwards CMake itself sees what changed.
configure() {
    local dir=$1
    shift
    [ -f "$dir/build.ninja" ] || cmake -G Ninja -S . -B "$dir" "$@" >/dev/null
}

# counted FILE: sums of the lines "passed failed skipped".
counted() {
    awk '{p += $1; f += $2; s += $3} END {printf "%d passed, %d failed, %d skipped\n", p, f, s}' "$1"
}

# What a result belongs to: the content of all that is built and of the shards themselves, committed or not.
tree_id() {
    local parts=(CMakeLists.txt cmake include models shaders src third_party tools/full)
    { git ls-tree HEAD "${parts[@]}" && git diff HEAD -- "${parts[@]}"; } | sha1sum | cut -c 1-12
}
