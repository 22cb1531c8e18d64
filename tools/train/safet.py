"""The safetensors file format: 8-byte little-endian header length, JSON header, raw tensors."""
import json
import struct

import numpy as np
import torch


def to_bf16_bits(x):
    """float32 tensor -> uint16 numpy array of bfloat16 bits, round to nearest even."""
    u = x.contiguous().numpy().view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype("<u2")


def save_bf16(tensors, path):
    head, at, blobs = {"__metadata__": {"format": "pt"}}, 0, []
    for name in sorted(tensors):
        b = to_bf16_bits(tensors[name]).tobytes()
        head[name] = {"dtype": "BF16", "shape": list(tensors[name].shape), "data_offsets": [at, at + len(b)]}
        blobs.append(b)
        at += len(b)
    h = json.dumps(head, separators=(",", ":")).encode()
    h += b" " * (-len(h) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(h)) + h)
        for b in blobs:
            f.write(b)


def load_f32(path):
    raw = open(path, "rb").read()
    n = struct.unpack("<Q", raw[:8])[0]
    out = {}
    for name, t in json.loads(raw[8 : 8 + n]).items():
        if name == "__metadata__":
            continue
        a, b = t["data_offsets"]
        part = raw[8 + n + a : 8 + n + b]
        if t["dtype"] == "BF16":
            v = (np.frombuffer(part, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif t["dtype"] == "F32":
            v = np.frombuffer(part, "<f4")
        else:
            raise ValueError(t["dtype"])
        out[name] = torch.from_numpy(v.reshape(t["shape"]).copy())
    return out
