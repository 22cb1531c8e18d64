#!/usr/bin/env bash
# run_shard.sh COUNTS NAME COMMAND...: runs a row of tools/full/shards.txt unless out/full/ holds its result
# for this tree.
# A shard prints what it likes; lines "counts P F S" are added to COUNTS, lines "figure ..." are kept with the
# result for docs/RESULTS.md, and the exit status is one more test.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/lib.sh

counts=$1 name=$2
shift 2
result=out/full/$name.result log=out/full/$name.log id=$(tree_id)
mkdir -p out/full

if [ -f "$result" ] && [ "$(sed -n 's/^tree //p' "$result")" = "$id" ]; then
    printf 'kept  %-34s %4s s\n' "full: $name" "$(sed -n 's/^seconds //p' "$result")"
    sed -n 's/^counts //p' "$result" >>"$counts"
    exit 0
fi
start=$SECONDS
status=ok
timeout 3600 "$@" >"$log" 2>&1 </dev/null || status=FAIL
printf '%-4s  %-34s %4d s\n' "$status" "full: $name" $((SECONDS - start))
own=$([ "$status" = ok ] && echo "1 0 0" || echo "0 1 0")
{ sed -n 's/^counts //p' "$log"; echo "$own"; } >>"$counts"
if [ "$status" = ok ]; then
    {
        echo "tree $id"
        echo "commit $(git rev-parse --short=12 HEAD)"
        date -u +'date %F'
        echo "seconds $((SECONDS - start))"
        grep '^counts ' "$log" || true
        grep '^figure ' "$log" || true
        echo "counts $own"
    } >"$result"
else
    tail -n 40 "$log"
    rm -f "$result"
fi
