#!/usr/bin/python3
"""Modularity evaluation on the validation text, from the exported (bfloat16-rounded) weights.

    sh run.sh evaluate.py emo-nano [DOCUMENTS]           evaluate one model, DOCUMENTS per domain
    sh run.sh evaluate.py --table emo-nano stdmoe-nano   print the tables of evaluated models

Documents are scored one by one:  <|endoftext|> document <|endoftext|>, predicting all but the first
token.  Expert subsets: a fraction f keeps f*64 experts a layer, the shared one among them; the
routed ones are those with the highest mean router probability over the domain's calibration text
(every document opened by <|endoftext|>, all of its tokens).  Dropped experts are cut out: softmax
over the kept ones, top-k of them (k clamped to what is left).
"""
import json
import math
import os
import random
import sys
import time

import paths

FRACTIONS = [0.5, 0.25, 0.125]
MATRIX_DOCS = 16


def documents(path, sep):
    return open(path, encoding="utf-8", newline="").read().split(sep)


class Scorer:
    """Batched float32 forward pass (kernels of fastops.cpp)."""

    def __init__(self, folder):
        import torch, fast
        from safet import load_f32
        from model import rope_table

        self.t, self.fast = torch, fast
        self.c = c = json.load(open(folder + "/config.json"))
        w = load_f32(folder + "/model.safetensors")
        self.L, self.R, self.K = (
            c["num_hidden_layers"],
            c["num_experts"] - c["num_shared_experts"],
            c["num_experts_per_tok"] - c["num_shared_experts"],
        )
        self.w = w
        self.cs = rope_table(
            dict(hidden=c["hidden_size"], heads=c["num_attention_heads"], theta=c["rope_theta"]),
            c["max_position_embeddings"],
        )
        self.qkv, self.gu, self.dn = [], [], []
        for i in range(self.L):
            a = f"model.layers.{i}."
            self.qkv.append(torch.cat([w[f"{a}self_attn.{n}_proj.weight"] for n in "qkv"]).contiguous())
            b = a + "mlp.experts."
            self.gu.append(
                torch.stack(
                    [
                        torch.cat([w[f"{b}{e}.gate_proj.weight"], w[f"{b}{e}.up_proj.weight"]])
                        for e in range(c["num_experts"])
                    ]
                ).contiguous()
            )
            self.dn.append(
                torch.stack([w[f"{b}{e}.down_proj.weight"] for e in range(c["num_experts"])]).contiguous()
            )

    def hidden(self, ids, pieces, keep=None, usage=None):
        torch, ops, eps = self.t, self.fast.ops, self.c["rms_norm_eps"]
        x = self.w["model.embed_tokens.weight"][ids]
        for i in range(self.L):
            a = f"model.layers.{i}."
            h = ops.rms_fwd(x, self.w[a + "pre_attention_layernorm.weight"], eps)
            o, _ = ops.attn_fwd(h @ self.qkv[i].t(), pieces, self.cs, self.c["num_attention_heads"])
            x = x + o @ self.w[a + "self_attn.o_proj.weight"].t()
            h = ops.rms_fwd(x, self.w[a + "pre_feedforward_layernorm.weight"], eps)
            logits = h @ self.w[a + "mlp.gate.weight"][: self.R].t()
            if usage is not None:
                usage[i] += logits.softmax(-1).double().sum(0)
            k = self.K
            if keep is not None:
                drop = torch.ones(self.R, dtype=torch.bool)
                drop[torch.tensor(keep[i])] = False
                logits = logits.masked_fill(drop, float("-inf"))
                k = min(k, len(keep[i]))
            wt, idx = logits.softmax(-1).topk(k, -1)
            x = x + ops.moe_fwd(h, idx.contiguous(), wt.contiguous(), self.gu[i], self.dn[i])[0]
        return ops.rms_fwd(x, self.w["model.norm.weight"], eps)

    def batches(self, docs, limit=8192):
        cur, n = [], 0
        for d in docs:
            if cur and n + len(d) > limit:
                yield cur
                cur, n = [], 0
            cur.append(d)
            n += len(d)
        if cur:
            yield cur

    def pieces(self, batch):
        at, p = 0, []
        for d in batch:
            p.append((at, len(d)))
            at += len(d)
        return self.t.tensor(p, dtype=self.t.int32)

    def nll(self, docs, keep=None):
        """docs: token id lists, separator first and last.  Returns (sum of NLL in nats, predicted tokens)."""
        torch, total, count = self.t, 0.0, 0
        for b in self.batches(docs):
            b_in = [d[:-1] for d in b]
            h = self.hidden(torch.tensor(sum(b_in, [])), self.pieces(b_in), keep)
            lab = torch.tensor(sum([d[1:] for d in b], []))
            for s in range(0, len(lab), 2048):
                z = h[s : s + 2048] @ self.w["lm_head.weight"].t()
                total += float(self.fast.ops.ce_(z, lab[s : s + 2048], 1.0).double().sum())
            count += len(lab)
        return total, count

    def usage(self, docs):
        """Mean router probability (layers x routed experts) over all tokens of the documents."""
        use, n = self.t.zeros(self.L, self.R, dtype=self.t.float64), 0
        for b in self.batches(docs):
            self.hidden(self.t.tensor(sum(b, [])), self.pieces(b), None, use)
            n += sum(map(len, b))
        return use / n


def top(usage, fraction, experts=64, shared=1):
    """The kept routed experts of every layer, in index order."""
    n = int(round(fraction * experts)) - shared
    return [sorted(u.argsort(descending=True)[:n].tolist()) for u in usage]


def corpus(data, tok, split, sep):
    out = {}
    for d in json.load(open(paths.DATA + "/domains.json"))["domains"]:
        docs = documents(f"{data}/{d}.{split}.txt", sep)
        out[d] = dict(
            ids=[[tok.eos] + tok.encode(x, special=False) + [tok.eos] for x in docs],
            bytes=sum(len(x.encode()) for x in docs),
        )
    return out


def evaluate(folder, out, first=None):
    """first: use only so many documents of every domain's validation text."""
    import torch
    from bpe import Tokenizer

    threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    torch.set_num_threads(threads)
    sc = Scorer(folder)
    sc.fast.ops.set_threads(threads)
    tok = Tokenizer(folder + "/tokenizer.json")
    sep = json.load(open(paths.DATA + "/domains.json"))["document_separator"]
    val = corpus(paths.DATA, tok, "validation", sep)
    cal = corpus(paths.DATA, tok, "calibration", sep)
    names = list(val)
    for d in names:
        val[d]["ids"] = val[d]["ids"][:first]
        val[d]["bytes"] = sum(len(tok.decode(x[1:-1]).encode()) for x in val[d]["ids"])
    use = {d: sc.usage([x[:-1] for x in cal[d]["ids"]]) for d in names}
    res = dict(
        model=os.path.basename(folder),
        domains=names,
        documents={d: len(val[d]["ids"]) for d in names},
        bytes={d: val[d]["bytes"] for d in names},
        tokens={},
        nll={},
        matrix_tokens={},
        matrix={},
    )
    rng = random.Random(7)
    rand = {
        f: [[sorted(rng.sample(range(sc.R), int(round(f * 64)) - 1)) for _ in range(sc.L)] for _ in range(2)]
        for f in FRACTIONS
    }
    t0 = time.time()
    for k, d in enumerate(names):

        def put(kind, keep):
            s, n = sc.nll(val[d]["ids"], keep)
            res["tokens"][d] = n
            res["nll"].setdefault(kind, {})[d] = s

        put("full", None)
        for f in FRACTIONS:
            put(f"right {f}", top(use[d], f))
            put(f"wrong {f}", top(use[names[(k + 1) % len(names)]], f))
            for r in range(2 if f == 0.125 else 1):
                put(f"random{r} {f}", rand[f][r])
        for e in names:  # every domain's 12.5% subset on the first documents of this domain
            s, n = sc.nll(val[d]["ids"][:MATRIX_DOCS], top(use[e], 0.125))
            res["matrix"].setdefault(d, {})[e] = s
            res["matrix_tokens"][d] = n
        print(
            d,
            "%.0f s" % (time.time() - t0),
            {k: round(math.exp(v[d] / res["tokens"][d]), 2) for k, v in res["nll"].items()},
            flush=True,
        )
    res["subsets_0.125"] = {d: top(use[d], 0.125) for d in names}
    res["usage"] = {d: use[d].tolist() for d in names}
    os.makedirs(os.path.dirname(out), exist_ok=True)
    json.dump(res, open(out, "w"))


def table(paths):
    rs = [json.load(open(p)) for p in paths]
    for r in rs:
        print(
            f"\n**{os.path.basename(r['model'].rstrip('/'))}** — "
            "validation perplexity per token (in brackets: per byte)\n"
        )
        cols = [
            "full",
            "right 0.5",
            "random0 0.5",
            "wrong 0.5",
            "right 0.25",
            "random0 0.25",
            "wrong 0.25",
            "right 0.125",
            "random 0.125",
            "wrong 0.125",
        ]
        head = [
            "all 64",
            "right 50%",
            "random 50%",
            "wrong 50%",
            "right 25%",
            "random 25%",
            "wrong 25%",
            "right 12.5%",
            "random 12.5%",
            "wrong 12.5%",
        ]
        print("| domain | " + " | ".join(head) + " |\n|" + "---|" * (len(head) + 1))
        tot = {c: 0.0 for c in cols}
        for d in r["domains"]:
            cells = []
            for c in cols:
                if c == "random 0.125":
                    s = sum(r["nll"][f"random{k} 0.125"][d] for k in range(2)) / 2
                else:
                    s = r["nll"][c][d]
                tot[c] += s
                cells.append("%.2f (%.3f)" % (math.exp(s / r["tokens"][d]), math.exp(s / r["bytes"][d])))
            print(f"| {d} | " + " | ".join(cells) + " |")
        n, b = sum(r["tokens"].values()), sum(r["bytes"].values())
        print(
            "| **all** | "
            + " | ".join("%.2f (%.3f)" % (math.exp(tot[c] / n), math.exp(tot[c] / b)) for c in cols)
            + " |"
        )
        print(
            f"\nPerplexity per token of each domain's text (rows; the first {MATRIX_DOCS} documents) "
            "under each domain's 12.5% subset (columns):\n"
        )
        print("| text \\ subset | " + " | ".join(r["domains"]) + " |\n|" + "---|" * (len(r["domains"]) + 1))
        for d in r["domains"]:
            print(
                f"| {d} | "
                + " | ".join(
                    ("**%.1f**" if e == d else "%.1f") % math.exp(r["matrix"][d][e] / r["matrix_tokens"][d])
                    for e in r["domains"]
                )
                + " |"
            )
        sub = r["subsets_0.125"]
        L = len(sub[r["domains"][0]])
        over = [len(set(sub[a][l]) & set(sub[b][l])) for a in sub for b in sub if a < b for l in range(L)]
        print(
            f"\nMean overlap of two domains' 12.5% subsets: {sum(over) / len(over):.2f} "
            f"of {len(sub[r['domains'][0]][0])} routed experts a layer "
            f"(chance: {len(sub[r['domains'][0]][0]) ** 2 / 63:.2f})."
        )


if __name__ == "__main__":
    if sys.argv[1] == "--table":
        table([paths.at("eval", n + ".json") for n in sys.argv[2:]])
    else:
        name = sys.argv[1]
        evaluate(
            paths.at(name), paths.at("eval", name + ".json"), int(sys.argv[2]) if len(sys.argv) > 2 else None
        )
