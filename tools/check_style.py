#!/usr/bin/env python3
"""The rules of the house that a machine can see; prints the longest files and functions. 1: a breach.

Sizes (900 lines a file, 100 a function, 250 a shader, 110 columns), layers by #include, banned functions,
platform #ifdefs, kernels without shader or test case, machine paths.
"""
import ast
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

FILE_LINES, SHADER_LINES, FUNCTION_LINES, COLUMNS = 900, 250, 100, 110

# Folder of src/: folders whose headers it may include.
LAYERS = {
    "core": {"core"},
    "model": {"core", "model"},
    "gpu": {"core", "gpu", "shared"},
    "run": {"core", "model", "gpu", "run", "shared"},
    "experts": {"core", "model", "gpu", "run", "experts", "shared"},
    "api": {"core", "model", "gpu", "run", "experts", "api", "shared"},
    "bench": {"core", "model", "gpu", "run", "bench", "shared"},
    "cli": {"core", "model", "experts", "bench", "cli"},
}

BANNED = re.compile(r"\b(atoi|strcpy|strcat|sprintf|strtok|getenv|exit|abort|printf)\s*\(")
HEAP = re.compile(r"(?<![\w.>])(malloc|calloc|realloc|free)\s*\(")
PLATFORM_FILES = ("src/core/os.c", "src/core/thread.c")
PLATFORM = re.compile(r"^\s*#\s*(?:if|ifdef|ifndef|elif)\b.*"
                      r"(_WIN32|_MSC_VER|__linux__|__APPLE__|__unix__|__MINGW)")
INCLUDE = re.compile(r'^\s*#\s*include\s*["<]([^">]+)[">]')
MACHINE_PATH = re.compile(r"(^|[^A-Za-z0-9_.$}])/(home|root|tmp|work)/[a-z]")

# (file, word): where a rule gives way, and why.
EXCEPTIONS = {
    ("src/core/os.c", "getenv"): "finds the program's cache folder",
    ("src/core/os.c", "free"): "gives back what the C library allocated",
    ("src/core/status.h", "__MINGW"): "names the dialect of printf formats",
    ("src/core/alloc.c", "malloc"): "is the allocator",
    ("src/core/alloc.c", "calloc"): "is the allocator",
    ("src/core/alloc.c", "realloc"): "is the allocator",
    ("src/core/alloc.c", "free"): "is the allocator",
}

CODE = (".c", ".h", ".cpp", ".comp", ".glsl")
TEXT = CODE + (".py", ".sh", ".cmake", ".md", ".txt", ".json", "")

errors = []


def error(path, line, text):
    errors.append("%s:%d: %s" % (path, line, text))


def tracked():
    """Files of the project: tracked ones and new ones that are not ignored."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    out = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return [p for p in sorted(set(out.stdout.decode().split("\n"))) if p and (ROOT / p).is_file()]


def bare(text):
    """C or GLSL without comments and the insides of strings; lines keep their numbers."""
    token = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)

    def blank(m):
        s = m.group(0)
        return '""' if s[0] == '"' else "' '" if s[0] == "'" else re.sub(r"[^\n]", " ", s)

    return token.sub(blank, text)


def functions(lines):
    """(name, first line, length) of each function: its brace is in column 0 or ends an unindented line."""
    found = []
    start = head = None
    for i, line in enumerate(lines):
        if start is None:
            if line and not line[0].isspace() and "(" in line and not line.startswith(("#", "}")):
                head = i
            opened = line.rstrip() == "{" or (line[:1].isalpha() and re.search(r"\)\s*\{\s*$", line))
            if opened and head is not None and i - head < 8:
                start = head
        elif line.startswith("}"):
            name = re.findall(r"(\w+)\s*\(", lines[start])
            found.append((name[0] if name else "?", start + 1, i - start + 1))
            start = head = None
    return found


def check_includes(path, lines):
    parts = path.split("/")
    folder = parts[1] if parts[0] == "src" else None
    for number, line in enumerate(lines, 1):
        m = INCLUDE.match(line)
        if not m:
            continue
        name = m.group(1)
        vulkan = name.startswith(("vulkan/", "vk_")) or name == "volk.h"
        if vulkan and not path.startswith(("src/gpu/", "tests/")):
            error(path, number, "only src/gpu includes Vulkan headers")
        first = name.split("/")[0] if "/" in name else None
        if folder in LAYERS and first in set(LAYERS) | {"shared"} and first not in LAYERS[folder]:
            error(path, number, "layer %s may not include %s" % (folder, name))


def check_calls(path, lines):
    patterns = [HEAP] if path.startswith("src/cli/") else [BANNED, HEAP]
    for number, line in enumerate(lines, 1):
        for pattern in patterns:
            for m in pattern.finditer(line):
                if (path, m.group(1)) not in EXCEPTIONS:
                    error(path, number, "%s() is not used here" % m.group(1))
        m = PLATFORM.match(line)
        if m and (path, m.group(1)) not in EXCEPTIONS and path not in PLATFORM_FILES:
            error(path, number, "platforms are told apart in %s only" % " and ".join(PLATFORM_FILES))


def check_kernels(files):
    """Every kernel of the list has a shader, or is a variant of one, and a test case; shaders are listed."""
    header = ROOT / "src/gpu/kernels.h"
    if not header.exists():
        return
    kernels = re.findall(r"\bX\((\w+), *\w+, *\d+", header.read_text())
    shaders = {}
    for path in files:
        if re.fullmatch(r"shaders/\w+\.comp", path):
            base = pathlib.PurePath(path).stem
            first = (ROOT / path).read_text().split("\n", 1)[0]
            variants = re.findall(r"(\w+)=", first) if first.startswith("// variants:") else []
            shaders[base] = [base] + [base + "_" + v for v in variants]
    cases = [p for p in files if re.fullmatch(r"tests/test_kernels?\w*\.c", p)]
    tests = " ".join((ROOT / p).read_text() for p in cases)
    known = {name: base for base, names in shaders.items() for name in names}
    for name in kernels:
        if shaders and name not in known:
            error("src/gpu/kernels.h", 1, "kernel %s has no shader" % name)
        if tests and not re.search(r"(\b|_)%s\b" % re.escape(known.get(name, name)), tests):
            error("src/gpu/kernels.h", 1, "kernel %s has no test case" % name)
    for base, names in shaders.items():
        if not set(names) & set(kernels):
            error("shaders/%s.comp" % base, 1, "is not in the list of kernels")


def league(title, rows):
    print(title)
    for length, name in sorted(rows, reverse=True)[:5]:
        print("  %5d  %s" % (length, name))


def main():
    files = tracked()
    sizes, lengths = [], []
    for path in files:
        suffix = pathlib.PurePath(path).suffix
        if suffix not in TEXT:
            continue
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path.startswith("tests/golden/"):  # texts and figures, not ours to shape
            continue
        lines = text.split("\n")
        for number, line in enumerate(lines, 1):
            if MACHINE_PATH.search(line) and not path.startswith("tests/"):
                error(path, number, "a path of some machine")
        if suffix in CODE + (".py", ".sh", ".cmake"):
            for number, line in enumerate(lines, 1):
                if len(re.sub(r"\s*\\$", "", line)) > COLUMNS and not line.startswith("// variants:"):
                    error(path, number, "%d columns" % len(line))
        if suffix == ".py":
            ast.parse(text, path)
        if suffix not in CODE:
            continue
        shader = path.startswith("shaders/")
        sizes.append((len(lines), path))
        if len(lines) > (SHADER_LINES if shader else FILE_LINES) + 1:
            error(path, len(lines), "%d lines: split it by what it owns" % len(lines))
        plain = bare(text).split("\n")
        for name, first, length in functions(plain):
            lengths.append((length, "%s (%s:%d)" % (name, path, first)))
            if length > FUNCTION_LINES:
                error(path, first, "%s has %d lines" % (name, length))
        check_includes(path, lines)
        if path.startswith("src/"):
            check_calls(path, plain)
    check_kernels(files)
    league("longest files", sizes)
    league("longest functions", lengths)
    print("\n".join(errors) if errors else "style: no breach in %d files" % len(files))
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
