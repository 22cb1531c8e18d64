#!/usr/bin/env python3
"""EMO's real shape on a small device: a benchmark of the expert pool, not a test.

    tools/full/full_size.py BUILD DRIVER [MODEL.gguf] [--tokens N]

Without MODEL, writes one with `vkmoe synth --shape emo-1b14b` (7.7 GB, random weights) under BUILD/full.
Decodes with `-c 1024 --pool-mib 1024` and with the smallest pool that is accepted, and prints device bytes by
purpose and the process's anonymous memory; fails when device bytes pass budget + dense weights + cache and
activations, or the rest of the process 512 MiB.
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from run_tests import ROOT, driver_environment

MIB = 1 << 20
HOST_LIMIT = 512 * MIB


def rss_anon(pid):
    try:
        text = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", text)
    return int(found.group(1)) * 1024 if found else 0


def run(program, environment, model, pool, tokens):
    """One run; its JSON, wall time and the largest RssAnon seen."""
    command = [program, "run", "-m", model, "-p", "a", "-n", str(tokens), "--ignore-eos", "--temp", "0",
               "-c", "1024", "--pool-mib", str(pool), "--json"]
    start, peak = time.monotonic(), 0
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
        while p.poll() is None:
            peak = max(peak, rss_anon(p.pid))
            time.sleep(0.05)
        out, err = p.stdout.read(), p.stderr.read().decode()
    return p.returncode, json.loads(out) if p.returncode == 0 else None, err, time.monotonic() - start, peak


def smallest_pool(program, environment, model):
    """What the refusal of a pool of 1 MiB names."""
    status, _, err, _, _ = run(program, environment, model, 1, 1)
    found = re.search(r"at least (\d+) MiB", err)
    if status != 1 or not found:
        sys.exit(f"a pool of 1 MiB was not refused as expected: {err}")
    return int(found.group(1))


def report(result, seconds, peak, pool):
    """Prints one run; True when it keeps its limits."""
    p, t = result["pool"], result["timings"]
    m = result["memory"]
    bound = p["budget_bytes"] + m["dense_bytes"] + m["session_bytes"]
    device = m["device_peak_bytes"]
    # This driver's device memory is anonymous memory of the process, as are mapped staging and host buffers.
    host = peak - device
    good = device <= bound and host <= HOST_LIMIT
    print(f"figure full-size pool {pool} MiB: {p['slots']} slots of {p['experts']}, "
          f"{t['predicted_n']} tokens at {t['predicted_per_second']:.3f} per second, "
          f"hits {100 * p['hit_rate']:.1f} %, {p['uploaded_bytes'] / MIB:.0f} MiB uploaded; "
          f"device {device / MIB:.0f} of {bound / MIB:.0f} MiB allowed (dense {m['dense_bytes'] / MIB:.0f}, "
          f"cache and activations {m['session_bytes'] / MIB:.0f}, slots {p['slots_bytes'] / MIB:.0f}, "
          f"staging {p['staging_bytes'] / MIB:.0f}); RssAnon {peak / MIB:.0f} MiB, "
          f"less device {host / MIB:.0f} of 512; {seconds:.0f} s {'ok' if good else 'FAIL'}",
          flush=True)
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("driver")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--tokens", type=int, default=24)
    args = parser.parse_args()
    program = ROOT / args.build / "vkmoe"
    environment = driver_environment(args.driver)
    model = pathlib.Path(args.model) if args.model else ROOT / args.build / "full" / "emo-1b14b-random.gguf"
    if not model.exists():
        model.parent.mkdir(exist_ok=True)
        subprocess.run([program, "synth", "--shape", "emo-1b14b", "-o", model], check=True)
    good = True
    for pool in (1024, smallest_pool(program, environment, model)):
        status, result, err, seconds, peak = run(program, environment, model, pool, args.tokens)
        if status:
            sys.exit(f"pool of {pool} MiB: exit {status}: {err}")
        good &= report(result, seconds, peak, pool)
    return not good


if __name__ == "__main__":
    sys.exit(main())
