"""The training form of the model: parameters in one flat buffer, experts stacked per layer."""
import math
import torch
import torch.nn.functional as F

CONFIG = dict(
    vocab=4096,
    hidden=256,
    inter=64,
    layers=6,
    heads=4,
    experts=64,
    shared=1,
    per_tok=6,
    eps=1e-6,
    theta=500000.0,
    max_pos=1024,
)


def shapes(c):
    """Parameter name -> shape, in buffer order: experts (gradients written by the kernel), other
    decayed weights, then undecayed norm weights."""
    H, I, E, V = c["hidden"], c["inter"], c["experts"], c["vocab"]
    s = {}
    for i in range(c["layers"]):
        s[f"{i}.wgu"] = (E, 2 * I, H)
        s[f"{i}.wd"] = (E, H, I)
    for i in range(c["layers"]):
        s[f"{i}.qkv"] = (3 * H, H)
        s[f"{i}.o"] = (H, H)
        s[f"{i}.gate"] = (E, H)
    s["embed"] = (V, H)
    s["head"] = (V, H)
    for i in range(c["layers"]):
        s[f"{i}.n1"] = (H,)
        s[f"{i}.n2"] = (H,)
    s["norm"] = (H,)
    return s


def rope_table(c, n):
    """(n, head_dim): cosines then sines of the head_dim/2 rotation angles."""
    d = c["hidden"] // c["heads"]
    inv = 1.0 / c["theta"] ** (torch.arange(0, d, 2).float() / d)
    ang = torch.arange(n).float()[:, None] * inv[None]
    return torch.cat([ang.cos(), ang.sin()], 1).contiguous()


class Model:
    def __init__(self, c, seed=1):
        self.c = c
        sh = shapes(c)
        n = sum(math.prod(s) for s in sh.values())
        self.flat, self.grad = torch.zeros(n), torch.zeros(n)
        self.p, at = {}, 0
        for name, s in sh.items():
            k = math.prod(s)
            q = self.flat[at : at + k].view(s).requires_grad_()
            q.grad = self.grad[at : at + k].view(s)
            self.p[name] = q
            if name == "0.qkv":
                self.n_expert = at
            if name == "0.n1":
                self.n_decay = at
            at += k
        g = torch.Generator().manual_seed(seed)
        out = 0.04 / math.sqrt(2 * c["layers"])
        for name, q in self.p.items():
            if q.dim() == 1:
                q.data.fill_(1.0)
            else:
                std = out if name.endswith((".o", ".wd")) else 0.02 if name.endswith(".gate") else 0.04
                q.data.normal_(0, std, generator=g).clamp_(-3 * std, 3 * std)
        self.cs = rope_table(c, c["max_pos"])

    def route(self, i, x, doc, pool, stats):
        """Router of layer i.  pool: None (standard MoE) or one pool size per document piece.
        Returns weights and indices of the routed experts and the auxiliary losses."""
        c = self.c
        R, K = c["experts"] - c["shared"], c["per_tok"] - c["shared"]
        logits = F.linear(x, self.p[f"{i}.gate"][:R])
        if pool is not None:
            with torch.no_grad():
                use = torch.zeros(len(pool), R).index_add_(0, doc, logits.softmax(-1))
                rank = use.argsort(1, descending=True).argsort(1)
                drop = rank >= pool[:, None]
            logits = logits.masked_fill(drop[doc], float("-inf"))
        scores = logits.softmax(-1)
        w, idx = scores.topk(K, dim=-1)
        T = x.shape[0]
        share = torch.bincount(idx.view(-1), minlength=R).float() / T
        lb = (R / K) * torch.dot(share, scores.mean(0))
        z = torch.logsumexp(logits, -1).square().mean()
        if stats is not None:
            stats.append((float(lb), float(w.detach().sum(-1).mean()), int((share > 0).sum())))
        return w, idx, lb, z

    def loss(self, ids, labels, pieces, doc, pools, lb_w=0.1, z_w=0.001, stats=None):
        """pieces: int32 (P,2) document pieces of the batch; doc: piece number of every token."""
        import fast

        c, p = self.c, self.p
        x = F.embedding(ids, p["embed"])
        aux = 0.0
        for i in range(c["layers"]):
            h = fast.RMSNorm.apply(x, p[f"{i}.n1"], c["eps"])
            a = fast.Attention.apply(fast.Linear.apply(h, p[f"{i}.qkv"]), pieces, self.cs, c["heads"])
            x = x + fast.Linear.apply(a, p[f"{i}.o"])
            h = fast.RMSNorm.apply(x, p[f"{i}.n2"], c["eps"])
            w, idx, lb, z = self.route(i, h, doc, None if pools is None else pools[i], stats)
            aux = aux + lb_w * lb + z_w * z
            x = x + fast.MoE.apply(h, idx, w, p[f"{i}.wgu"], p[f"{i}.wd"])
        x = fast.RMSNorm.apply(x, p["norm"], c["eps"])
        return fast.HeadLoss.apply(x, p["head"], labels), aux
