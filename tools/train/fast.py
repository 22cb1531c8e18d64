"""Autograd wrappers of fastops.cpp (compiled at first use with g++ and ninja)."""
import os

import torch
from torch.utils.cpp_extension import load

import paths

_build = paths.WORK + "/build"
os.makedirs(_build, exist_ok=True)
_blas = "/usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0"
ops = load(
    "emo_fastops",
    [paths.HERE + "/fastops.cpp"],
    build_directory=_build,
    extra_cflags=["-O3", "-march=native", "-mprefer-vector-width=512", "-ffast-math", "-fopenmp"],
    extra_ldflags=[_blas, "-fopenmp"],
)

if "amx_bf16" in open("/proc/cpuinfo").read() and not os.environ.get("EMO_NO_AMX"):
    os.makedirs(_build + "/amx", exist_ok=True)
    experts = load(
        "emo_moe_amx",
        [paths.HERE + "/moe_amx.cpp"],
        build_directory=_build + "/amx",
        extra_cflags=[
            "-O3",
            "-march=native",
            "-mprefer-vector-width=512",
            "-mamx-tile",
            "-mamx-bf16",
            "-mavx512bf16",
            "-ffast-math",
            "-fopenmp",
        ],
        extra_ldflags=["-fopenmp"],
    )
else:
    experts = ops


class RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, eps):
        ctx.save_for_backward(x, w)
        ctx.eps = eps
        return ops.rms_fwd(x, w, eps)

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        dx, dw = ops.rms_bwd(dy.contiguous(), x, w, ctx.eps)
        return dx, dw, None


class Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, pieces, cs, heads):
        out, lse = ops.attn_fwd(qkv, pieces, cs, heads)
        ctx.save_for_backward(qkv, lse, pieces, cs)
        ctx.heads = heads
        return out

    @staticmethod
    def backward(ctx, d):
        qkv, lse, pieces, cs = ctx.saved_tensors
        return ops.attn_bwd(d.contiguous(), qkv, lse, pieces, cs, ctx.heads), None, None, None


class MoE(torch.autograd.Function):
    """Weight gradients are written straight into the .grad buffers (one use of a weight per step)."""

    @staticmethod
    def forward(ctx, x, idx, w, wgu, wd):
        out, gu = experts.moe_fwd(x, idx, w, wgu, wd)
        ctx.save_for_backward(x, idx, w, gu)
        ctx.weights = (wgu, wd)
        return out

    @staticmethod
    def backward(ctx, d):
        x, idx, w, gu = ctx.saved_tensors
        wgu, wd = ctx.weights
        dx, dw = experts.moe_bwd(d.contiguous(), x, idx, w, wgu.data, wd.data, gu, wgu.grad, wd.grad)
        return dx, None, dw, None, None


class Linear(torch.autograd.Function):
    """x @ w.T with bfloat16 operands (oneDNN uses the AMX units), float32 in and out."""

    @staticmethod
    def forward(ctx, x, w):
        x, w = x.bfloat16(), w.bfloat16()
        ctx.save_for_backward(x, w)
        return torch.mm(x, w.t()).float()

    @staticmethod
    def backward(ctx, d):
        x, w = ctx.saved_tensors
        d = d.bfloat16()
        return torch.mm(d, w).float(), torch.mm(d.t(), x).float()


class HeadLoss(torch.autograd.Function):
    """lm_head and mean cross entropy in row chunks: the logits never exist as a whole."""

    @staticmethod
    def forward(ctx, x, w, labels):
        T = x.shape[0]
        xb, wb = x.bfloat16(), w.bfloat16()
        dx, dw = torch.empty_like(x), torch.zeros_like(w)
        losses = []
        for a in range(0, T, 1024):
            b = min(T, a + 1024)
            logits = torch.mm(xb[a:b], wb.t()).float()
            losses.append(ops.ce_(logits, labels[a:b], 1.0))
            g = logits.bfloat16()
            dx[a:b] = torch.mm(g, wb)
            dw += torch.mm(g.t(), xb[a:b])
        dx /= T
        dw /= T
        ctx.save_for_backward(dx, dw)
        return torch.cat(losses).mean()

    @staticmethod
    def backward(ctx, d):
        dx, dw = ctx.saved_tensors
        return dx * d, dw * d, None
