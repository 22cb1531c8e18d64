"""The PyTorch original's outputs in ../shared, and the models they are of, as files for the program."""
import array
import json
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from run_tests import ROOT

SHARED = ROOT.parent / "shared" / "models"


def model_file(build, model, kind):
    """The model in a format, converted once per build."""
    path = ROOT / build / "full" / f"{model}-{kind}.gguf"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        program = ROOT / build / "vkmoe"
        subprocess.run([program, "convert", SHARED / model, "-o", path, "--type", kind], check=True)
    return path


def manifest(model):
    return json.loads((SHARED / "golden" / model / "manifest.json").read_text())


def read_npy(path, kind):
    """Values ('i' or 'f', 4 bytes each) and shape of a little-endian .npy file, version 1.0."""
    data = path.read_bytes()
    end = 10 + int.from_bytes(data[8:10], "little")
    header = data[10:end].decode()
    shape = [int(n) for n in header.split("'shape':")[1].split("(")[1].split(")")[0].split(",") if n.strip()]
    values = array.array(kind)
    values.frombytes(data[end:])
    return values, shape


def rows(model, name, kind, domain):
    """A domain's part of router_mean.npy or subset_125.npy: one list per layer."""
    values, (n_domains, n_layers, n) = read_npy(SHARED / "golden" / model / name, kind)
    domains = manifest(model)["domains"]
    assert n_domains == len(domains)
    at = domains.index(domain) * n_layers * n
    return [list(values[at + l * n:at + (l + 1) * n]) for l in range(n_layers)]


def subset_file(model, domain, path):
    """Golden's 12.5 % subset of a domain as a subset file. Returns path."""
    kept = rows(model, "subset_125.npy", "i", domain)
    n_routed = len(rows(model, "router_mean.npy", "f", domain)[0])
    path.write_text(json.dumps({"format": "vkmoe.subset", "version": 1, "model": model, "n_layers": len(kept),
                                "n_routed": n_routed, "n_shared": 1, "keep": len(kept[0]) + 1,
                                "method": "router",
                                "experts_kept_per_layer": [ids + [n_routed] for ids in kept]}))
    return path
