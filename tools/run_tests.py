#!/usr/bin/env python3
"""Runs the cmocka programs of a build, each on the drivers it is meant for, and counts what they report.

A skip is unexpected, and so a failure, when shared/ stands beside the checkout or CI=true, unless
tests/skips.txt lists it with a reason.
"""
import argparse
import concurrent.futures
import fnmatch
import glob
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Name: (pattern of the loader's manifest, further environment). Subgroups of lavapipe: width / 32.
DRIVERS = {
    "lavapipe": ("/usr/share/vulkan/icd.d/lvp_icd.{machine}.json", {}),
    "lavapipe-4": ("/usr/share/vulkan/icd.d/lvp_icd.{machine}.json", {"LP_NATIVE_VECTOR_WIDTH": "128"}),
    "lavapipe-16": ("/usr/share/vulkan/icd.d/lvp_icd.{machine}.json", {"LP_NATIVE_VECTOR_WIDTH": "512"}),
    "swiftshader": ("/usr/lib/chromium/vk_swiftshader_icd.json", {}),
    "polaris10": ("/usr/share/vulkan/icd.d/radeon_icd.{machine}.json", {"RADV_FORCE_FAMILY": "POLARIS10"}),
    "vega10": ("/usr/share/vulkan/icd.d/radeon_icd.{machine}.json", {"RADV_FORCE_FAMILY": "VEGA10"}),
    "navi10": ("/usr/share/vulkan/icd.d/radeon_icd.{machine}.json", {"RADV_FORCE_FAMILY": "NAVI10"}),
    "navi21": ("/usr/share/vulkan/icd.d/radeon_icd.{machine}.json", {"RADV_FORCE_FAMILY": "NAVI21"}),
    "gfx1100": ("/usr/share/vulkan/icd.d/radeon_icd.{machine}.json", {"RADV_FORCE_FAMILY": "GFX1100"}),
}

# The first pattern that fits a program decides: drivers, and those of a sanitizer build. What is left out for
# time runs in rows of tools/full/shards.txt.
MATRIX = [
    ("test_radv*", ["polaris10", "navi21", "gfx1100"], ["navi21"]),
    ("test_kernels*", ["lavapipe", "lavapipe-4", "lavapipe-16", "swiftshader"], ["lavapipe"]),
    ("test_gpu*", ["lavapipe", "swiftshader"], ["lavapipe"]),
    ("test_fetch", ["lavapipe", "swiftshader"], ["lavapipe"]),
    ("test_tags", ["lavapipe", "swiftshader"], ["lavapipe"]),
    ("test_hot", ["lavapipe"], ["lavapipe"]),
    ("test_e2e_golden", ["lavapipe", "swiftshader"], []),  # other subgroup sizes: test_e2e_caps
    ("test_e2e_eval", ["lavapipe", "swiftshader"], []),
    ("test_e2e_caps", ["lavapipe", "swiftshader"], []),  # sessions and failures take the same paths
    ("test_e2e_cli_experts*", ["lavapipe"], []),
    ("test_e2e_cli_bench", ["lavapipe"], []),
    ("test_e2e_cli_pool", ["lavapipe"], []),
    ("test_e2e_cli_chat", ["lavapipe"], []),
    ("test_e2e_cli*", ["lavapipe"], ["lavapipe"]),  # what the program does around it depends on no driver
    ("test_e2e_budget", ["lavapipe"], []),  # nor do decisions of the host
    ("test_e2e_faults", ["lavapipe"], ["lavapipe"]),
    ("test_e2e_formats", ["lavapipe"], []),
    # The full run has the other driver and the sanitizers.
    ("test_e2e_doc", ["lavapipe"], []),
    ("test_e2e_rank", ["lavapipe"], []),
    ("test_e2e_carve", ["lavapipe"], []),
    ("test_e2e_pool", ["lavapipe"], []),
    ("test_e2e_hazards", ["lavapipe"], ["lavapipe"]),
    ("test_e2e_arch", ["lavapipe", "swiftshader"], []),
    ("test_e2e_session", ["lavapipe", "swiftshader"], []),
    ("test_e2e*", ["lavapipe", "swiftshader"], ["lavapipe"]),
    ("test_*", [""], [""]),
]

RESULT = re.compile(r"^\[\s*(OK|FAILED|SKIPPED)\s*\] (\S+)")
GROUP_BEGIN = re.compile(r"^\[=+\] Running (\d+) test")
GROUP_END = re.compile(r"^\[=+\] .*\d+ test\(s\) run")


def read_skips():
    """Rows (driver pattern, program, test) of tests/skips.txt; a # begins the reason."""
    path = ROOT / "tests" / "skips.txt"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        words = line.split("#")[0].split()
        if len(words) == 3:
            rows.append(words)
    return rows


def count(text):
    """Names of tests by outcome. What cmocka repeats after a group's end is not counted again."""
    found = {"OK": [], "FAILED": [], "SKIPPED": []}
    announced = 0
    inside = False
    for line in text.splitlines():
        begin = GROUP_BEGIN.match(line)
        if begin:
            inside = True
            announced += int(begin.group(1))
        elif GROUP_END.match(line):
            inside = False
        elif inside:
            m = RESULT.match(line)
            if m:
                found[m.group(1)].append(m.group(2).rstrip(":"))
    return found, announced


def driver_environment(driver, machine=None):
    """The environment in which a program sees only this driver; None where it is not installed."""
    env = dict(os.environ)
    for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES", "RADV_FORCE_FAMILY", "LP_NATIVE_VECTOR_WIDTH"):
        env.pop(name, None)
    if driver:
        pattern, more = DRIVERS[driver]
        files = glob.glob(pattern.format(machine=machine or os.uname().machine))
        if not files:
            return None
        env.update(more)
        env["VK_DRIVER_FILES"] = env["VK_ICD_FILENAMES"] = files[0]
    return env


def environment(driver, args):
    env = driver_environment(driver, args.foreign)
    if env is None:
        return None
    if args.wrapper:
        env["VKMOE_TEST_WRAPPER"] = args.wrapper  # for the program that tests run
    if args.sanitized:
        env["ASAN_OPTIONS"] = "detect_leaks=1:allocator_may_return_null=1"
        env["UBSAN_OPTIONS"] = "print_stacktrace=1:halt_on_error=1"
        env["LSAN_OPTIONS"] = "suppressions=%s:print_suppressions=0" % (ROOT / "tests" / "lsan.supp")
    return env


def run(program, driver, args, skips):
    """One program on one driver: (passed, failed, skipped), the line to print, its output."""
    name = program.name
    env = environment(driver, args)
    label = name + (" on " + driver if driver else "")
    if env is None:
        return (0, 1, 0), "FAIL  %-44s no driver %s is installed" % (label, DRIVERS[driver][0]), ""
    start = time.monotonic()
    command = args.wrapper.split() + [str(program)]
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=args.timeout)
        text, code = done.stdout.decode("utf-8", "replace"), done.returncode
    except subprocess.TimeoutExpired as e:
        text = (e.stdout or b"").decode("utf-8", "replace") + "\ntimed out after %d s\n" % args.timeout
        code = -1
    seconds = time.monotonic() - start
    found, announced = count(text)
    passed, failed, skipped = (len(found[k]) for k in ("OK", "FAILED", "SKIPPED"))
    strict = os.environ.get("CI") == "true" or (ROOT.parent / "shared").is_dir()
    surprising = [t for t in found["SKIPPED"] if strict and not any(
        fnmatch.fnmatch(driver or "-", d) and name == p and t == s for d, p, s in skips)]
    failed += len(surprising)
    skipped -= len(surprising)
    seen = passed + failed + skipped
    if announced > seen:  # it ended inside a test
        failed += announced - seen
        text += "\n%d of %d tests did not report\n" % (announced - seen, announced)
    if code != 0 and not failed or not announced:
        failed += 1
        text += "\nexit status %d\n" % code
    for test in surprising:
        text += "\nunexpected skip: %s\n" % test
    (args.logs / (label.replace(" ", "-") + ".log")).write_text(text)
    line = "%-5s %-44s %4d passed" % ("FAIL" if failed else "ok", label, passed)
    line += ", %d failed" % failed if failed else ""
    line += ", %d skipped" % skipped if skipped else ""
    return (passed, failed, skipped), "%s  %.1f s" % (line, seconds), text


def plan(args):
    jobs = []
    for program in sorted((ROOT / args.build / "tests").glob("test_*")):
        usable = program.is_file() and os.access(program, os.X_OK)
        left_out = any(fnmatch.fnmatch(program.name, skip) for skip in args.leave_out.split(","))
        if not usable or left_out or not fnmatch.fnmatch(program.name, args.only):
            continue
        row = next(r for r in MATRIX if fnmatch.fnmatch(program.name, r[0]))
        drivers = row[2] if args.sanitized else row[1]
        if args.drivers:
            drivers = [d for d in drivers if not d] or args.drivers.split(",")
        if args.foreign:  # SwiftShader comes for the native machine only
            drivers = [d for d in drivers if d in ("", "lavapipe")]
        jobs += [(program, d) for d in drivers]
    return jobs


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", default="build", help="build folder")
    p.add_argument("--only", default="*", help="pattern of program names")
    p.add_argument("--leave-out", default="", help="patterns of program names, with commas")
    p.add_argument("--drivers", default="", help="instead of the matrix: " + ", ".join(DRIVERS))
    p.add_argument("--sanitized", action="store_true", help="a build with ASan and UBSan")
    p.add_argument("--wrapper", default="", help="put before each command, as qemu-aarch64")
    p.add_argument("--foreign", help="machine whose drivers are meant, as aarch64")
    p.add_argument("--jobs", type=int, default=2)
    p.add_argument("--timeout", type=int, default=900, help="seconds for each program")
    p.add_argument("--counts", help="file to which a line 'passed failed skipped' is appended")
    args = p.parse_args()
    args.logs = ROOT / args.build / "tests" / "logs"
    args.logs.mkdir(parents=True, exist_ok=True)
    skips = read_skips()
    total = [0, 0, 0]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for sums, line, text in pool.map(lambda j: run(*j, args, skips), plan(args)):
            print(line, flush=True)
            if sums[1]:
                print("\n".join("      " + t for t in text.splitlines()[-30:]), flush=True)
            total = [a + b for a, b in zip(total, sums)]
    if not sum(total):
        print("FAIL  no test program in %s" % args.build)
        total[1] = 1
    if args.counts:
        with open(args.counts, "a", encoding="ascii") as f:
            f.write("%d %d %d\n" % tuple(total))
    else:
        print("%d passed, %d failed, %d skipped" % tuple(total))
    return 1 if total[1] else 0


if __name__ == "__main__":
    sys.exit(main())
