"""GGUF files that hold a vocabulary and no tensors, and the keys of other files."""
import struct

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q",
           I64: "q", F64: "d"}


def _string(s):
    b = s.encode("utf-8", "surrogateescape") if isinstance(s, str) else s
    return struct.pack("<Q", len(b)) + b


def _value(kind, v):
    if kind == STRING:
        return _string(v)
    if kind == ARRAY:
        elem, items = v
        if elem == STRING:
            return struct.pack("<IQ", elem, len(items)) + b"".join(map(_string, items))
        return struct.pack("<IQ", elem, len(items)) + struct.pack(f"<{len(items)}{FORMATS[elem]}", *items)
    return struct.pack("<" + FORMATS[kind], v)


def write(path, keys):
    """keys: {name: (type, value)}; an array is (ARRAY, (element type, list))."""
    body = b"".join(_string(k) + struct.pack("<I", kind) + _value(kind, v) for k, (kind, v) in keys.items())
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)) + body)


class _Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, fmt):
        v = struct.unpack_from("<" + fmt, self.data, self.at)
        self.at += struct.calcsize("<" + fmt)
        return v

    def string(self):
        n, = self.take("Q")
        self.at += n
        return self.data[self.at - n:self.at].decode("utf-8", "surrogateescape")

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.take(FORMATS[kind])[0]
        elem, n = self.take("IQ")
        if elem == STRING:
            return elem, [self.string() for _ in range(n)]
        return elem, list(self.take(f"{n}{FORMATS[elem]}"))


def read_keys(path):
    r = _Reader(path.read_bytes())
    magic, version, _, n = r.take("4sIQQ")
    if magic != b"GGUF" or version != 3:
        raise ValueError(f"{path}: not GGUF of version 3")
    keys = {}
    for _ in range(n):
        name = r.string()
        kind, = r.take("I")
        keys[name] = (kind, r.value(kind))
    return keys
