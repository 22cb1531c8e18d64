#!/usr/bin/env python3
"""Every architecture and every format against llama.cpp, teacher-forced over 32 steps with caches of F32:
each probability that llama.cpp tells (the eight likeliest tokens of a position and the one that follows)
within LIMIT of vkmoe's, and the same likeliest token wherever llama.cpp's best two differ by more than that.

    tools/full/forced_against_peer.py BUILD DRIVER architectures|formats [NAME...]

architectures: random F32 files of `vkmoe synth --shape tiny-*`, the 32 steps once as a prompt and once,
behind a prompt of 16, token by token, where the tokens are those that vkmoe chooses. formats: the bundled
model in each format; llama.cpp gets its F32 twin, for its CPU rounds activations before quantised weights.
NAME: only these. Needs Node 20 with npm, which fetches llama.cpp's CPU backend once into out/peer. Prints one
"figure" line per row with the largest relative difference, and a "counts" line; fails past a limit.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from carved_in_llama import LIMIT, PEER, peer_is_there, probabilities
from golden import read_npy
from run_tests import ROOT, driver_environment

STEPS = 32
PROMPT = 16
ARCHITECTURES = ("olmoe", "qwen2moe", "qwen3moe", "mixtral", "granitemoe", "deepseek", "gpt-oss", "llama",
                 "qwen2", "qwen3")
FORMATS = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k",
           "q6_k", "iq4_nl", "mxfp4")
TEXT = "In the beginning was the Word, and the Word was with God. The same was in the beginning with them; " \
       "all things were made by him, and without him was not any thing made."
CACHE = ("-ctk", "f32", "-ctv", "f32")


def call(*command, env=None):
    return subprocess.run(command, check=True, env=env, stdout=subprocess.PIPE).stdout


def rows_of(path):
    logits, (n, vocab) = read_npy(path, "f")
    return [logits[i * vocab:(i + 1) * vocab] for i in range(n)]


def prompt_rows(program, model, ids, env):
    """Logits after each token of a prompt."""
    out = model.with_suffix(".npy")
    call(program, "logits", "-m", model, "--tokens", ids, "--all", *CACHE, "-o", out, env=env)
    return rows_of(out)


def decoded(program, model, ids, n, env):
    """Tokens that vkmoe chooses behind a prompt, and the logits that each was chosen from."""
    out = model.with_suffix(".npy")
    result = json.loads(call(program, "run", "-m", model, "--tokens", ids, "-n", str(n), "--temp", "0",
                             "--ignore-eos", *CACHE, "--logits-out", out, "--json", env=env))
    return result["tokens"][-n:], rows_of(out)


def peer_positions(model, ids):
    line = subprocess.run(["node", "llama_peer.mjs", "forced", model, "cpu", ids], cwd=PEER, check=True,
                          stdout=subprocess.PIPE).stdout
    return json.loads(line)["positions"]


class Judge:
    def __init__(self):
        self.worst, self.compared, self.wrong = 0.0, 0, 0

    def add(self, rows, positions, following):
        """following: the token behind each position; None: not known."""
        for row, position, token in zip(rows, positions, following):
            mine = probabilities(row)
            (first, p), (_, second) = position["top"][:2]
            pairs = list(position["top"])
            if token is not None and position["next"]:
                pairs.append((token, position["next"]))
            for i, q in pairs:
                self.worst = max(self.worst, abs(mine[i] / q - 1))
                self.compared += 1
            self.wrong += second < p * (1 - LIMIT) and max(range(len(mine)), key=mine.__getitem__) != first

    def good(self):
        return self.compared >= 8 * STEPS and self.worst <= LIMIT and not self.wrong


def text_of(ids):
    return ",".join(map(str, ids))


def architecture(program, name, folder, env):
    model, judge = folder / f"tiny-{name}.gguf", Judge()
    call(program, "synth", "--shape", f"tiny-{name}", "--type", "f32", "-o", model)
    ids = [1 + i * 37 % 290 for i in range(STEPS)]
    judge.add(prompt_rows(program, model, text_of(ids), env), peer_positions(model, text_of(ids)),
              ids[1:] + [None])
    chosen, rows = decoded(program, model, text_of(ids[:PROMPT]), STEPS - PROMPT, env)
    all_ids = ids[:PROMPT] + chosen
    judge.add(rows, peer_positions(model, text_of(all_ids))[PROMPT - 1:], chosen)
    return judge


def block_format(program, name, folder, env):
    model, twin, judge = folder / f"{name}.gguf", folder / f"{name}-twin.gguf", Judge()
    source = ROOT / "models" / "emo-nano.gguf"
    call(program, "quantize", source, model, name)
    call(program, "quantize", model, twin, "f32")
    ids = json.loads(call(program, "tokenize", "-m", source, "-p", TEXT, "--json"))["tokens"][:STEPS]
    assert len(ids) == STEPS
    judge.add(prompt_rows(program, model, text_of(ids), env), peer_positions(twin, text_of(ids)),
              ids[1:] + [None])
    return judge


def main():
    build, driver, kind, *names = sys.argv[1:]
    names = names or (ARCHITECTURES if kind == "architectures" else FORMATS)
    env = driver_environment(driver)
    if env is None:
        sys.exit(f"no driver {driver} is installed")
    if not peer_is_there():
        print(f"counts 0 0 {len(names)}")
        return 0
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            run = architecture if kind == "architectures" else block_format
            judge = run(ROOT / build / "vkmoe", name, pathlib.Path(folder), env)
            bad += not judge.good()
            print(f"figure forced-against-peer {driver} {name} {judge.compared} {100 * judge.worst:.5f} "
                  f"{judge.wrong} {100 * LIMIT:g} {'ok' if judge.good() else 'FAIL'}", flush=True)
    print(f"counts {len(names) - bad} {bad} 0")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
