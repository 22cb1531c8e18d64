#!/usr/bin/env python3
"""Results of the shards in out/full/ as tables, written into docs/RESULTS.md between its markers.

    tools/results.py [FOLDER]     out/full by default
"""
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def read(path):
    """A result file as {first word: [rest of each such line]}."""
    found = {}
    for line in path.read_text().splitlines():
        word, _, rest = line.partition(" ")
        found.setdefault(word, []).append(rest)
    return found


def main():
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "out" / "full"
    rows = (ROOT / "tools/full/shards.txt").read_text().splitlines()
    order = [row.split()[0] for row in rows if row and not row.startswith("#")]
    paths = {name: folder / f"{name}.result" for name in order}
    shards = {name: read(path) for name, path in paths.items() if path.exists()}
    out = ["", "| shard | date | commit | seconds |", "|---|---|---|---|"]
    for name, r in shards.items():
        out.append(f"| {name} | {r['date'][0]} | {r['commit'][0]} | {r['seconds'][0]} |")
    missing = ", ".join(name for name in order if name not in shards) or "none"
    columns = ["driver", "model", "weights", "cache", "text", "tokens", "perplexity", "against golden, %",
               "limit, %"]
    out += ["", f"Not run yet: {missing}.", ""]
    out += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for r in shards.values():
        for figure in r.get("figure", []):
            words = figure.split()
            if len(words) == 10 and words[-1] == "ok":
                out.append("| " + " | ".join(words[:-1]) + " |")
    carved = [figure.split()[1:-1] for r in shards.values() for figure in r.get("figure", [])
              if figure.startswith("carved-in-llama ") and figure.endswith(" ok")]
    if carved:
        columns = ["driver", "model", "text", "tokens", "probabilities compared",
                   "furthest from llama.cpp's, %", "limit, %"]
        out += ["", "Files carved to 12.5 % from F32, against llama.cpp's CPU backend on the same file:", ""]
        out += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        out += ["| " + " | ".join(words) + " |" for words in carved]
    forced = [figure.split()[1:-1] for r in shards.values() for figure in r.get("figure", [])
              if figure.startswith("forced-against-peer ") and figure.endswith(" ok")]
    if forced:
        columns = ["driver", "architecture or format", "probabilities compared",
                   "furthest from llama.cpp's, %", "other likeliest tokens", "limit, %"]
        out += ["", "Random files of every architecture, and the bundled model in every format (llama.cpp has"
                " its F32 twin), teacher-forced against llama.cpp's CPU backend:", ""]
        out += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        out += ["| " + " | ".join(words) + " |" for words in forced]
    ranked = [figure.split()[1:-1] for r in shards.values() for figure in r.get("figure", [])
              if figure.startswith("rank ") and figure.endswith(" ok")]
    if ranked:
        columns = ["driver", "model", "text", "tokens", "mean furthest from golden's", "limit",
                   "experts exchanged by ties"]
        out += ["", "Mean router probabilities of calibration texts, and the 12.5 % subsets by them:", ""]
        out += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        out += ["| " + " | ".join(words) + " |" for words in ranked]
    blocks = [figure.split()[1:-1] for r in shards.values() for figure in r.get("figure", [])
              if figure.startswith("blocks ") and figure.endswith(" ok")]
    if blocks:
        columns = ["format", "matrices equal to ggml's to the last bit", "elements",
                   "squared error by that of ggml's encoder", "limit"]
        out += ["", "Block formats of the bundled model against ggml:", ""]
        out += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        out += ["| " + " | ".join(words) + " |" for words in blocks]
    page = ROOT / "docs/RESULTS.md"
    text = page.read_text()
    head, rest = text.split(BEGIN)
    page.write_text(head + BEGIN + "\n" + "\n".join(out) + "\n\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
