#!/usr/bin/env python3
"""`experts rank` over complete calibration texts against the PyTorch original: mean router probabilities
within LIMIT, and the 12.5 % subset, except where golden's means lie within TIE.

    tools/full/rank.py BUILD DRIVER MODEL DOMAIN...

MODEL is emo-nano or stdmoe-nano, DOMAIN a name in golden's manifest or `all`. Prints one "figure" line per
text, with the largest difference of a mean and how many experts ties exchanged, and a "counts" line.
"""
import json
import subprocess
import sys

from golden import ROOT, SHARED, manifest, model_file, rows
from run_tests import driver_environment

LIMIT = 1e-5
TIE = 2e-5


def exchanged(mean, got, want):
    """How many of golden's experts are not in got; None when one of those differs by more than a tie."""
    gone, come = set(want) - set(got), set(got) - set(want)
    if len(got) != len(want) or (gone and max(mean[e] for e in gone) - min(mean[e] for e in come) > TIE):
        return None
    return len(gone)


def main():
    build, driver, model, *domains = sys.argv[1:]
    if domains == ["all"]:
        domains = manifest(model)["domains"]
    path = model_file(build, model, "bf16")
    bad = 0
    for domain in domains:
        stats_path = path.with_name(f"{model}-{domain}.stats.json")
        kept_path = path.with_name(f"{model}-{domain}.json")
        subprocess.run([ROOT / build / "vkmoe", "experts", "rank", "-m", path, "-f",
                        SHARED / "data" / f"{domain}.calibration.txt", "-ctk", "f32", "-ctv", "f32", "--keep",
                        "12.5%", "-o", kept_path, "--stats-out", stats_path],
                       env=driver_environment(driver), check=True, stdout=subprocess.DEVNULL)
        stats, kept = json.loads(stats_path.read_text()), json.loads(kept_path.read_text())
        means = rows(model, "router_mean.npy", "f", domain)
        subset = rows(model, "subset_125.npy", "i", domain)
        worst = max(abs(int(digits, 16) / 2**64 / stats["tokens"] - want)
                    for sums, mean in zip(stats["probability"], means) for digits, want in zip(sums, mean))
        ties = [exchanged(mean, ids[:-1], want)
                for mean, ids, want in zip(means, kept["experts_kept_per_layer"], subset)]
        good = worst <= LIMIT and None not in ties
        bad += not good
        print(f"figure rank {driver} {model} {domain} {stats['tokens']} {worst:.3g} {LIMIT:g} "
              f"{'-' if None in ties else sum(ties)} {'ok' if good else 'FAIL'}", flush=True)
    print(f"counts {len(domains) - bad} {bad} 0")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
