#!/usr/bin/env python3
"""What each format costs in perplexity: a small model in every type and mix of `vkmoe quantize`, on the start
of each domain's validation text, against the same model in F32.

    tools/full/formats_table.py BUILD DRIVER [--write] MODEL...

MODEL is emo-nano or stdmoe-nano. Perplexities are those of the F32 twin of each file (test_e2e_formats holds
the two together), which runs faster on software drivers. --write puts the table into docs/FORMATS.md. Prints
one "figure" line per file and a "counts" line; fails when a mix is further from F32 than LIMIT in a domain.
"""
import json
import math
import pathlib
import subprocess
import sys
import tempfile

from golden import ROOT, SHARED, manifest, model_file
from run_tests import driver_environment

KINDS = ["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_k", "q5_1", "q5_0", "q4_k_m", "q4_k_s",
         "q4_k", "q4_1", "q4_0", "iq4_nl", "mxfp4", "q3_k_l", "q3_k_m", "q3_k_s", "q3_k", "q2_k"]
LIMITED, LIMIT = "q4_k_m", 0.015
BYTES = 8000  # of each text
BEGIN, END = "<!-- formats_table: begin -->", "<!-- formats_table: end -->"


def call(command, environment=None):
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL).stdout


def perplexities(program, environment, path, texts):
    return {domain: json.loads(call([program, "eval", "-m", path, "-f", text, "-ctk", "f32", "-ctv", "f32",
                                     "--json"], environment))["ppl"] for domain, text in texts.items()}


def measure(program, environment, model, source, folder):
    """Rows of the table: name, MiB, bits per weight, relative difference of each domain."""
    texts = {}
    for domain in manifest(model)["domains"]:
        texts[domain] = folder / f"{domain}.txt"
        text = (SHARED / "data" / f"{domain}.validation.txt").read_bytes()[:BYTES]
        texts[domain].write_bytes(text.decode("utf-8", "ignore").encode())
    base = perplexities(program, environment, source, texts)
    for kind in KINDS:
        path, twin = folder / "quantised.gguf", folder / "twin.gguf"
        call([program, "quantize", source, path, kind])
        call([program, "quantize", path, twin, "f32"])
        total = json.loads(call([program, "inspect", "--json", path]))["total"]
        found = perplexities(program, environment, twin, texts)
        errors = {domain: found[domain] / base[domain] - 1 for domain in texts}
        good = kind != LIMITED or max(errors.values()) <= LIMIT
        mib, bits = total["bytes"] / 2**20, 8 * total["bytes"] / total["parameters"]
        each = " ".join(f"{100 * e:+.2f}" for e in errors.values())
        print(f"figure format {model} {kind} {mib:.2f} {bits:.2f} {each} {'ok' if good else 'FAIL'}",
              flush=True)
        yield kind, mib, bits, errors, good


def table(model, rows):
    domains = list(rows[0][3])
    lines = [f"{model}, perplexity on the first {BYTES} bytes of each text, per cent above F32:", "",
             "| type | MiB | bits per weight | " + " | ".join(domains) + " | mean |",
             "|---|--:|--:|" + "--:|" * (len(domains) + 1)]
    for kind, mib, bits, errors, _ in rows:
        mean = math.exp(sum(math.log1p(e) for e in errors.values()) / len(errors)) - 1
        lines.append(f"| {kind} | {mib:.2f} | {bits:.2f} | "
                     + " | ".join(f"{100 * e:+.2f}" for e in [*errors.values(), mean]) + " |")
    return lines


def main():
    build, driver, *models = sys.argv[1:]
    write = models[:1] == ["--write"]
    program, lines, n, bad = ROOT / build / "vkmoe", [], 0, 0
    for model in models[write:]:
        with tempfile.TemporaryDirectory() as folder:
            rows = list(measure(program, driver_environment(driver), model, model_file(build, model, "f32"),
                                pathlib.Path(folder)))
        lines += [*table(model, rows), ""]
        n += len(rows)
        bad += sum(not row[4] for row in rows)
    print("\n".join(lines))
    if write:
        page = ROOT / "docs/FORMATS.md"
        head, rest = page.read_text().split(BEGIN)
        page.write_text(head + BEGIN + "\n\n" + "\n".join(lines) + END + rest.split(END)[1])
    print(f"counts {n - bad} {bad} 0")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
