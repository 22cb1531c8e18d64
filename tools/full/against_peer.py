#!/usr/bin/env python3
"""Speed against llama.cpp's Vulkan backend: the same file, the same driver, in turn, in one run.

    tools/full/against_peer.py BUILD DRIVER [--peer FOLDER] [--model FILE] [--tests pp64,pp256,tg16]
                               [--rounds N] [--only ours|peer] [--exact] [--complete] [--no-limits]
                               [--option=-X...]

The file has EMO's widths, 2 layers, a vocabulary of 32000 and random weights in Q4_0 (`vkmoe synth`, once
per build). Each round starts one process of llama.cpp and one of ours for each test; both warm up first, with
the same token ids, a context of 1024 and a cache in F16. llama.cpp does not run on SwiftShader: ours is then
timed alone. --exact leaves out the rows with --fast-math. Needs Node 20 with npm and ../shared/peer, which
are fetched into out/peer, or a FOLDER where that has been done. Prints one "figure" line per test, a table,
and a "counts" line; fails when the ratio of medians is below its limit, or what a token costs in commands and
bytes (`bench --count`) above it.
"""
import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import carved_in_llama
from run_tests import ROOT, driver_environment

LIMITS = {"pp": 1.0, "tg": 1.5}  # ours by theirs
FAST_LIMITS = {"pp": 1.5, "tg": 1.5}
LAYER_DISPATCHES, LAYER_BARRIERS, MOST_READ = 8, 7, 1.02
MIB = 1 << 20


def model_file(program, folder):
    path = folder / "emo-2-layers-q4_0.gguf"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        subprocess.run([program, "synth", "--shape", "emo-1b14b", "--layers", "2", "--vocab", "32000",
                        "-o", path], check=True, stdout=subprocess.DEVNULL)
    return path


def split(test):
    """('pp', 64) of pp64."""
    kind, n = test[:2], test[2:]
    if kind not in LIMITS or not n.isdigit() or not int(n):
        sys.exit(f"a test is such as pp64 or tg16, not '{test}'")
    return kind, int(n)


def of_peer(folder, environment, model, test):
    """Tokens per second in a process of llama.cpp; None where it does not run."""
    kind, n = split(test)
    prompt, generated = (n, 1) if kind == "pp" else (64, n)
    done = subprocess.run(["node", "llama_peer.mjs", "bench", model, "vulkan", str(prompt), str(generated)],
                          cwd=folder, env=dict(environment, GGML_VK_VISIBLE_DEVICES="0"),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode:
        return None
    result = json.loads(done.stdout.splitlines()[-1])
    return result["prefill_tps" if kind == "pp" else "decode_tps"]


def of_complete(folder, environment, model, test):
    """As of_peer, with logits (peer_complete.mjs); None: a prompt, where the backend dies on lavapipe."""
    kind, n = split(test)
    if kind == "pp":
        return None
    done = subprocess.run(["node", ROOT / "tools/full/peer_complete.mjs", folder, model, str(n)],
                          env=dict(environment, GGML_VK_VISIBLE_DEVICES="0"),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return None if done.returncode else json.loads(done.stdout.splitlines()[-1])["decode_tps"]


def of_ours(program, environment, model, test, options):
    kind, n = split(test)
    ids = ",".join(str(300 + i * 7919 % 2000) for i in range(n if kind == "pp" else 64))  # as llama_peer.mjs
    command = [program, "bench", "-m", model, "-p", str(n if kind == "pp" else 0),
               "-n", str(n if kind == "tg" else 0), "-r", "1", "--tokens", ids, "--peak", "0",
               "-c", "1024", "-o", "json", *options]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode:
        sys.exit(f"vkmoe bench, {test}: status {done.returncode}: {done.stderr.decode('utf-8', 'replace')}")
    return json.loads(done.stdout)[0]["avg_ts"]


def count(program, environment, model):
    """Prints what a token costs; True when it keeps the limits, activations among the bytes."""
    out = subprocess.run([program, "bench", "-m", model, "--count", "-d", "128", "-o", "json"], check=True,
                         env=environment, stdout=subprocess.PIPE).stdout
    c = json.loads(out)
    needed = c["active_weight_bytes"] + c["cache_bytes"]
    read = (c["bytes_read"] or math.inf) + c["activation_bytes"]
    held = (c["dispatches_per_layer"] <= LAYER_DISPATCHES and c["barriers_per_layer"] <= LAYER_BARRIERS
            and c["submits"] == c["waits"] == 1 and read <= MOST_READ * needed)
    print(f"figure count {c['dispatches_per_layer']} dispatches, {c['barriers_per_layer']} barriers a layer, "
          f"{c['submits']} submits, {c['waits']} waits, {read / needed:.4f} of the bytes that must be read "
          f"{'ok' if held else 'FAIL'}")
    return held


def has_option(program, option):
    out = subprocess.run([program, "bench", "--help"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return option in out


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})" if values else "-"


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("driver")
    parser.add_argument("--peer", type=pathlib.Path)
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--tests", default="pp64,pp256,tg16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("ours", "peer"))
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--complete", action="store_true", help="llama.cpp with logits, too")
    parser.add_argument("--no-limits", action="store_true")
    parser.add_argument("--option", action="append", default=[], help="for `vkmoe bench`")
    return parser.parse_args()


def measure(args, program, environment, model, tests, columns):
    """{test: {column: tokens per second of each round}}"""
    found = {test: {column: [] for column in columns} for test in tests}
    columns = list(columns)
    for i in range(args.rounds):
        for test in tests:
            for column in list(columns):
                if column == "peer":
                    v = of_peer(args.peer, environment, model, test)
                    if v is None:
                        columns.remove("peer")
                        print("llama.cpp does not run on this driver", flush=True)
                        continue
                elif column == "complete":
                    v = of_complete(args.peer, environment, model, test)
                    if v is None:
                        continue
                else:
                    v = of_ours(program, environment, model, test,
                                args.option + ([] if column == "ours" else ["--fast-math"]))
                found[test][column].append(v)
                print(f"round {i + 1} {test} {column} {v:.2f}", flush=True)
    return found


def judge(args, found):
    """Prints figures and the table; the number of tests that hold their limit, and of those that do not."""
    good = bad = 0
    table = ["| test | llama.cpp | ours | ratio | of best | --fast-math | ratio | with logits | ratio |",
             "|---" * 9 + "|"]
    for test, by in found.items():
        peer, cells = by.get("peer"), []
        for column, limits in (("ours", LIMITS), ("fast", FAST_LIMITS)):
            mine = by.get(column)
            if not mine or not peer:
                cells.append((spread(mine), "-", "-"))
                continue
            ratio = statistics.median(mine) / statistics.median(peer)
            best = max(mine) / max(peer)
            limit = limits[test[:2]]
            held = ratio >= limit or args.no_limits
            good, bad = good + held, bad + (not held)
            cells.append((spread(mine), f"{ratio:.2f}", f"{best:.2f}"))
            print(f"figure against-peer {args.driver} {test} {column} {statistics.median(mine):.2f} "
                  f"{statistics.median(peer):.2f} {ratio:.3f} {limit} {'ok' if held else 'FAIL'}")
        if not peer and by.get("ours"):
            print(f"figure against-peer {args.driver} {test} alone {statistics.median(by['ours']):.2f} ok")
            good += 1
        (ours, ratio, best), (fast, fast_ratio, _) = cells
        whole, mine = by.get("complete"), by.get("ours")
        last = f"{statistics.median(mine) / statistics.median(whole):.2f}" if whole and mine else "-"
        table.append(f"| {test} | {spread(peer)} | {ours} | {ratio} | {best} | {fast} | {fast_ratio} | "
                     f"{spread(whole)} | {last} |")
    print("\ntokens per second, median (smallest-largest)\n")
    print("\n".join(table))
    print("\nllama_peer.mjs asks for no logits: llama.cpp then runs no output head, and no router and\n"
          "experts in the last layer. `with logits` is its decoding of whole tokens, which ours always are.")
    return good, bad


def main():
    args = parse()
    program = ROOT / args.build / "vkmoe"
    tests = args.tests.split(",")
    for test in tests:
        split(test)
    environment = driver_environment(args.driver)
    if environment is None:
        sys.exit(f"no driver {args.driver} is installed")
    columns = []
    if args.only != "ours" and args.driver != "swiftshader":
        if not args.peer and not carved_in_llama.peer_is_there():
            print(f"counts 0 0 {len(tests)}")
            return 0
        args.peer = args.peer or carved_in_llama.PEER
        columns.append("peer")
        if args.complete:
            columns.append("complete")
    if args.only != "peer":
        columns.append("ours")
        if not args.exact and has_option(program, "--fast-math"):
            columns.append("fast")
    model = (args.model or model_file(program, ROOT / args.build / "full")).resolve()
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, {model.stat().st_size / MIB:.0f} MiB")
    good, bad = judge(args, measure(args, program, environment, model, tests, columns))
    if args.only != "peer" and not args.no_limits:
        held = count(program, environment, model)
        good, bad = good + held, bad + (not held)
    print(f"counts {good} {bad} 0")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
