#!/usr/bin/python3
"""Train one model.

    sh run.sh train.py emo --steps 2000
    sh run.sh train.py std --steps 2000

"emo" restricts every document piece of the batch, in every layer, to a random-size pool of the
experts that its tokens like best on average; "std" does not.  All else (initial weights, data
order, losses, schedule) is equal.  Checkpoints go to WORK/<name>.pt (parameters + optimiser).
"""
import argparse
import json
import math
import os
import time

import numpy as np
import torch

import paths
from model import CONFIG, Model


def stream(work, seq, batch, seed):
    """Endless batches from the shuffled documents; the order depends on the seed alone."""
    tok = np.load(work + "/train_tokens.npy")
    docs = np.load(work + "/train_docs.npy")
    rng = np.random.RandomState(seed)
    buf, own, n_doc = np.zeros(0, np.int64), np.zeros(0, np.int64), 0
    need = seq * batch + 1
    while True:
        order = rng.permutation(len(docs) - 1)
        at = 0
        while at < len(order):
            while len(buf) < need and at < len(order):
                take = order[at : at + 64]
                at += 64
                parts = [tok[docs[d] : docs[d + 1]].astype(np.int64) for d in take]
                buf = np.concatenate([buf] + parts)
                own = np.concatenate(
                    [own] + [np.full(len(p), n_doc + j, np.int64) for j, p in enumerate(parts)]
                )
                n_doc += len(take)
            if len(buf) < need:
                break
            ids, labels, o = buf[: need - 1], buf[1:need], own[: need - 1]
            row = np.arange(need - 1) // seq
            new = np.ones(need - 1, bool)
            new[1:] = (o[1:] != o[:-1]) | (row[1:] != row[:-1])
            first = np.flatnonzero(new)
            length = np.diff(np.append(first, need - 1))
            yield (
                torch.from_numpy(ids.copy()),
                torch.from_numpy(labels.copy()),
                torch.from_numpy(np.stack([first, length], 1).astype(np.int32)),
                torch.from_numpy(np.cumsum(new) - 1),
            )
            buf, own = buf[need - 1 :], own[need - 1 :]


def draw_pools(rng, pieces, c, how):
    """One pool size per layer and document piece, in [experts per token, experts]."""
    lo, hi = c["per_tok"], c["experts"]
    shape = (c["layers"], pieces)
    if how == "uniform":
        n = rng.randint(lo, hi + 1, size=shape)
    else:
        n = np.floor(np.exp(rng.uniform(math.log(lo), math.log(hi + 1), size=shape))).astype(np.int64)
    return torch.from_numpy(n)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("kind", choices=["emo", "std"])
    ap.add_argument("--steps", type=int, required=True)
    ap.add_argument("--stop", type=int, default=0, help="stop early (speed tests)")
    ap.add_argument("--name", default="")
    ap.add_argument("--batch", type=int, default=8)
    ap.add_argument("--seq", type=int, default=512)
    ap.add_argument("--lr", type=float, default=2.5e-3)
    ap.add_argument("--warmup", type=int, default=100)
    ap.add_argument("--pool", choices=["loguniform", "uniform"], default="loguniform")
    ap.add_argument(
        "--uniform-from", type=int, default=1168, help="step after which pool sizes are drawn uniformly"
    )
    ap.add_argument(
        "--horizon-was", type=int, default=2400, help="the rate schedule assumed this many steps in all ..."
    )
    ap.add_argument(
        "--horizon-until",
        type=int,
        default=1640,
        help="... up to this step (the run was shortened on the way)",
    )
    ap.add_argument("--lb", type=float, default=0.1)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--resume", action="store_true")
    a = ap.parse_args()
    torch.set_num_threads(2)
    import fast

    fast.ops.set_threads(2)
    name = a.name or a.kind
    path = f"{paths.WORK}/{name}.pt"
    m = Model(CONFIG, a.seed)
    mom, var = torch.zeros_like(m.flat), torch.zeros_like(m.flat)
    pool_rng = np.random.RandomState(a.seed + 1000)
    start = 0
    if a.resume and os.path.exists(path):
        ck = torch.load(path)
        m.flat.copy_(ck["flat"])
        mom.copy_(ck["mom"])
        var.copy_(ck["var"])
        start = ck["step"]
        pool_rng.set_state(ck["pool_rng"])
    print(json.dumps(dict(kind=a.kind, config=CONFIG, args=vars(a), parameters=m.flat.numel())), flush=True)
    data = stream(paths.WORK, a.seq, a.batch, a.seed)
    for _ in range(start):
        next(data)
    last_save = t0 = time.time()
    avg = None
    for step in range(start + 1, a.steps + 1):
        ids, labels, pieces, doc = next(data)
        pools = (
            draw_pools(pool_rng, len(pieces), CONFIG, "uniform" if step > a.uniform_from else a.pool)
            if a.kind == "emo"
            else None
        )
        stats = [] if step % 20 == 0 else None
        m.grad[m.n_expert :].zero_()
        ce, aux = m.loss(ids, labels, pieces, doc, pools, lb_w=a.lb, stats=stats)
        (ce + aux).backward()
        gn = float(m.grad.norm())
        total = a.horizon_was if step <= a.horizon_until else a.steps
        lr = (
            a.lr
            * min(step / a.warmup, 1)
            * (
                0.05
                + 0.95 * 0.5 * (1 + math.cos(math.pi * max(0, step - a.warmup) / max(1, total - a.warmup)))
            )
        )
        clip = min(1.0, 1.0 / (gn + 1e-6))
        k = m.n_decay
        with torch.no_grad():
            fast.ops.adamw(m.flat[:k], m.grad[:k], mom[:k], var[:k], lr, 0.9, 0.95, 1e-8, 0.1, step, clip)
            fast.ops.adamw(m.flat[k:], m.grad[k:], mom[k:], var[k:], lr, 0.9, 0.95, 1e-8, 0.0, step, clip)
        ce = float(ce)
        avg = ce if avg is None else avg + 0.05 * (ce - avg)
        if stats:
            dt = time.time() - t0
            print(
                f"step {step} loss {ce:.4f} avg {avg:.4f} lr {lr:.2e} gnorm {gn:.2f} "
                f"lb {np.mean([s[0] for s in stats]):.3f} "
                f"wsum {' '.join('%.2f' % s[1] for s in stats)} used {min(s[2] for s in stats)} "
                f"tok/s {(step - start) * a.batch * a.seq / dt:.0f} elapsed {dt:.0f}",
                flush=True,
            )
        if step == a.steps or step == a.stop or time.time() - last_save > 180:
            torch.save(
                dict(
                    flat=m.flat,
                    mom=mom,
                    var=var,
                    step=step,
                    steps=a.steps,
                    pool_rng=pool_rng.get_state(),
                    args=vars(a),
                    config=CONFIG,
                    avg=avg,
                ),
                path + ".tmp",
            )
            os.replace(path + ".tmp", path)
            last_save = time.time()
        if step == a.stop:
            break


if __name__ == "__main__":
    main()
