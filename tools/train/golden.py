#!/usr/bin/python3
"""Reference outputs from ref.py (plain float32 PyTorch on the exported bfloat16 weights).

    sh run.sh golden.py [MODEL]      -> golden/<model>/   (validation text)

The prompts are one plain causal sequence (no document masking), positions from 0.  NLL sums and
mean router probabilities are over single documents; tests/golden/README.md describes every file.
"""
import json
import os
import sys

import numpy as np
import torch
from bpe import Tokenizer
from ref import Ref
import evaluate
import paths

GREEDY = 64
ALL_LOGITS = 128  # prompts up to this length: logits at every position
ROUTING = 300  # prompts up to this length: experts and weights of every token


def prompts(docs, eos, lengths):
    """One prompt per (domain, length): <|endoftext|> + documents (joined by it), cut at the length."""
    out = []
    for domain, first, n in lengths:
        ids, k = [], first
        while len(ids) < n:
            ids += [eos] + docs[domain]["ids"][k][1:-1]
            k += 1
        out.append((domain, ids[:n]))
    return out


def save(path, x, dtype):
    np.save(path, np.ascontiguousarray(np.asarray(x), dtype=dtype))


def greedy(m, ids, keep=None):
    cache, out, gap = {}, [], []
    z = m.forward(ids, keep, None, cache)[-1]
    for _ in range(GREEDY):
        top = z.topk(2)
        out.append(int(top.indices[0]))
        gap.append(float(top.values[0] - top.values[1]))
        z = m.forward([out[-1]], keep, None, cache)[-1]
    return out, gap


def run(folder, out, docs, cal, lengths, tok, split):
    os.makedirs(out, exist_ok=True)
    m = Ref(folder)
    sc = evaluate.Scorer(folder)
    names = list(docs)
    man = dict(
        model=os.path.basename(folder), split=split, domains=names, prompts=[], nll={}, files="see README.md"
    )
    # usage over the calibration text, and the subsets it gives
    use = {d: sc.usage([x[:-1] for x in cal[d]["ids"]]) for d in names}
    keep = {d: evaluate.top(use[d], 0.125) for d in names}
    save(out + "/router_mean.npy", torch.stack([use[d] for d in names]).numpy(), "<f4")
    save(out + "/subset_125.npy", np.array([keep[d] for d in names]), "<i4")
    for j, (d, ids) in enumerate(prompts(docs, tok.eos, lengths)):
        n, pre = len(ids), f"{out}/p{j}_"
        info = []
        z = m.forward(ids, None, info)
        save(pre + "ids.npy", ids, "<i4")
        save(pre + "last_logits.npy", z[-1].numpy(), "<f4")
        if n <= ALL_LOGITS:
            save(pre + "logits.npy", z.numpy(), "<f4")
        if n <= ROUTING:
            save(pre + "experts.npy", torch.stack([s for s, _, _ in info]).numpy(), "<i4")
            save(pre + "weights.npy", torch.stack([w for _, w, _ in info]).numpy(), "<f4")
        g, gap = greedy(m, ids)
        save(pre + "greedy.npy", g, "<i4")
        save(pre + "greedy_gap.npy", gap, "<f4")
        info = []
        zs = m.forward(ids, keep[d], info)
        save(pre + "sub_last_logits.npy", zs[-1].numpy(), "<f4")
        gs, gaps = greedy(m, ids, keep[d])
        save(pre + "sub_greedy.npy", gs, "<i4")
        save(pre + "sub_greedy_gap.npy", gaps, "<f4")
        if n <= ROUTING:
            save(pre + "sub_experts.npy", torch.stack([s for s, _, _ in info]).numpy(), "<i4")
            save(pre + "sub_weights.npy", torch.stack([w for _, w, _ in info]).numpy(), "<f4")
        man["prompts"].append(
            dict(
                index=j,
                domain=d,
                tokens=n,
                text=tok.decode(ids),
                greedy_text=tok.decode(g),
                min_greedy_gap=min(gap),
                sub_greedy_text=tok.decode(gs),
                min_sub_greedy_gap=min(gaps),
            )
        )
        print(man["model"], split, j, d, n, repr(tok.decode(g)[:150]), flush=True)
    # the batched kernels must agree with the reference
    worst = 0.0
    for d in names[:4]:
        x = docs[d]["ids"][1]
        a = (
            -m.forward(x[:-1], keep[d])
            .log_softmax(-1)[torch.arange(len(x) - 1), torch.tensor(x[1:])]
            .double()
            .sum()
        )
        worst = max(worst, abs(float(a) - sc.nll([x], keep[d])[0]))
    man["largest_nll_difference_reference_vs_batched_kernels_one_document"] = worst
    for d in names:
        f, n = sc.nll(docs[d]["ids"])
        s, _ = sc.nll(docs[d]["ids"], keep[d])
        man["nll"][d] = dict(
            documents=len(docs[d]["ids"]),
            predicted_tokens=n,
            bytes=docs[d]["bytes"],
            full=f,
            subset_125=s,
            subset_125_routed_experts_per_layer=keep[d],
        )
    json.dump(man, open(out + "/manifest.json", "w"), indent=1, ensure_ascii=False)
    print(man["model"], split, "reference vs kernels:", worst, flush=True)


def main(models=("emo-nano", "stdmoe-nano")):
    import fast

    threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    torch.set_num_threads(threads)
    fast.ops.set_threads(threads)
    sep = json.load(open(paths.DATA + "/domains.json"))["document_separator"]
    for name in models:
        folder = paths.at(name)
        if not os.path.exists(folder + "/model.safetensors"):
            continue
        tok = Tokenizer(folder + "/tokenizer.json")
        cal = evaluate.corpus(paths.DATA, tok, "calibration", sep)
        docs = evaluate.corpus(paths.DATA, tok, "validation", sep)
        lengths = [
            ("c", 0, 1),
            ("python", 0, 2),
            ("c", 3, 17),
            ("scripture", 2, 128),
            ("german", 4, 300),
            ("politics", 5, 700),
        ]
        run(folder, paths.at("golden", name), docs, cal, lengths, tok, "validation")


if __name__ == "__main__":
    main(sys.argv[1:] or ("emo-nano", "stdmoe-nano"))
