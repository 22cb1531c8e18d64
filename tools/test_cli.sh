#!/usr/bin/env bash
# test_cli.sh BUILD: exit status, one line of error and nothing left behind, for wrong uses of the program.
set -euo pipefail
cd "$(dirname "$0")/.."
vkmoe=$PWD/$1/vkmoe
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
bad=0

# expect STATUS ARGUMENT...: that exit status, and for failures exactly one line on stderr.
expect() {
    local want=$1 status=0 lines
    shift
    "$vkmoe" "$@" >"$place/out" 2>"$place/err" </dev/null || status=$?
    lines=$(wc -l <"$place/err")
    if [ "$status" != "$want" ] || { [ "$want" != 0 ] && [ "$lines" != 1 ]; }; then
        echo "vkmoe $*: status $status, not $want, or $lines lines of error:"
        cat "$place/err"
        bad=1
    fi
}

expect 0 --help
expect 0 --version
expect 2 nonsense
expect 2 help nonsense
for command in $("$vkmoe" --help | awk '/^commands:/ {on = 1; next} /^$/ {on = 0} on {print $1}'); do
    expect 0 "$command" --help
    grep -q '^example:' "$place/out" || { echo "$command --help has no example"; bad=1; }
    expect 0 help "$command"
    expect 2 "$command" --no-such-option
done

# Standard output that cannot be written.
status=0
"$vkmoe" --help >/dev/full 2>"$place/err" || status=$?
[ "$status" = 1 ] && [ "$(wc -l <"$place/err")" = 1 ] || { echo "full disk: status $status"; bad=1; }

has() { "$vkmoe" --help | grep -q "^  $1 "; }
if has inspect && [ -e models/emo-nano.gguf ]; then
    expect 0 inspect models/emo-nano.gguf
    expect 1 inspect "$place/none.gguf"
    expect 1 inspect "$place"
    head -c 1000 models/emo-nano.gguf >"$place/short.gguf"
    expect 1 inspect "$place/short.gguf"
    : >"$place/empty.gguf"
    expect 1 inspect "$place/empty.gguf"
fi
if has convert && [ -e models/emo-nano.gguf ]; then
    mkdir "$place/outputs"
    expect 2 convert models/emo-nano.gguf -o "$place/outputs/x.gguf" --type nonsense
    expect 2 convert models/emo-nano.gguf --type f16
    expect 1 convert "$place/none" -o "$place/outputs/x.gguf" --type f16
    expect 1 convert models/emo-nano.gguf -o "$place/outputs/no/such/folder/x.gguf" --type f16
    expect 1 convert models/emo-nano.gguf -o /dev/full --type f16
    expect 1 convert models/emo-nano.gguf -o "$place/outputs" --type f16
    (
        ulimit -f 2048 # a disk with 1 to 2 MiB left
        trap '' XFSZ
        expect 1 convert models/emo-nano.gguf -o "$place/outputs/x.gguf" --type f16
        exit $bad
    ) || bad=1
    [ -z "$(ls -A "$place/outputs")" ] || { echo "left behind: $(ls -A "$place/outputs")"; bad=1; }
fi
if has tokenize && [ -e models/emo-nano.gguf ]; then
    expect 0 tokenize -p "one two"
    expect 1 tokenize -f "$place/none.txt"
    expect 1 tokenize -m "$place/none.gguf" -p x
    expect 2 tokenize
fi
if has run && [ -e models/emo-nano.gguf ]; then
    expect 0 run -p "In the beginning" -n 4 --temp 0
    expect 1 run -m "$place/none.gguf" -p x
    expect 1 run -f "$place/none.txt"
    expect 2 run -p x -n -5
    expect 2 run -p x --temp nan
    expect 2 run --tokens 1,two,3
    expect 1 run -p x -n 2 --logits-out "$place/no/such/folder/x.npy"
    expect 1 run -p x -n 2 --logits-out "$place"
    status=0
    "$vkmoe" run -p x -n 4 --ignore-eos >/dev/full 2>"$place/err" || status=$?
    [ "$status" = 1 ] || { echo "run on a full disk: status $status"; bad=1; }
    "$vkmoe" run -p "In the beginning" -n 4 --json >"$place/out"
    python3 -m json.tool "$place/out" >/dev/null || { echo "run --json is no JSON"; bad=1; }
fi
if has devices; then
    "$vkmoe" devices --json >"$place/out"
    python3 -m json.tool "$place/out" >/dev/null || { echo "devices --json is no JSON"; bad=1; }
    VK_DRIVER_FILES=/dev/null VK_ICD_FILENAMES=/dev/null expect 1 devices
    grep -q mesa-vulkan-drivers "$place/err" || { echo "no driver: the line names no package"; bad=1; }
fi
exit $bad
