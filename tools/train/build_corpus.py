#!/usr/bin/python3
"""Build the eight-domain corpus from Debian packages (run get_sources.sh first).

    /usr/bin/python3 build_corpus.py

Every source is cleaned to plain text, cut at paragraph (or definition/verse) boundaries into
documents of 500..2000 bytes, exact duplicates are dropped, documents are shuffled with a fixed
seed, and whole documents are held out:  test, validation, calibration; the rest (at most
TRAIN_CAP bytes per domain) is training text.
"""
import glob
import gzip
import hashlib
import html.parser
import json
import os
import random
import re

import paths

MIN_DOC, MAX_DOC = 500, 2000
HELD = [("test", 66_000), ("validation", 66_000), ("calibration", 16_000)]
TRAIN_CAP = 4_200_000
SEP = "\n<|endoftext|>\n"


def pack(blocks, rng, glue="\n\n"):
    """Join consecutive text blocks into documents of MIN_DOC..MAX_DOC bytes."""
    docs, cur, size, want = [], [], 0, rng.randint(600, 1700)

    def flush():
        nonlocal cur, size, want
        text = glue.join(cur).strip("\n").rstrip()
        if MIN_DOC <= len(text.encode()) <= MAX_DOC:
            docs.append(text)
        cur, size, want = [], 0, rng.randint(600, 1700)

    for b in blocks:
        n = len(b.encode()) + len(glue)
        if n > MAX_DOC:  # one oversized block: cut it at line/sentence ends
            flush()
            piece = ""
            for part in re.split(r"(?<=[.;\n])(?=\s)", b):
                if len((piece + part).encode()) > want and piece:
                    cur = [piece]
                    flush()
                    piece = ""
                piece += part
            cur, size = [piece], len(piece.encode())
            continue
        if size + n > MAX_DOC:
            flush()
        cur.append(b)
        size += n
        if size >= want:
            flush()
    flush()
    return docs


def paragraphs(text):
    return [p.rstrip() for p in re.split(r"\n\s*\n", text) if p.strip()]


def numeric(text, limit):
    return sum(c.isdigit() for c in text) > limit * len(text)


def src_c(work, rng):
    docs = []
    skip = (
        "localedata",
        "iconvdata",
        "benchtests",
        "ieee754",
        "auto-libm",
        "/po/",
        "libm-test",
        "tst-strfmon",
    )
    for f in sorted(glob.glob(work + "/debs/glibc/**/*.[c]", recursive=True)):
        if any(s in f for s in skip):
            continue
        t = open(f, encoding="utf-8", errors="ignore").read()
        t = re.sub(r"\A\s*(/\*.*?\*/\s*)+", "", t, flags=re.S)  # licence header
        if len(t) > 700:
            docs += [d for d in pack(paragraphs(t), rng) if not numeric(d, 0.08)]
    return docs


def src_python(work, rng):
    docs = []
    for f in sorted(glob.glob("/usr/lib/python3.11/**/*.py", recursive=True)):
        if re.search(r"/(test|tests|encodings|pydoc_data|lib2to3|__phello__|dist-packages|ensurepip)/", f):
            continue
        t = open(f, encoding="utf-8", errors="ignore").read()
        t = re.sub(r"\A(#.*\n|\s*\n)+", "", t)
        docs += [d for d in pack(paragraphs(t), rng) if not numeric(d, 0.12)]
    return docs


def src_scripture(work, rng):
    docs, chapter, verses = [], None, []
    for line in open(work + "/kjv.txt", encoding="latin-1"):
        m = re.match(r"(\S+?):(\d+) (.*)", line.strip())
        if not m:
            continue
        if m.group(1) != chapter:
            docs += pack(verses, rng, "\n")
            chapter, verses = m.group(1), []
        verses.append(line.strip())
    return docs + pack(verses, rng, "\n")


class Text(html.parser.HTMLParser):
    """Visible text of an HTML page, block elements separated by blank lines."""

    BLOCK = {"p", "h1", "h2", "h3", "h4", "li", "blockquote", "dt", "dd", "div", "pre", "tr"}
    SKIP = {"script", "style", "title", "head"}

    def __init__(self):
        super().__init__()
        self.out, self.skip = [], 0

    def handle_starttag(self, tag, attrs):
        self.skip += tag in self.SKIP
        if tag in self.BLOCK:
            self.out.append("\n\n")

    def handle_endtag(self, tag):
        self.skip -= tag in self.SKIP
        if tag in self.BLOCK:
            self.out.append("\n\n")

    def handle_data(self, data):
        if not self.skip:
            self.out.append(re.sub(r"\s+", " ", data))


def from_html(path):
    p = Text()
    p.feed(open(path, encoding="utf-8", errors="ignore").read())
    return [re.sub(r"\s+", " ", b).strip() for b in re.split(r"\n\n+", "".join(p.out)) if b.strip()]


def from_troff(t):
    """A rough plain-text rendering of man(7) source: good enough for prose."""
    out = []
    for line in t.split("\n"):
        if re.match(r"[.'](\\\"|TH|ie|el|if|de|ds|nr|so|tr|hy|ad|nh|ss|ta|TS|TE|UE|ME)", line) or line in (
            "..",
        ):
            continue
        m = re.match(
            r"\.(SH|SS|TP|PP|P|LP|IP|HP|RS|RE|br|sp|nf|fi|EX|EE|TQ|Pp|It|Bl|El|Sh|UR|MT)\b ?(.*)", line
        )
        if m:
            arg = m.group(2).replace('"', "").strip()
            if m.group(1) in ("SH", "SS", "Sh"):
                out.append("\n\n" + arg)
            elif m.group(1) in ("PP", "P", "LP", "IP", "TP", "HP", "TQ", "Pp"):
                out.append("\n\n" + (arg if m.group(1) == "IP" and arg.startswith("\\(bu") else ""))
            continue
        m = re.match(r"\.([A-Z][A-Za-z]?) (.*)", line)
        if m:
            args = re.findall(r'"([^"]*)"|(\S+)', m.group(2))
            args = [a or b for a, b in args]
            line = ("" if m.group(1) in ("BR", "RB", "IR", "RI", "BI", "IB") else " ").join(args)
        elif line.startswith("."):
            continue
        out.append(line)
    t = "\n".join(out)
    t = re.sub(r"\\f\([A-Z]{2}|\\f\[[A-Z]*\]|\\s[-+]?\d|\\[,/&|^:%]|\\f.", "", t)
    for a, b in (
        ("\\-", "-"),
        ("\\(bu", "-"),
        ("\\(aq", "'"),
        ("\\(dq", '"'),
        ("\\e", "\\"),
        ("\\~", " "),
        ("\\ ", " "),
        ("\\(co", "©"),
        ("\\(em", "—"),
        ("\\(en", "–"),
        ("\\(cq", "'"),
        ("\\(oq", "'"),
        ("\\(lq", '"'),
        ("\\(rq", '"'),
    ):
        t = t.replace(a, b)
    t = re.sub(r"\\[(*\[]\S{1,2}\]?", "", t)
    return [re.sub(r"\s*\n\s*", " ", p).strip() for p in re.split(r"\n\s*\n", t) if p.strip()]


def src_german(work, rng):
    docs = []
    for f in sorted(glob.glob("/usr/share/doc/debian-handbook/html/de-DE/*.html")):
        docs += pack([b for b in from_html(f) if len(b) > 30], rng)
    for f in sorted(glob.glob("/usr/share/man/de/man*/*.gz")):
        if os.path.islink(f):
            continue
        t = gzip.open(f, "rt", encoding="utf-8", errors="ignore").read()
        t = t.split(".SH ÜBERSETZUNG")[0].split(".SH COPYRIGHT")[0]
        docs += [
            d
            for d in pack([b for b in from_troff(t) if len(b) > 3], rng)
            if len(re.findall(r"\b(der|die|das|und|ist|nicht|wird|ein|eine|mit|für|zu)\b", d)) > len(d) / 120
        ]
    return docs


def src_dictionary(work, rng):
    t = gzip.open("/usr/share/dictd/gcide.dict.dz", "rt", encoding="utf-8", errors="ignore").read()
    t = re.sub(
        r"\n\s*\[(1913 Webster|PJC|WordNet 1\.5|Webster 1913 Suppl\.|[^\]\n]{0,60}PJC[^\]\n]{0,20})\]", "", t
    )
    entries = [e.strip("\n") for e in re.split(r"\n(?=\S)", t) if len(e) > 60]
    # a random subset of runs of neighbouring entries, to stay near the size of the other domains
    runs = [entries[i : i + 40] for i in range(200, len(entries) - 40, 40)]
    rng.shuffle(runs)
    docs = []
    for r in runs[: len(runs) // 5]:
        docs += pack([re.sub(r"\n\s*\n", "\n", e) for e in r], rng, "\n")
    return docs


def src_politics(work, rng):
    docs = []
    for f in sorted(glob.glob("/usr/share/doc/anarchism/html/*.html")):
        if re.search(r"links|translations|biblio|contact|pdf|new\.html", f):
            continue
        docs += pack([b for b in from_html(f) if len(b) > 20], rng)
    return docs


def src_computing(work, rng):
    t = gzip.open("/usr/share/dictd/foldoc.dict.dz", "rt", encoding="utf-8", errors="ignore").read()
    # the dictd formatter broke lines inside {cross references}: join those, keep the layout else
    t = re.sub(r"\n(?=\{)", " ", t)
    entries = [e.strip("\n") for e in re.split(r"\n(?=\S)", t) if len(e) > 60][20:]
    entries = [re.sub(r"[ \t]+", " ", re.sub(r"\n\s*\n", "\n", e)) for e in entries]
    return pack(entries, rng, "\n")


def src_proofs(work, rng):
    docs = []
    for f in sorted(glob.glob(work + "/debs/x-libcoq-stdlib/**/*.v", recursive=True)):
        t = open(f, encoding="utf-8", errors="ignore").read()
        t = re.sub(r"\A\s*(\(\*.*?\*\)\s*)+", "", t, flags=re.S)
        docs += [d for d in pack(paragraphs(t), rng) if not numeric(d, 0.15)]
    return docs


DOMAINS = {
    "c": (
        src_c,
        "C source of the GNU C library (licence headers removed)",
        ["glibc-source"],
        "LGPL-2.1+ (some files GPL-2+ or permissive)",
    ),
    "python": (src_python, "Python 3.11 standard library modules", ["libpython3.11-stdlib"], "PSF-2"),
    "scripture": (
        src_scripture,
        "King James Bible, one verse a line",
        ["bible-kjv-text", "bible-kjv"],
        "public domain text (package GPL-2+)",
    ),
    "german": (
        src_german,
        "German man pages and the German Debian handbook",
        ["manpages-de", "debian-handbook"],
        "GPL-3+ and others as listed in the package (man pages); GPL-2+ or CC-BY-SA-3.0 (handbook)",
    ),
    "dictionary": (
        src_dictionary,
        "entries of the GNU Collaborative International Dictionary of English",
        ["dict-gcide"],
        "GPL-2+",
    ),
    "politics": (src_politics, "essays of An Anarchist FAQ", ["anarchism"], "GPL-2"),
    "computing": (
        src_computing,
        "entries of the Free On-line Dictionary of Computing",
        ["dict-foldoc"],
        "GFDL-1.1+, no invariant sections",
    ),
    "proofs": (
        src_proofs,
        "Coq standard library (definitions and proof scripts)",
        ["libcoq-stdlib"],
        "LGPL-2.1",
    ),
}


def main():
    os.makedirs(paths.DATA, exist_ok=True)
    versions = dict(l.split() for l in open(paths.WORK + "/versions.txt"))
    info = {
        "document_separator": SEP,
        "encoding": "utf-8",
        "note": "split a file at document_separator to get its documents; "
        "a document has no leading or trailing newline",
        "domains": {},
    }
    for name, (fn, what, pkgs, lic) in DOMAINS.items():
        rng = random.Random("emo-nano " + name)
        seen, docs = set(), []
        for d in fn(paths.WORK, rng):
            h = hashlib.sha1(re.sub(r"\W+", " ", d).lower().encode()).digest()
            if h not in seen and "<|" not in d:
                seen.add(h)
                docs.append(d)
        rng.shuffle(docs)
        entry = {
            "description": what,
            "packages": {p: versions.get(p, "") for p in pkgs},
            "licence": lic,
            "splits": {},
        }
        at = 0
        for split, size in HELD + [("train", TRAIN_CAP)]:
            part, n = [], 0
            while at < len(docs) and n < size:
                part.append(docs[at])
                n += len(docs[at].encode())
                at += 1
            where = paths.WORK if split in ("train", "test") else paths.DATA
            body = SEP.join(part)
            with open(f"{where}/{name}.{split}.txt", "w", encoding="utf-8", newline="") as f:
                f.write(body)
            if split != "test":
                entry["splits"][split] = {
                    "documents": len(part),
                    "bytes": n,
                    "sha256": hashlib.sha256(body.encode()).hexdigest(),
                }
        info["domains"][name] = entry
        print(
            name,
            {k: (v["documents"], v["bytes"]) for k, v in entry["splits"].items()},
            "left over:",
            len(docs) - at,
            flush=True,
        )
    json.dump(info, open(paths.DATA + "/domains.json", "w"), indent=1, ensure_ascii=False)


if __name__ == "__main__":
    main()
