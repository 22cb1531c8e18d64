#!/usr/bin/env bash
# tools/radv_table.sh [BUILD]: writes the register tables of docs/DEVICES.md between its markers.
# Fails, and leaves the page alone, when any pipeline spills.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build}
doc=docs/DEVICES.md
icd=/usr/share/vulkan/icd.d/radeon_icd.$(uname -m).json
out=$(mktemp)
trap 'rm -f "$out"' EXIT

for family in POLARIS10 NAVI21 GFX1100; do
    VK_DRIVER_FILES=$icd VK_ICD_FILENAMES=$icd RADV_FORCE_FAMILY=$family "$build/radv_table" >>"$out"
done
awk -v table="$out" '
    /<!-- radv_table: begin -->/ {
        print
        print ""
        while ((getline line < table) > 0) print line
        skip = 1
    }
    /<!-- radv_table: end -->/ { skip = 0 }
    !skip
' "$doc" | awk '!/radv_table: begin/ || !seen++' >"$out.doc"
mv "$out.doc" "$doc"
