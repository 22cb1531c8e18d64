#!/usr/bin/env python3
"""Block formats against ggml's own code, on the bundled model's weights: what `vkmoe quantize` wrote is
dequantised by ggml and must equal vkmoe's F32 twin of the file to the last bit, and the squared error of the
encoders must be at most LIMIT times that of ggml_quantize_chunk on the same rows.

    tools/full/ggml_blocks.py BUILD

Needs Node 20 with npm, which fetches llama.cpp's libraries once into out/peer. Prints one "figure" line per
format: tensors compared, elements whose errors were compared, ratio of the errors.
"""
import array
import ctypes
import pathlib
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from carved_in_llama import PEER, peer_is_there
from run_tests import ROOT

LIMIT = 1.02
ROWS = 96  # of each tensor, for errors
# name: (GGUF's type, elements of a block, bytes of a block, ggml's name)
FORMATS = {"q4_0": (2, 32, 18, "q4_0"), "q4_1": (3, 32, 20, "q4_1"), "q5_0": (6, 32, 22, "q5_0"),
           "q5_1": (7, 32, 24, "q5_1"), "q8_0": (8, 32, 34, "q8_0"), "q2_k": (10, 256, 84, "q2_K"),
           "q3_k": (11, 256, 110, "q3_K"), "q4_k": (12, 256, 144, "q4_K"), "q5_k": (13, 256, 176, "q5_K"),
           "q6_k": (14, 256, 210, "q6_K"), "iq4_nl": (20, 32, 18, "iq4_nl"), "mxfp4": (39, 32, 17, "mxfp4")}
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # GGUF's value types: bytes
STRING, ARRAY = 8, 9


class Gguf:
    """The tensors of a file: {name: (type, elements, row length, offset in the file)}."""

    def __init__(self, path):
        self.data = pathlib.Path(path).read_bytes()
        self.at = 8
        n_tensors, n_keys = self.take("<QQ")
        for _ in range(n_keys):
            self.string()
            self.value(self.take("<I")[0])
        self.tensors = {}
        for _ in range(n_tensors):
            name = self.string()
            dims = self.take("<%dQ" % self.take("<I")[0])
            kind, offset = self.take("<IQ")
            n = 1
            for d in dims:
                n *= d
            self.tensors[name] = (kind, n, dims[0], offset)
        start = (self.at + 31) // 32 * 32
        self.tensors = {k: t[:3] + (start + t[3],) for k, t in self.tensors.items()}

    def take(self, layout):
        values = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return values

    def string(self):
        n, = self.take("<Q")
        self.at += n
        return self.data[self.at - n:self.at].decode("utf-8", "replace")

    def value(self, kind):
        if kind == STRING:
            self.string()
        elif kind == ARRAY:
            element, n = self.take("<IQ")
            for _ in range(n if element == STRING else 0):
                self.string()
            self.at += 0 if element == STRING else n * SCALARS[element]
        else:
            self.at += SCALARS[kind]

    def bytes_of(self, name, n):
        at = self.tensors[name][3]
        return self.data[at:at + n]


def quantise(program, source, path, kind):
    subprocess.run([program, "quantize", source, path, kind], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    return Gguf(path)


def dequantised(ggml, name, data, n):
    values = (ctypes.c_float * n)()
    getattr(ggml, f"dequantize_row_{name}")(data, values, ctypes.c_int64(n))
    return bytes(values)


def squared_error(x, y):
    return sum((a - b) * (a - b) for a, b in zip(array.array("f", x), array.array("f", y)))


def compare(ggml, kind, ours, twin, source):
    """(tensors that are not the same, tensors, elements, ratio of errors)"""
    number, block, size, name = FORMATS[kind]
    wrong = tensors = elements = 0
    mine = theirs = 0.0
    for tensor, (found, n, row, _) in ours.tensors.items():
        if found != number:
            continue
        data = ours.bytes_of(tensor, n // block * size)
        tensors += 1
        wrong += dequantised(ggml, name, data, n) != twin.bytes_of(tensor, 4 * n)
        rows = min(ROWS, n // row)
        x = source.bytes_of(tensor, 4 * rows * row)
        chunk = ctypes.create_string_buffer(rows * row // block * size)
        ggml.ggml_quantize_chunk(number, x, chunk, ctypes.c_int64(0), ctypes.c_int64(rows),
                                 ctypes.c_int64(row), None)
        mine += squared_error(x, twin.bytes_of(tensor, 4 * rows * row))
        theirs += squared_error(x, dequantised(ggml, name, chunk, rows * row))
        elements += rows * row
    return wrong, tensors, elements, mine / theirs if theirs else 0.0


def main():
    program = ROOT / sys.argv[1] / "vkmoe"
    if not peer_is_there():
        print("counts 0 0 1")
        return 0
    libraries = PEER / "node_modules/@node-llama-cpp/linux-x64/bins/linux-x64"
    ggml = ctypes.CDLL(libraries / "libggml-base.so")
    good = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        source = quantise(program, ROOT / "models/emo-nano.gguf", folder / "source.gguf", "f32")
        for kind in FORMATS:
            ours = quantise(program, ROOT / "models/emo-nano.gguf", folder / "ours.gguf", kind)
            twin = quantise(program, folder / "ours.gguf", folder / "twin.gguf", "f32")
            wrong, tensors, elements, ratio = compare(ggml, kind, ours, twin, source)
            ok = tensors > 0 and not wrong and 0 < ratio <= LIMIT
            good += ok
            print(f"figure blocks {kind} {tensors} {elements} {ratio:.4f} {LIMIT} {'ok' if ok else 'FAIL'}",
                  flush=True)
    print(f"counts {good} {len(FORMATS) - good} 0")
    return good != len(FORMATS)


if __name__ == "__main__":
    sys.exit(main())
