#!/usr/bin/env python3
"""Token ids of every pre-tokenizer name and of SentencePiece against llama.cpp, on vocabularies made here.

    tools/full/tokenizers_against_peer.py BUILD [--peer FOLDER] [--names A,B...] [--random N] [--seed S]

Texts: the samples of ../shared/models/data, source code in ten languages, Chinese, Japanese, Korean, Arabic,
Hindi, Thai, emoji, control characters, and N random strings. The vocabularies merge bytes of all kinds of
characters with each other, so that another cut gives other ids. Where llama.cpp departs from a model's own
tokenizer, ids must equal those of that one's regular expressions (tokenizers_reference.mjs) and may differ
from llama.cpp's only in texts with the characters named in DEPARTS. cl100k and o200k are checked at full size
against the npm package gpt-tokenizer, too. Needs Node 20 with npm and ../shared/peer, which are fetched into
out/peer. Prints one "figure" line per name, and a "counts" line.
"""
import argparse
import base64
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import unicodedata

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import carved_in_llama
from golden import ROOT, SHARED
from gguf_vocabulary import ARRAY, BOOL, F32, I32, STRING, U32, write

TOOLS = ROOT / "tools" / "full"
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)


USER_TOKENS = ["[MARK]", "    "]


def has_category(text, *categories):
    return any(ord(c) > 127 and unicodedata.category(c).startswith(categories) for c in text)


# Upper and lower case are one class in what llama.cpp has for these, beyond ASCII or altogether, and marks
# are in none; words that begin with a capital are not cut off where they follow others without a space.
def cased_or_marked(text):
    return has_category(text, "Lu", "Ll", "Lt", "M")


def mixed_case(text):
    return re.search("[a-z][A-Z]", text) or has_category(text, "L", "M")


# Its own code for Kimi tells Han by blocks, not by script.
def kimi(text):
    return mixed_case(text) or has_category(text, "Nl", "So", "P")


# Its \b forgets, in a lookahead, the digit that stands before it.
def cohere(text):
    return mixed_case(text) or re.search(r"\d", text) or has_category(text, "N")


# It writes white space beyond ASCII as a vertical tab before it looks for Chinese, whose range here has some.
def wide_space(text):
    return any(c.isspace() and ord(c) > 127 for c in text)


# It cuts numbers from the right, but not off what stands before them.
def number(text):
    return re.search(r"\d", text) or has_category(text, "N")


DEPARTS = {"gpt-4o": cased_or_marked, "llama4": cased_or_marked, "kanana2": cased_or_marked,
           "talkie": cased_or_marked, "minimax-m2": cased_or_marked, "tekken": cased_or_marked,
           "kimi-k2": kimi, "youtu": mixed_case, "cohere2moe": cohere, "tiny_aya": cohere,
           "afmoe": number, "deepseek-llm": wide_space, "deepseek-coder": wide_space}


# ---- texts

RUNS = ["a" * 300, " " * 300, "1" * 300, "!" * 300, "\n" * 300, "\u6f22" * 100, "A" * 100 + "b", "\t \n" * 50]


def assigned():
    return [c for c in map(chr, range(1, 0x110000)) if unicodedata.category(c) not in ("Cs", "Cn", "Co")
            and c != "\u017f"]  # 's with a long s is a contraction in Unicode's folding, not in llama.cpp


COMMON = ("aetsSrRmdlLvETxyzABZ" "019234" " \n\r\t\x0b\x0c" "'''\"\".,!?-_/\\()[]{}<>|$#@+=*&^%~`:;"
          "éßαжÄЖΩ漢字ひカ한글א١२〇½²Ⅷʰªǅ\u0301\u093f\u0903\u200b\u200d\ufeff\u2028\u00a0\u3000\u0085"
          "€→😀🏽、。！「」…—“”")


def random_text(rng, everything):
    parts, n = [], rng.randrange(1, 60)
    while len(parts) < n:
        c = rng.choice(everything) if rng.random() < 0.2 else rng.choice(COMMON)
        parts += c * (rng.randrange(2, 6) if rng.random() < 0.1 else 1)
    return "".join(parts)


def chunks(text, size=1500):
    """Parts of about that size, cut behind line breaks: llama.cpp's regular expressions recurse."""
    out, part = [], ""
    for line in text.splitlines(keepends=True):
        if len(part) + len(line) > size and part:
            out.append(part)
            part = ""
        part += line
    return out + [part]


def make_texts(rng, n_random):
    written = json.loads((TOOLS / "tokenizer_texts.json").read_text())
    texts = written["code"] + written["writing"] + RUNS
    for path in sorted((SHARED / "data").glob("*.txt")):
        texts += chunks(path.read_text(encoding="utf-8")[:12000])
    everything = assigned()
    return [t for t in texts if t] + [random_text(rng, everything) for _ in range(n_random)]


# ---- vocabularies

def byte_alphabet():
    shown = [b for b in range(256) if 32 < b < 127 or 160 < b < 173 or b > 173]
    rest = iter(range(256, 512))
    return [chr(b) if b in shown else chr(next(rest)) for b in range(256)]


ALPHABET = byte_alphabet()


def merging_vocabulary(rng, texts, n):
    """Bytes, and n merges in an order that has nothing to do with their frequency."""
    tokens = [bytes([b]) for b in range(256)]
    known, merges = set(tokens), []
    pairs = set()
    for c in COMMON:  # characters first, so that merges meet across classes
        b = c.encode()
        for i in range(1, len(b)):
            pairs.add((b[:i], b[i:i + 1]))
            known.add(b[:i + 1])
    merges = sorted(pairs)
    tokens += sorted({a + b for a, b in merges})
    whole = [c.encode() for c in COMMON]
    while len(merges) < n:
        t = rng.choice(texts).encode()
        at = rng.randrange(len(t))
        a = rng.choice(whole) if rng.random() < 0.4 else rng.choice(tokens)
        b = rng.choice(whole) if rng.random() < 0.4 else rng.choice(tokens)
        if rng.random() < 0.5:  # what does occur
            k = rng.randrange(1, 6)
            a, b = t[at:at + k], t[at + k:at + k + rng.randrange(1, 4)]
        if a not in known or b not in known or len(a + b) > 14 or (a, b) in pairs:
            continue
        pairs.add((a, b))
        merges.append((a, b))
        if a + b not in known:
            known.add(a + b)
            tokens.append(a + b)
    head, tail = merges[:len(merges) // 8], merges[len(merges) // 8:]
    rng.shuffle(tail)
    return tokens, head + tail


def spell(b):
    return "".join(ALPHABET[x] for x in b)


def base_keys(model, tokens, kinds, eos):
    return {"general.architecture": (STRING, "llama"), "general.name": (STRING, "vocabulary"),
            "llama.context_length": (U32, 512), "llama.embedding_length": (U32, 64),
            "llama.block_count": (U32, 1), "llama.feed_forward_length": (U32, 64),
            "llama.attention.head_count": (U32, 4), "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
            "llama.rope.dimension_count": (U32, 16), "tokenizer.ggml.model": (STRING, model),
            "tokenizer.ggml.tokens": (ARRAY, (STRING, tokens)),
            "tokenizer.ggml.token_type": (ARRAY, (I32, kinds)),
            "tokenizer.ggml.bos_token_id": (U32, eos), "tokenizer.ggml.eos_token_id": (U32, eos)}


def bpe_keys(tokens, merges):
    texts = [spell(t) for t in tokens] + ["<|endoftext|>"] + USER_TOKENS
    kinds = [NORMAL] * len(tokens) + [CONTROL] + [USER] * len(USER_TOKENS)
    keys = base_keys("gpt2", texts, kinds, len(tokens))
    keys["tokenizer.ggml.merges"] = (ARRAY, (STRING, [f"{spell(a)} {spell(b)}" for a, b in merges]))
    return keys


def spm_keys(rng, tokens):
    """SentencePiece pieces from byte sequences that are text; equal scores occur, too."""
    marks = ["<unk>", "<s>", "</s>"]
    texts = marks + [f"<0x{b:02X}>" for b in range(256)]
    kinds, scores = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256, [0.0] * 259
    seen = set(texts)
    for t in tokens:
        try:
            piece = t.decode().replace(" ", "\u2581")
        except UnicodeDecodeError:
            continue
        if piece in seen or "\0" in piece:
            continue
        seen.add(piece)
        texts.append(piece)
        kinds.append(NORMAL)
        scores.append(-float(rng.randrange(3000)))
    for mark in ("[MARK]", "<tag>", "      "):
        texts.append(mark)
        kinds.append(USER)
        scores.append(0.0)
    keys = base_keys("llama", texts, kinds, 2)
    keys["tokenizer.ggml.bos_token_id"] = (U32, 1)
    keys["tokenizer.ggml.scores"] = (ARRAY, (F32, scores))
    return keys


def ranks_keys(path, pre, eos_name):
    """A vocabulary from tiktoken's ranks: a token's merge is what its bytes become with lower ranks only."""
    ranks = {}
    for line in path.read_text().split("\n"):
        if line:
            token, rank = line.split()
            ranks[base64.b64decode(token)] = int(rank)
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i:i + 1] for i in range(len(token))]
        while len(parts) > 2:
            best = min(range(len(parts) - 1),
                       key=lambda i: ranks.get(parts[i] + parts[i + 1], rank) if ranks.get(
                           parts[i] + parts[i + 1], rank) < rank else rank)
            if ranks.get(parts[best] + parts[best + 1], rank) >= rank:
                break
            parts[best:best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    tokens = [b""] * (max(ranks.values()) + 1)
    for token, rank in ranks.items():
        tokens[rank] = token
    texts = [spell(t) if t else f"[unused{i}]" for i, t in enumerate(tokens)] + [eos_name]
    kinds = [NORMAL if t else UNUSED for t in tokens] + [CONTROL]
    keys = base_keys("gpt2", texts, kinds, len(tokens))
    keys["tokenizer.ggml.merges"] = (ARRAY, (STRING, [f"{spell(a)} {spell(b)}" for a, b in merges]))
    keys["tokenizer.ggml.pre"] = (STRING, pre)
    return keys


# ---- encoders

def ours(program, model, texts, special):
    lines = "".join(json.dumps({"text": t}) + "\n" for t in texts)
    done = subprocess.run([program, "tokenize", "-m", model, "--json-lines", "--no-bos", "-f", "-"]
                          + ["--special"] * special, input=lines.encode(), stdout=subprocess.PIPE, check=True)
    return [json.loads(line)["tokens"] for line in done.stdout.splitlines()]


def our_bos(program, model):
    out = subprocess.run([program, "tokenize", "-m", model, "-p", "x", "--json"], check=True,
                         stdout=subprocess.PIPE).stdout
    plain = subprocess.run([program, "tokenize", "-m", model, "-p", "x", "--json", "--no-bos"], check=True,
                           stdout=subprocess.PIPE).stdout
    a, b = json.loads(out)["tokens"], json.loads(plain)["tokens"]
    return a[0] if len(a) > len(b) else -1


class Peer:
    def __init__(self, folder, jobs):
        path = jobs[0]["texts"].parent / "jobs.json"
        path.write_text(json.dumps([dict(j, file=str(j["file"]), texts=str(j["texts"])) for j in jobs]))
        self.process = subprocess.Popen(["node", TOOLS / "peer_tokens.mjs", folder, path],
                                        stdout=subprocess.PIPE)

    def next(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit("llama.cpp ended early")
        return json.loads(line)

    def close(self):
        self.process.stdout.close()
        self.process.wait()


def first_difference(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def show(what, text, a, b):
    i = first_difference(a, b)
    near = slice(max(0, i - 2), i + 5)
    print(f"  {what}: {text[:200]!r}: at {i} {a[near]} and {b[near]}", flush=True)


# ---- comparisons

def known_names(program, folder):
    """What the error line lists."""
    path = folder / "unknown.gguf"
    keys = bpe_keys([bytes([b]) for b in range(256)], [])
    keys["tokenizer.ggml.pre"] = (STRING, "nobody's")
    write(path, keys)
    done = subprocess.run([program, "tokenize", "-m", path, "-p", "x"], stderr=subprocess.PIPE, text=True)
    return re.search(r"known: (.*)", done.stderr).group(1).split(", ")


def compare_name(name, mine, peer, reference, texts):
    """True when all is as it must be."""
    wrong, departs = [], 0
    for text, a, b, r in zip(texts, mine, peer["ids"], reference or [None] * len(texts)):
        if r is not None and a != r:
            wrong.append(("not the original's", text, a, r))
        elif a != b and (r is None or not DEPARTS[name](text)):
            wrong.append(("not llama.cpp's", text, a, b))
        departs += a != b
    for w in wrong[:3]:
        show(*w)
    told = f", {departs} of them other than llama.cpp's, as the original's" if reference else ""
    print(f"figure {name} {len(texts)} texts, {sum(map(len, mine))} tokens, {len(wrong)} wrong{told} "
          f"{'FAIL' if wrong else 'ok'}", flush=True)
    return not wrong


def references(vocab, texts, names):
    done = subprocess.run(["node", TOOLS / "tokenizers_reference.mjs", vocab, texts, *names], check=True,
                          stdout=subprocess.PIPE)
    return dict(zip(names, map(json.loads, done.stdout.splitlines())))


def compare_names(program, peer_folder, folder, names, texts, rng):
    tokens, merges = merging_vocabulary(rng, texts, 6000)
    keys = bpe_keys(tokens, merges)
    listed = folder / "texts.json"
    listed.write_text(json.dumps(texts))
    vocab = folder / "vocab.json"
    vocab.write_text(json.dumps({"user": USER_TOKENS, "tokens": keys["tokenizer.ggml.tokens"][1][1],
                                 "merges": keys["tokenizer.ggml.merges"][1][1]}))
    files = {}
    for name in names:
        files[name] = folder / f"{name}.gguf"
        write(files[name], dict(keys, **{"tokenizer.ggml.pre": (STRING, name)}))
    peer = Peer(peer_folder, [{"file": files[n], "texts": listed, "special": False} for n in names])
    found = references(vocab, listed, [n for n in names if n in DEPARTS])
    good = True
    for name in names:
        mine, theirs = ours(program, files[name], texts, False), peer.next()
        if "error" in theirs:
            print(f"figure {name} llama.cpp: {theirs['error']} FAIL")
            good = False
            continue
        good &= compare_name(name, mine, theirs, found.get(name), texts)
        bos = our_bos(program, files[name])
        if bos != theirs["bos"]:
            print(f"  {name}: before a text stands {bos}, in llama.cpp {theirs['bos']} FAIL")
            good = False
    peer.close()
    return good


def compare_spm(program, peer_folder, folder, texts, rng):
    tokens, _ = merging_vocabulary(rng, texts, 5000)
    keys = spm_keys(rng, tokens)
    texts = texts + ["<s>a</s> b [MARK]c[MARK] d <unk>e", " <tag> x<tag>y", "      a      b",
                     "\u2581a \u2581b", " "]
    listed = folder / "spm.json"
    listed.write_text(json.dumps(texts))
    good, jobs, rows = True, [], []
    for prefix in (True, False):
        path = folder / f"spm-{prefix}.gguf"
        write(path, dict(keys, **{"tokenizer.ggml.add_space_prefix": (BOOL, prefix)}))
        for special in (False, True):
            jobs.append({"file": path, "texts": listed, "special": special})
            how = f"{'a' if prefix else 'no'} space before, special {'on' if special else 'off'}"
            rows.append((f"llama, {how}", path, special))
    peer = Peer(peer_folder, jobs)
    for name, path, special in rows:
        theirs = peer.next()
        if "error" in theirs:
            sys.exit(f"{name}: llama.cpp: {theirs['error']}")
        good &= compare_name(name, ours(program, path, texts, special), theirs, None, texts)
        good &= our_bos(program, path) == theirs["bos"]
    peer.close()
    return good


def packaged(folder, package):
    where = folder / "node_modules" / package
    if not where.exists():
        subprocess.run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", package], cwd=folder,
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return where


ENCODE = """import { readFileSync } from "node:fs";
const { encode } = await import(process.argv[2]);
for (const t of JSON.parse(readFileSync(process.argv[3], "utf8")))
  console.log(JSON.stringify(encode(t, { allowedSpecial: new Set(), disallowedSpecial: new Set() })));
"""


def compare_full_size(program, folder, texts):
    package = packaged(folder, "gpt-tokenizer")
    # It loses U+FEFF in decoding its ranks, and JavaScript's \s has U+FEFF, but not U+0085.
    texts = [t for t in texts if "\ufeff" not in t and "\x85" not in t]
    script = folder / "encode.mjs"
    script.write_text(ENCODE)
    listed = folder / "full.json"
    listed.write_text(json.dumps(texts))
    good = True
    for ranks, pre in (("cl100k_base", "dbrx"), ("o200k_base", "gpt-4o")):
        path = folder / f"{ranks}.gguf"
        write(path, ranks_keys(package / "data" / f"{ranks}.tiktoken", pre, "<|endoftext|>"))
        done = subprocess.run(["node", script, package / "esm" / "encoding" / f"{ranks}.js", listed],
                              check=True, stdout=subprocess.PIPE)
        theirs = [json.loads(line) for line in done.stdout.splitlines()]
        name = f"{pre} at full size, gpt-tokenizer's {ranks}"
        good &= compare_name(name, ours(program, path, texts, False), {"ids": theirs}, None, texts)
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--peer", type=pathlib.Path, default=carved_in_llama.PEER)
    parser.add_argument("--names", help="only these (llama: SentencePiece; full: cl100k and o200k)")
    parser.add_argument("--random", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.peer == carved_in_llama.PEER and not carved_in_llama.peer_is_there():
        return 0
    rng = random.Random(args.seed)
    texts = make_texts(rng, args.random)
    program = args.build.resolve() / "vkmoe"
    good = True
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        wanted = args.names.split(",") if args.names else known_names(program, folder) + ["llama", "full"]
        names = [n for n in wanted if n not in ("llama", "full")]
        if names:
            good &= compare_names(program, args.peer.resolve(), folder, names, texts, rng)
        if "llama" in wanted:
            good &= compare_spm(program, args.peer.resolve(), folder, texts, rng)
        if "full" in wanted:
            good &= compare_full_size(program, folder, texts)
    print(f"counts {len(wanted)} tokenizers, {len(texts)} texts each")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
