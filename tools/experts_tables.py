#!/usr/bin/env python3
"""Tables for README.md and docs/RESULTS.md from `vkmoe experts eval --format json`.

    tools/experts_tables.py short|full|documents FILE.json...     one file a model
"""
import json
import math
import os
import sys


def name_of(text):
    return os.path.basename(text["test"]).split(".")[0]


def read(path):
    """(model, texts, {(text, keep): row})"""
    with open(path, encoding="utf-8") as f:
        d = json.load(f)
    return d["model"], [name_of(t) for t in d["texts"]], {(r["text"], r["keep"]): r for r in d["rows"]}


def keeps(rows):
    return sorted({keep for _, keep in rows}, reverse=True)


def change(row, base, column):
    """Nats per token more than with all experts, as a change of perplexity in percent."""
    nll = row["nll_" + column]
    return None if nll is None else 100 * math.expm1(nll - base["nll_right"])


def cell(value):
    return "-" if value is None else f"{value:+.1f}" if abs(value) < 100 else f"{value:+.0f}"


def print_table(head, rows):
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" + "---:|" * (len(head) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def short(models):
    """Per text: perplexity with all experts, its change at each size with the right ones, and at the smallest
    size with the others."""
    for model, texts, rows in models:
        sizes = keeps(rows)
        share = [f"{100 * k / sizes[0]:g} %" for k in sizes]
        head = [model, "all"] + [f"right, {s}" for s in share[1:]]
        head += [f"{what}, {share[-1]}" for what in ("doc", "wrong", "random")]
        out, sums = [], {}
        for t, text in enumerate(texts):
            base, least = rows[t, sizes[0]], rows[t, sizes[-1]]
            values = [change(rows[t, k], base, "right") for k in sizes[1:]]
            values += [change(least, base, c) for c in ("doc", "wrong", "random")]
            for i, v in enumerate(values):
                sums[i] = sums.get(i, 0) + math.log1p(v / 100)
            out.append([text, f"{base['ppl_right']:.1f}"] + [cell(v) for v in values])
        means = [100 * math.expm1(sums[i] / len(texts)) for i in sorted(sums)]
        out.append(["**mean**", ""] + [f"**{cell(v)}**" for v in means])
        print_table(head, out)
        print()


def full(models):
    """Perplexity, every size and way of choosing."""
    for model, texts, rows in models:
        head = [model, "kept", "right", "doc", "wrong", "random", "file MiB", "experts on device, MiB"]
        out = []
        for t, text in enumerate(texts):
            for k in keeps(rows):
                r = rows[t, k]
                p = [r["ppl_" + c] for c in ("right", "doc", "wrong", "random")]
                out.append([text, str(k)] + ["-" if v is None else f"{v:.2f}" for v in p] +
                           [f"{r['disk_bytes'] / 2**20:.1f}", f"{r['expert_bytes'] / 2**20:.1f}"])
        print_table(head, out)
        print()


def documents(models):
    """Perplexity with the right experts, by how many documents chose them."""
    for model, texts, rows in models:
        least = keeps(rows)[-1]
        counts = [n for n in rows[0, least].get("ppl_right_by_documents", {})
                  if any(rows[t, least]["ppl_right_by_documents"][n] for t in range(len(texts)))]
        if not counts:
            continue
        out = []
        for t, text in enumerate(texts):
            r = rows[t, least]
            by = [r["ppl_right_by_documents"][n] for n in counts]
            out.append([text] + ["-" if v is None else f"{v:.2f}" for v in by] + [f"{r['ppl_right']:.2f}"])
        print_table([f"{model}, {least} kept"] + [f"{n} document{'s' * (n != '1')}" for n in counts] +
                    ["all of it"], out)
        print()


def main():
    kinds = {"short": short, "full": full, "documents": documents}
    if len(sys.argv) < 3 or sys.argv[1] not in kinds:
        sys.exit(__doc__)
    kinds[sys.argv[1]]([read(path) for path in sys.argv[2:]])


if __name__ == "__main__":
    main()
