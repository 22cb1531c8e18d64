#!/usr/bin/env bash
# tools/radv_table.sh [--baseline] [BUILD]: what AMD's compiler makes of every kernel, for five GPUs. Shows
# which lines of bench/amd-baseline.csv would change; with --baseline writes them, and the summary between
# the markers of docs/DEVICES.md. Fails, and writes nothing, when any pipeline spills.
set -euo pipefail
cd "$(dirname "$0")/.."
write=0
if [ "${1:-}" = --baseline ]; then
    write=1
    shift
fi
build=${1:-build}
doc=docs/DEVICES.md
csv=bench/amd-baseline.csv
families=(POLARIS10 VEGA10 NAVI10 NAVI21 GFX1100)
icd=/usr/share/vulkan/icd.d/radeon_icd.$(uname -m).json
out=$(mktemp)
trap 'rm -f "$out" "$out".*' EXIT

table() { # GPU ARGUMENT...
    VK_DRIVER_FILES=$icd VK_ICD_FILENAMES=$icd RADV_FORCE_FAMILY=$1 "$build/radv_table" "${@:2}"
}

cmake --build "$build" --target radv_table >/dev/null
table NAVI21 --head >"$out"
for family in "${families[@]}"; do
    table "$family" >>"$out"
done
diff -U0 "$csv" "$out" | grep '^[-+][A-Z#]' || true
[ "$write" = 1 ] || exit 0
cp "$out" "$csv"

# One row per mat-vec and mat-mul and format, one column per GPU.
awk -F, -v families="${families[*]}" '
    BEGIN {
        n = split(families, family, " ")
        printf "| kernel | format |"
        for (i = 1; i <= n; i++) printf " %s |", family[i]
        printf "\n|---|---|"
        for (i = 1; i <= n; i++) printf "--:|"
        printf "\n"
    }
    $18 != "" && $4 ~ /^(f16|q8_0|q4_0|q4_k|q6_k)$/ && $2 !~ /_arr/ && $3 !~ /adds/ {
        name = $2 ($3 == "" ? "" : ", " $3) " | " $4
        if (!(name in seen)) order[++rows] = name
        seen[name] = 1
        cell[name, $1] = $5 " / " $7 " / " sprintf("%.1f", $19)
    }
    END {
        for (r = 1; r <= rows; r++) {
            printf "| %s |", order[r]
            for (i = 1; i <= n; i++) printf " %s |", cell[order[r], family[i]]
            printf "\n"
        }
    }
' "$csv" >"$out.md"
awk -v table="$out.md" '
    /<!-- radv_table: begin -->/ {
        print
        print ""
        while ((getline line < table) > 0) print line
        print ""
        skip = 1
    }
    /<!-- radv_table: end -->/ { skip = 0 }
    !skip
' "$doc" | awk '!/radv_table: begin/ || !seen++' >"$out.doc"
cp "$out.doc" "$doc"
