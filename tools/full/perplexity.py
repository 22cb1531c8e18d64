#!/usr/bin/env python3
"""Perplexity of complete validation texts on the device against the sums of the PyTorch original.

    tools/full/perplexity.py BUILD DRIVER MODEL TYPE CACHE [--subset | --fast] DOMAIN...

MODEL is emo-nano or stdmoe-nano, TYPE a weight format, CACHE f32 or f16, DOMAIN a name in golden's
manifest or `all`. --subset: with only the experts of the domain's golden 12.5 % subset. --fast: with
--fast-math, against the device's own exact path on the same weights. Prints one "figure" line per text and
a "counts" line; fails when a perplexity (--subset: the sum of negative log-likelihood) is further from what
it is compared with than its limit. The original sums in single precision, which decides near ties between
experts: where a text is past the limit of f32, its yardstick is the scalar reference, which sums in double
(score_reference), and the row says "/double".
"""
import json
import math
import subprocess
import sys

from golden import ROOT, SHARED, manifest, model_file, subset_file
from run_tests import driver_environment

# Relative, of the perplexity per token; the larger of format and cache holds.
LIMITS = {"bf16": 1e-5, "f32": 1e-5, "f16": 1e-4, "q8_0": 1e-3, "q4_0": 3e-2}
FAST_LIMIT = 1e-3


def evaluate(command, environment):
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def reference(build, path, text):
    scored = evaluate([ROOT / build / "score_reference", path, text], None)
    print(f"reference: {scored['nll']:.6f} nats, {scored['close']} near ties between experts", flush=True)
    return scored["nll"]


def main():
    build, driver, model, kind, cache, *domains = sys.argv[1:]
    subset, fast = domains[0] == "--subset", domains[0] == "--fast"
    domains = domains[subset or fast:]
    golden = manifest(model)["nll"]
    if domains == ["all"]:
        domains = list(golden)
    limit = FAST_LIMIT if fast else max(LIMITS[kind], LIMITS["f16"] if cache == "f16" else 0)
    environment = driver_environment(driver)
    path = model_file(build, model, kind)
    bad = 0
    for domain in domains:
        text = SHARED / "data" / f"{domain}.validation.txt"
        command = [ROOT / build / "vkmoe", "eval", "-m", path, "-f", text, "-ctk", cache, "-ctv", cache,
                   "--json"]
        if subset:
            command += ["--experts", subset_file(model, domain, path.with_name(f"{model}-{domain}-125.json"))]
        got = evaluate(command + ["--fast-math"] * fast, environment)
        want = golden[domain]
        if (got["tokens"], got["bytes"]) != (want["predicted_tokens"], want["bytes"]):
            print(f"{domain}: {got['tokens']} tokens, {got['bytes']} bytes: not the text of golden")
            bad += 1
            continue
        if fast:
            error = math.expm1((got["nll"] - evaluate(command, environment)["nll"]) / got["tokens"])
        elif subset:  # of the sum itself, as of complete models the perplexity
            error = got["nll"] / want["subset_125"] - 1
        else:
            error = math.expm1((got["nll"] - want["full"]) / got["tokens"])
        double = abs(error) > limit == LIMITS["f32"] and not fast and not subset
        if double:
            print(f"{domain}: {100 * error:+.6f} % from golden, past {100 * limit:g}", flush=True)
            error = math.expm1((got["nll"] - reference(build, path, text)) / got["tokens"])
        good = abs(error) <= limit
        bad += not good
        print(f"figure {driver} {model} {kind} {cache} {domain}"
              f"{'/12.5%' if subset else '/fast' if fast else '/double' if double else ''} {got['tokens']} "
              f"{got['ppl']:.6f} {100 * error:+.6f} {100 * limit:g} {'ok' if good else 'FAIL'}", flush=True)
    print(f"counts {len(domains) - bad} {bad} 0")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
