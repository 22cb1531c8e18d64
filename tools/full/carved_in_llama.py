#!/usr/bin/env python3
"""Carved files in llama.cpp: each domain's 12.5 % subset, carved from an F32 file, teacher-forced over the
start of the domain's validation text; every probability that llama.cpp tells (the eight likeliest tokens of
each position and the one that follows) is compared with that of vkmoe's logits.

    tools/full/carved_in_llama.py BUILD DRIVER MODEL DOMAIN...

DOMAIN is a name in golden's manifest or `all`. Needs ../shared beside the checkout, and Node 20 with npm,
which fetches llama.cpp's CPU backend once into out/peer. Prints one "figure" line per domain with the largest
relative difference, and a "counts" line; fails past LIMIT.
"""
import json
import math
import shutil
import subprocess
import sys

from golden import ROOT, SHARED, model_file, read_npy, subset_file
from run_tests import driver_environment

LIMIT = 1e-3
N_TOKENS = 96
PEER = ROOT / "out" / "peer"


def peer_is_there():
    """Says why not on standard output."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm or not (SHARED.parent / "peer").exists():
        print("left out: no node, no npm or no ../shared/peer")
        return False
    version = subprocess.run([node, "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout
    if int(version.strip().lstrip("v").split(".")[0]) < 20:
        print(f"left out: Node 20 is needed, this is {version.strip()}")
        return False
    if not (PEER / "node_modules" / "node-llama-cpp").exists():
        shutil.rmtree(PEER, ignore_errors=True)
        shutil.copytree(SHARED.parent / "peer", PEER)
        command = [npm, "install", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=PEER, check=False)
        if done.returncode:
            shutil.rmtree(PEER, ignore_errors=True)
            print("left out: npm could not fetch llama.cpp")
            return False
    return True


def carve(program, model, name, domain, path):
    """The golden subset of a domain as a file, and the GGUF file carved by it."""
    subset = subset_file(name, domain, path.with_suffix(".json"))
    subprocess.run([program, "experts", "carve", "-m", model, "--experts", subset, "-o", path],
                   check=True, stdout=subprocess.DEVNULL)


def tokens_of(program, model, domain, end):
    text = (SHARED / "data" / f"{domain}.validation.txt").read_text(encoding="utf-8")[:4000]
    out = subprocess.run([program, "tokenize", "-m", model, "-p", text, "--json"],
                         check=True, stdout=subprocess.PIPE)
    return [end] + json.loads(out.stdout)["tokens"][:N_TOKENS - 1]


def probabilities(row):
    top = max(row)
    exps = [math.exp(v - top) for v in row]
    total = math.fsum(exps)
    return [e / total for e in exps]


def compare(program, path, ids, environment):
    """Largest relative difference and how many probabilities were compared."""
    line = ",".join(map(str, ids))
    out = path.with_suffix(".npy")
    subprocess.run([program, "logits", "-m", path, "--tokens", line, "--all", "-ctk", "f32", "-ctv", "f32",
                    "-o", out], check=True, env=environment, stdout=subprocess.DEVNULL)
    logits, (n_rows, vocab) = read_npy(out, "f")
    assert n_rows == len(ids)
    peer = subprocess.run(["node", "llama_peer.mjs", "forced", path, "cpu", line], cwd=PEER, check=True,
                          stdout=subprocess.PIPE)
    worst = n = 0
    for i, position in enumerate(json.loads(peer.stdout)["positions"]):
        mine = probabilities(logits[i * vocab:(i + 1) * vocab])
        pairs = [(token, p) for token, p in position["top"]]
        if i + 1 < len(ids) and position["next"]:
            pairs.append((ids[i + 1], position["next"]))
        for token, p in pairs:
            worst = max(worst, abs(mine[token] / p - 1))
            n += 1
    return worst, n


def main():
    build, driver, name, *domains = sys.argv[1:]
    manifest = json.loads((SHARED / "golden" / name / "manifest.json").read_text())
    if domains == ["all"]:
        domains = manifest["domains"]
    if not peer_is_there():
        print(f"counts 0 0 {len(domains)}")
        return 0
    program, model = ROOT / build / "vkmoe", model_file(build, name, "f32")
    facts = json.loads(subprocess.run([program, "inspect", model, "--json"], check=True,
                                      stdout=subprocess.PIPE).stdout)
    bad = 0
    for domain in domains:
        path = model.with_name(f"{name}-f32-{domain}-carved.gguf")
        carve(program, model, name, domain, path)
        ids = tokens_of(program, path, domain, facts["tokenizer"]["eos"])
        worst, n = compare(program, path, ids, driver_environment(driver))
        good = n > len(ids) and worst <= LIMIT
        bad += not good
        print(f"figure carved-in-llama {driver} {name} {domain} {len(ids)} {n} {100 * worst:.5f} "
              f"{100 * LIMIT:g} {'ok' if good else 'FAIL'}", flush=True)
    print(f"counts {len(domains) - bad} {bad} 0")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
