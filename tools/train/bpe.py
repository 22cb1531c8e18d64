"""Byte-level BPE: trainer, encoder, decoder and HF tokenizer.json reader/writer (own code).

    /usr/bin/python3 bpe.py train                       write emo-nano/tokenizer.json
    /usr/bin/python3 bpe.py encode TOKENIZER.json TEXT  print ids and pieces
    /usr/bin/python3 bpe.py golden TOKENIZER.json FILE OUT.npy  ids of a text file, special tokens not parsed

The text is first cut at special tokens, then by PATTERN (the cl100k_base pre-tokenizer), each
piece is mapped to GPT-2's printable byte alphabet and merged by rank.  A piece that is itself a
vocabulary entry is NOT taken whole unless the merges produce it (ignore_merges = false).
"""
import argparse
import collections
import heapq
import json
import os

import regex

import paths

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
EOS, PAD = "<|endoftext|>", "<|padding|>"
VOCAB = 4096


def byte_alphabet():
    """GPT-2's map from the 256 bytes to printable characters, in id order."""
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    table, extra = {b: chr(b) for b in keep}, 0
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + extra)
            extra += 1
    order = keep + [b for b in range(256) if b not in keep]
    return table, order


class Tokenizer:
    def __init__(self, path):
        j = json.load(open(path, encoding="utf-8"))
        self.vocab = j["model"]["vocab"]
        self.rank = {}
        for i, m in enumerate(j["model"]["merges"]):
            self.rank[tuple(m.split(" ")) if isinstance(m, str) else tuple(m)] = i
        self.special = {t["content"]: t["id"] for t in j["added_tokens"]}
        self.text = {i: t for t, i in self.vocab.items()}
        self.b2c, _ = byte_alphabet()
        self.c2b = {c: b for b, c in self.b2c.items()}
        self.split = regex.compile(PATTERN)
        self.cut = regex.compile("(" + "|".join(regex.escape(s) for s in self.special) + ")")
        self.cache = {}
        self.eos, self.pad = self.special[EOS], self.special[PAD]

    def piece(self, s):
        got = self.cache.get(s)
        if got is None:
            p = [self.b2c[b] for b in s.encode()]
            while len(p) > 1:
                r, i = min((self.rank.get((p[i], p[i + 1]), 1 << 30), i) for i in range(len(p) - 1))
                if r == 1 << 30:
                    break
                p[i : i + 2] = [p[i] + p[i + 1]]
            got = self.cache[s] = [self.vocab[t] for t in p]
        return got

    def encode(self, text, special=True):
        ids = []
        for part in self.cut.split(text) if special else [text]:
            if special and part in self.special:
                ids.append(self.special[part])
            else:
                for w in self.split.findall(part):
                    ids += self.piece(w)
        return ids

    def decode(self, ids):
        out = b""
        names = {i: t for t, i in self.special.items()}
        for i in ids:
            out += names[i].encode() if i in names else bytes(self.c2b[c] for c in self.text[i])
        return out.decode("utf-8", errors="replace")


def train(texts, size):
    """Plain BPE training with incremental pair counts; ties go to the lexicographically smaller pair."""
    b2c, order = byte_alphabet()
    words = collections.Counter()
    pat = regex.compile(PATTERN)
    for t in texts:
        words.update(pat.findall(t))
    seqs, freq = [], []
    for w, n in words.items():
        seqs.append([b2c[b] for b in w.encode()])
        freq.append(n)
    pairs, where = collections.Counter(), collections.defaultdict(set)
    for i, s in enumerate(seqs):
        for p in zip(s, s[1:]):
            pairs[p] += freq[i]
            where[p].add(i)
    heap = [(-n, p) for p, n in pairs.items()]
    heapq.heapify(heap)
    vocab = [b2c[b] for b in order]
    known, merges = set(vocab), []
    while len(vocab) < size:
        n, p = heapq.heappop(heap)
        if pairs[p] != -n:  # stale entry
            if pairs[p] > 0:
                heapq.heappush(heap, (-pairs[p], p))
            continue
        new = p[0] + p[1]
        merges.append(p)
        if new not in known:
            known.add(new)
            vocab.append(new)
        touched = set()
        for i in where.pop(p):
            s, f, k = seqs[i], freq[i], 0
            for q in zip(s, s[1:]):
                pairs[q] -= f
            out = []
            while k < len(s):
                if k + 1 < len(s) and s[k] == p[0] and s[k + 1] == p[1]:
                    out.append(new)
                    k += 2
                else:
                    out.append(s[k])
                    k += 1
            seqs[i] = out
            for q in zip(out, out[1:]):
                pairs[q] += f
                where[q].add(i)
                touched.add(q)
        pairs[p] = 0
        for q in touched:
            if pairs[q] > 0:
                heapq.heappush(heap, (-pairs[q], q))
    return vocab, merges


def hf_json(vocab, merges):
    specials = [EOS, PAD]
    ids = {t: i for i, t in enumerate(vocab)}
    added = [
        {
            "id": len(vocab) + i,
            "content": s,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, s in enumerate(specials)
    ]
    ids.update({t["content"]: t["id"] for t in added})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": ids,
            "merges": [a + " " + b for a, b in merges],
        },
    }


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("what", choices=["train", "encode", "golden"])
    ap.add_argument("args", nargs="*")
    ap.add_argument("--sample", type=int, default=1_000_000, help="characters per domain")
    a = ap.parse_args()
    if a.what == "encode":
        t = Tokenizer(a.args[0])
        ids = t.encode(a.args[1])
        print(ids, [t.decode([i]) for i in ids])
        return
    if a.what == "golden":
        import numpy as np

        text = open(a.args[1], encoding="utf-8", newline="").read()
        np.save(a.args[2], np.array(Tokenizer(a.args[0]).encode(text, special=False), dtype="<i4"))
        return
    names = json.load(open(paths.DATA + "/domains.json"))["domains"]
    texts = [open(f"{paths.WORK}/{d}.train.txt", encoding="utf-8").read() for d in names]
    texts = [t[: a.sample].replace(EOS, "") for t in texts]
    out = paths.at("emo-nano")
    vocab, merges = train(texts, VOCAB - 2)
    os.makedirs(out, exist_ok=True)
    json.dump(
        hf_json(vocab, merges),
        open(out + "/tokenizer.json", "w", encoding="utf-8"),
        ensure_ascii=False,
        indent=1,
    )
    t = Tokenizer(out + "/tokenizer.json")
    for d, text in zip(names, texts):
        s = text[:200_000]
        ids = t.encode(s)
        assert t.decode(ids) == s, d
        print(d, "bytes/token %.2f" % (len(s.encode()) / len(ids)))


if __name__ == "__main__":
    main()
