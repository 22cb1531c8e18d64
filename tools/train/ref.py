"""Reference forward pass in plain float32 PyTorch, from the exported files; independent of the
training code.  Slow and simple on purpose."""
import json
import torch
import torch.nn.functional as F
from safet import load_f32


class Ref:
    def __init__(self, folder):
        self.c = c = json.load(open(folder + "/config.json"))
        self.w = load_f32(folder + "/model.safetensors")
        self.L, self.E, self.S = c["num_hidden_layers"], c["num_experts"], c["num_shared_experts"]
        self.R = self.E - self.S
        self.heads = c["num_attention_heads"]
        self.d = c["hidden_size"] // self.heads

    def lin(self, x, name):
        return x @ self.w[name + ".weight"].t()

    def norm(self, x, name):
        return (
            x
            * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.c["rms_norm_eps"])
            * self.w[name + ".weight"]
        )

    def rope(self, x, pos):
        half = self.d // 2
        inv = 1.0 / self.c["rope_theta"] ** (torch.arange(0, self.d, 2).float() / self.d)
        ang = pos.float()[:, None] * inv[None]
        cos, sin = torch.cat([ang, ang], -1).cos()[:, None], torch.cat([ang, ang], -1).sin()[:, None]
        rot = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * cos + rot * sin

    def moe(self, x, a, keep, info):
        """keep: None or the sorted list of routed experts that exist (as if the others were cut out)."""
        logits = self.lin(x, a + "gate")[:, : self.R]
        full = logits.softmax(-1)
        ids = torch.arange(self.R) if keep is None else torch.tensor(keep)
        probs = logits[:, ids].softmax(-1)
        k = min(self.c["num_experts_per_tok"] - self.S, len(ids))
        w, pick = probs.topk(k, -1)
        sel = ids[pick]
        n = x.shape[0]
        shared = torch.arange(self.R, self.E).expand(n, self.S)
        ws = self.lin(x, a + "gate")[:, self.R :].softmax(-1)
        sel, w = torch.cat([sel, shared], 1), torch.cat([w, ws], 1)
        if info is not None:
            info.append((sel, w, full))
        out = torch.zeros_like(x)
        for e in sel.unique().tolist():
            tok, slot = (sel == e).nonzero(as_tuple=True)
            b = f"{a}experts.{e}."
            h = F.silu(self.lin(x[tok], b + "gate_proj")) * self.lin(x[tok], b + "up_proj")
            out.index_add_(0, tok, self.lin(h, b + "down_proj") * w[tok, slot, None])
        return out

    @torch.no_grad()
    def forward(self, ids, keep=None, info=None, cache=None):
        """ids: list of token ids (one sequence).  keep: per layer list of routed experts, or None.
        info: a list that receives, per layer, (selected experts, weights, full router probabilities).
        cache: a dict that carries keys and values between calls.  Returns (tokens, vocab) logits."""
        x = self.w["model.embed_tokens.weight"][torch.tensor(ids)]
        past = 0 if cache is None else cache.get("n", 0)
        n = len(ids)
        pos = torch.arange(past, past + n)
        for i in range(self.L):
            a = f"model.layers.{i}."
            h = self.norm(x, a + "pre_attention_layernorm")
            q, k, v = (self.lin(h, f"{a}self_attn.{t}_proj").view(n, self.heads, self.d) for t in "qkv")
            q, k = self.rope(q, pos), self.rope(k, pos)
            if cache is not None:
                if past:
                    k, v = torch.cat([cache[i][0], k]), torch.cat([cache[i][1], v])
                cache[i] = (k, v)
            s = torch.einsum("qhd,khd->hqk", q, k) * self.d**-0.5
            s = s.masked_fill(torch.arange(past + n)[None, None] > pos[None, :, None], float("-inf"))
            o = torch.einsum("hqk,khd->qhd", s.softmax(-1), v).reshape(n, -1)
            x = x + self.lin(o, a + "self_attn.o_proj")
            x = x + self.moe(
                self.norm(x, a + "pre_feedforward_layernorm"),
                a + "mlp.",
                None if keep is None else keep[i],
                info,
            )
        if cache is not None:
            cache["n"] = past + n
        return self.lin(self.norm(x, "model.norm"), "lm_head")
