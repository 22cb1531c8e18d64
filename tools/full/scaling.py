#!/usr/bin/env python3
"""How the cost of a token grows: decode against context, layers and experts, and prompts against their
length, on models of small widths with random weights.

    tools/full/scaling.py BUILD DRIVER [--rounds N] [--quick] [--write]

Each round measures every point once, in turn (`vkmoe bench`); a point is the fastest of its rounds, so that
what else the machine did is left out as far as it can be. Prints the fitted slopes as a table for
docs/SPEED.md, "figure" lines and a "counts" line. Counts of the recorded commands (`bench --count`) are held
to limits: dispatches and barriers of a layer do not grow, and bytes grow with experts by the router's rows
alone. Times are held to none: they are for people. --write puts the points into bench/scaling.csv and the
plot into docs/scaling.svg. --quick: few points, to see that it works.
"""
import argparse
import csv
import json
import math
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from run_tests import ROOT, driver_environment

N_GEN = 16
DIM = 256  # of emo-nano
LIMIT = .05

CONTEXTS = [128, 256, 512, 1024, 2048, 4096]
LAYERS = [1, 2, 4, 8, 16]
EXPERTS = [16, 32, 64, 128, 256, 512]
PROMPTS = [64, 128, 256, 512, 1024, 2048, 4096]


class Bench:
    def __init__(self, build, driver):
        self.program = ROOT / build / "vkmoe"
        self.folder = ROOT / build / "full"
        self.environment = driver_environment(driver)
        if self.environment is None:
            sys.exit(f"no driver {driver} is installed")

    def model(self, layers=4, experts=64):
        path = self.folder / f"scaling-{layers}-{experts}.gguf"
        if not path.exists():
            self.folder.mkdir(exist_ok=True)
            command = [self.program, "synth", "--shape", "emo-nano", "--type", "q4_0", "--vocab", "4096",
                       "--layers", str(layers), "--experts", str(experts), "-o", path]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return path

    def run(self, model, *options):
        command = [self.program, "bench", "-m", model, "--synthetic", "--peak", "0", "-o", "json", *options]
        out = subprocess.run([str(c) for c in command], env=self.environment, check=True,
                             stdout=subprocess.PIPE).stdout
        return json.loads(out)

    def decode(self, model, depth=0):
        """Seconds of one token."""
        row, = self.run(model, "-p", 0, "-n", N_GEN, "-d", depth, "-r", 1)
        return min(row["samples_ns"]) / N_GEN * 1e-9

    def prompt(self, model, n):
        """Seconds of a prompt."""
        row, = self.run(model, "-p", n, "-n", 0, "-r", 1)
        return min(row["samples_ns"]) * 1e-9

    def count(self, model, depth=0):
        return self.run(model, "--count", "-d", depth)


class Curve:
    """Points of one sweep: x, and the least seconds seen."""

    def __init__(self, name, label, xs, measure, count):
        self.name, self.label, self.xs, self.measure, self.count = name, label, xs, measure, count
        self.best = {x: math.inf for x in xs}
        self.counts = {x: count(x) for x in xs} if count else {}

    def step(self, x):
        self.best[x] = min(self.best[x], self.measure(x))

    def points(self):
        return [(x, self.best[x]) for x in self.xs]


def fit(points, degree=1):
    """Least squares of relative errors: coefficients from the constant up, and the largest relative error."""
    rows = [[x ** k / y for k in range(degree + 1)] for x, y in points]
    n = degree + 1
    a = [[sum(r[i] * r[j] for r in rows) for j in range(n)] + [sum(r[i] for r in rows)] for i in range(n)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(a[r][i]))
        a[i], a[pivot] = a[pivot], a[i]
        for j in range(n):
            if j != i:
                f = a[j][i] / a[i][i]
                a[j] = [u - f * v for u, v in zip(a[j], a[i])]
    c = [a[i][n] / a[i][i] for i in range(n)]
    worst = max(abs(sum(c[k] * x ** k for k in range(n)) / y - 1) for x, y in points)
    return c, worst


def curves(bench, quick):
    base = bench.model()
    contexts, layers, experts, prompts = CONTEXTS, LAYERS, EXPERTS, PROMPTS
    if quick:
        contexts, layers, experts, prompts = [128, 512, 1024], [1, 2, 4], [16, 64, 256], [64, 256, 512]
    return [
        Curve("context", "positions in the cache", contexts, lambda x: bench.decode(base, x - N_GEN // 2),
              lambda x: bench.count(base, x)),
        Curve("layers", "layers", layers, lambda x: bench.decode(bench.model(layers=x)),
              lambda x: bench.count(bench.model(layers=x))),
        Curve("experts", "experts in a layer, 5 of them used", experts,
              lambda x: bench.decode(bench.model(experts=x)), lambda x: bench.count(bench.model(experts=x))),
        Curve("prompt", "tokens of the prompt", prompts, lambda x: bench.prompt(base, x), None),
    ]


# ---- what is held

def bytes_of(count):
    """What the recorded commands read, where it is told, else what the model makes necessary."""
    return count.get("bytes_read") or count["active_weight_bytes"] + count["cache_bytes"]


def check_counts(by_name):
    """Lines of failures."""
    bad = []
    for name, counts in by_name.items():
        first = next(iter(counts.values()))
        for x, c in counts.items():
            if c["submits"] != 1 or c["waits"] != 1:
                bad.append(f"{name} {x}: {c['submits']} submits and {c['waits']} waits a token")
            for key in ("dispatches_per_layer", "barriers_per_layer"):
                if c[key] != first[key]:
                    bad.append(f"{name} {x}: {key} is {c[key]}, not {first[key]}")
    experts = by_name["experts"]
    least = min(experts)
    for x, c in experts.items():
        want = (x - least) * DIM * 4 * c["layers"]
        got = bytes_of(c) - bytes_of(experts[least])
        if want and abs(got / want - 1) > LIMIT:
            bad.append(f"experts {x}: bytes grow by {got:.0f}, the router's rows by {want}")
    return bad


# ---- results

def describe(curve):
    """(what grows, fitted law, largest error)"""
    points = curve.points()
    if curve.name == "prompt":
        (a, b, c), worst = fit(points, 2)
        at = max(curve.xs)
        return (f"{b * 1e6:.1f} us a token + {c * 1e9:.2f} ns x tokens^2 "
                f"({100 * c * at / (b + c * at):.0f} % of the time at {at}) + {a * 1e3:.1f} ms", worst)
    (a, b), worst = fit(points)
    unit = {"context": "position", "layers": "layer", "experts": "expert"}[curve.name]
    law = f"{a * 1e3:.3f} ms + {b * 1e6:.3f} us a {unit}"
    if curve.name == "experts":
        rows = DIM * 4 * next(iter(curve.counts.values()))["layers"]
        law += f", {rows / b * 1e-9:.2f} GB/s of router" if b > 0 else ", less than noise"
    return law, worst


def round_up(v):
    """Four round steps that hold v."""
    step = 10 ** math.floor(math.log10(v / 4))
    return next(4 * step * k for k in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if 4 * step * k >= v)


def plot(path, all_curves, device):
    width, height, left, top, inner_w, inner_h = 860, 640, 62, 46, 330, 200
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
           f'font-size="12" role="img" aria-label="Cost against context, layers, experts and prompt length">',
           '<style>text{fill:#555}.t{fill:#222;font-weight:600;font-size:13px}.l{fill:none;stroke:#14599c;'
           'stroke-width:1.6}.p{fill:#c65a00}.g{stroke:#ddd}@media(prefers-color-scheme:dark){text{fill:#aaa}'
           '.t{fill:#eee}.l{stroke:#86bdf2}.p{fill:#f29a45}.g{stroke:#444}}</style>']
    for i, curve in enumerate(all_curves):
        x0, y0 = left + i % 2 * (width // 2), top + i // 2 * (height // 2 - 10)
        points = curve.points()
        scale, unit = (1e3, "ms a token") if curve.name != "prompt" else (1, "s a prompt")
        most_x, most_y = max(x for x, _ in points), round_up(max(y for _, y in points) * scale)

        def at(x, y):
            return f"{x0 + x / most_x * inner_w:.1f},{y0 + inner_h - y * scale / most_y * inner_h:.1f}"

        out.append(f'<text class="t" x="{x0}" y="{y0 - 18}">{unit} against {curve.label}</text>')
        for k in range(5):
            y = y0 + inner_h - k * inner_h / 4
            out.append(f'<path class="g" d="M{x0} {y:.1f}h{inner_w}"/><text x="{x0 - 6}" y="{y + 4:.1f}" '
                       f'text-anchor="end">{most_y * k / 4:.3g}</text>')
            out.append(f'<text x="{x0 + k * inner_w / 4:.1f}" y="{y0 + inner_h + 17}" text-anchor="middle">'
                       f'{most_x * k / 4:.4g}</text>')
        c, _ = fit(points, 2 if curve.name == "prompt" else 1)
        low = min(x for x, _ in points)
        line = [low + (most_x - low) * k / 40 for k in range(41)]
        path_d = " ".join(at(x, sum(v * x ** k for k, v in enumerate(c))) for x in line)
        out.append(f'<polyline class="l" points="{path_d}"/>')
        for x, y in points:
            cx, cy = at(x, y).split(",")
            out.append(f'<circle class="p" cx="{cx}" cy="{cy}" r="3.4"/>')
    out.append(f'<text x="{left}" y="{height - 12}">{device}; points: fastest of all rounds, lines: fits'
               '</text></svg>')
    path.write_text("\n".join(out) + "\n")


def write(all_curves, device):
    (ROOT / "bench").mkdir(exist_ok=True)
    with open(ROOT / "bench" / "scaling.csv", "w", newline="") as f:
        rows = csv.writer(f, lineterminator="\n")
        keys = ["active_weight_bytes", "cache_bytes", "dispatches", "barriers"]
        rows.writerow(["curve", "x", "seconds"] + keys)
        for curve in all_curves:
            for x, y in curve.points():
                c = curve.counts.get(x, {})
                rows.writerow([curve.name, x, f"{y:.9f}"] + [c.get(k, "") for k in keys])
    plot(ROOT / "docs" / "scaling.svg", all_curves, device)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("driver")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    bench = Bench(args.build, args.driver)
    found = curves(bench, args.quick)
    bad = check_counts({c.name: c.counts for c in found if c.counts})
    for line in bad:
        print("FAIL  " + line)
    for i in range(args.rounds):
        for curve in found:
            for x in curve.xs:
                curve.step(x)
        print(f"round {i + 1} of {args.rounds}", flush=True)
    device = next(iter(found[0].counts.values()))["device"]
    print(f"\n{device}, 4 layers and 64 experts of emo-nano's widths where nothing else is said\n")
    print("| against | from | to | fitted | largest error |\n|---|--:|--:|---|--:|")
    for curve in found:
        law, worst = describe(curve)
        print(f"| {curve.label} | {curve.best[curve.xs[0]] * 1e3:.2f} ms at {curve.xs[0]} | "
              f"{curve.best[curve.xs[-1]] * 1e3:.2f} ms at {curve.xs[-1]} | {law} | {100 * worst:.0f} % |")
    print()
    for curve in found:
        for x, y in curve.points():
            print(f"figure scaling {args.driver} {curve.name} {x} {y * 1e3:.4f} ms")
    if args.write:
        write(found, device)
    print(f"counts {0 if bad else 1} {len(bad)} 0")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
