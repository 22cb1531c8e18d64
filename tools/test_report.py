#!/usr/bin/env python3
"""test_report.py BUILD: makes a report with `vkmoe experts report` and goes through it in headless Chromium,
as a person with a mouse and one with a keyboard would, comparing what is shown with the figures in the page.
Then the page of `vkmoe bench compare`, of results that are made up here.

test_report.py BUILD --picture FILE.png: a picture of the first tab instead, of the two bundled texts."""
import base64
import hashlib
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from browser import Browser, BrowserError
from run_tests import driver_environment

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "golden" / "data"
TABS = ["experts", "spread", "overlap", "text", "cost"]
NASTY_NAME = "<b>&'\u202etxt.\u00e4.txt"
NASTY = (b"</script><script>window.taken = 1</script> <!-- <img src=x onerror=window.taken=1> & &lt; "
         b"\xff\xc3( \xe2\x80\xaetnemetats\xe2\x80\xac \x00\x07\x1b[31m \xf0\x9f\x90\x9a "
         b"\xe2\x80\xa8 'quoted' "
         b"\"text\" \\u0041 ]]>\n"
         b"\n<|endoftext|>\n\tS\xc3\xa4tze mit Umlauten, \xd7\xa9\xd7\x9c\xd7\x95\xd7\x9d")
failures = []


def expect(good, what):
    if not good:
        failures.append(what)
        print("FAIL  " + what, flush=True)


def same(got, want, what):
    expect(got == want, "%s: %r, not %r" % (what, got, want))


def near(got, want, limit, what):
    expect(abs(got - want) <= limit, "%s: %r, not %r" % (what, got, want))


# ---- the file


def make(build, out, texts, tokens):
    env = driver_environment("lavapipe", None)
    if env is None:
        sys.exit("lavapipe is not installed")
    env["XDG_CACHE_HOME"] = str(build / "test-cache" / "home")
    os.makedirs(env["XDG_CACHE_HOME"], exist_ok=True)
    command = [str(build / "vkmoe"), "experts", "report", "-o", str(out), "--tokens", str(tokens), "-f"]
    done = subprocess.run(command + [str(t) for t in texts], env=env, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit("experts report: " + done.stderr.decode("utf-8", "replace"))
    return done.stdout.decode("utf-8", "replace")


def content_hash(text):
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def check_file(page):
    """The page as bytes: what may run, and figures that follow from others. Returns its data."""
    html = page.decode("utf-8")
    same(html.count("</script>"), 2, "ends of scripts")
    same(len(re.findall(r"<script", html)), 2, "beginnings of scripts")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html).group(1)
    style = re.search(r"<style>(.*?)</style>", html, re.S).group(1)
    data, script = re.findall(r"<script[^>]*>(.*?)</script>", html, re.S)
    want = "default-src 'none'; style-src '%s'; script-src '%s'; base-uri 'none'; form-action 'none'"
    same(policy, want % (content_hash(style), content_hash(script)), "policy")
    expect(not re.search(r'(src|href)="(?!#)', html.split("<main>")[0]), "the head asks for something")
    bare = "[<>&\x00-\x09\x0b-\x1f\u200e\u200f\u2028-\u202e\u2066-\u2069]"
    expect(not re.search(bare, data), "unescaped data")
    d = json.loads(data)
    same(d["texts"][1], NASTY_NAME, "name of the second text")
    m = d["models"][0]
    for text, name in zip(m["texts"], d["texts"]):
        for layer, mean in enumerate(text["mean"]):
            where = "%s, layer %d: " % (name, layer)
            best = sorted(range(m["experts"]), key=lambda e: (-mean[e], e))
            near(sum(mean), 1, 1e-4, where + "sum of means")
            near(text["entropy"][layer], -sum(p * math.log2(p) for p in mean if p), 1e-4, where + "entropy")
            same(text["above"][layer], sum(p > 1 / m["experts"] for p in mean), where + "above even share")
            same(text["kept"][layer], best[:m["keep"] - m["shared"]], where + "kept")
            for top, mass in zip(m["top"], text["mass"][layer]):
                near(mass, sum(mean[e] for e in best[:top]), 1e-4, where + "mass")
        expect(text["scored"] > 0 and text["nll"] > 0 and text["nll_kept"] > 0, name + ": scored")
    a, b = (t["mean"][2] for t in m["texts"][:2])
    dot = sum(x * y for x, y in zip(a, b))
    near(m["cosine"][2][0][1], dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b)), 1e-5, "cosine")
    a, b = (set(t["kept"][2]) for t in m["texts"][:2])
    near(m["jaccard"][2][1][0], len(a & b) / len(a | b), 1e-5, "overlap")
    for text, source in zip(m["texts"][1:2], [NASTY]):
        want = "".join(p.decode("utf-8", "replace") for p in source.split(b"\n<|endoftext|>\n"))
        got, want = (re.sub("\ufffd+", "\ufffd", s) for s in ("".join(text["shown"]), want))
        same(got, want, "text as shown")
    return d


# ---- the page


def tip(b):
    return b.js("document.getElementById('tip').hidden ? null : document.getElementById('tip').textContent")


def cells(b, table):
    """What the cells of a table's body say, row by row."""
    return b.js("[...document.querySelectorAll('%s tbody tr')].map(r => [...r.querySelectorAll('td')]"
                ".map(c => c.textContent))" % table)


def rounded(v):
    return "%d %%" % math.floor(100 * v + .5)


def percent(v, digits):
    return "%.*f %%" % (digits, 100 * v)


def leaders(m, text, token, layer):
    raw = base64.b64decode(text["lead"])
    at = 9 * (token * m["layers"] + layer)
    return [(raw[at + k] + 256 * raw[at + k + 1], raw[at + k + 2] / 200) for k in (0, 3, 6)]


def choose(b, selector, presses):
    """Moves a select by the keyboard."""
    b.js("document.querySelector('%s').focus()" % selector)
    b.key("ArrowDown" if presses > 0 else "ArrowUp", abs(presses))


def go_tabs(b):
    for key, want in (("ArrowRight", "spread"), ("End", "cost"), ("ArrowRight", "experts"),
                      ("ArrowLeft", "cost"), ("Home", "experts")):
        if want == "spread":
            b.click("#tab-experts")
        b.key(key)
        same(b.js("document.activeElement.id"), "tab-" + want, key + " moves the focus")
        shown = b.js("[...document.querySelectorAll('[role=tabpanel]')].filter(p => !p.hidden)"
                     ".map(p => p.id)")
        same(shown, ["panel-" + want], key + " shows one panel")
        same(b.js("[...document.querySelectorAll('[role=tab][aria-selected=true]')].map(t => t.id)"),
             ["tab-" + want], key + " selects one tab")
    b.key("Tab")
    same(b.js("document.activeElement.id"), "panel-experts", "Tab goes from the tabs into the panel")
    outline = b.js("getComputedStyle(document.activeElement).outlineStyle + ' ' +"
                   "parseFloat(getComputedStyle(document.activeElement).outlineWidth)").split()
    expect(outline[0] == "solid" and float(outline[1]) >= 2, "the focus is seen: %s" % outline)


def cell_text(m, text, layer, expert):
    p = text["mean"][layer][expert]
    kept = "kept" if expert in text["kept"][layer] else "dropped"
    return "layer %d, expert %d: %s\n%.2f × its even share, %s at 12.5 %%" % (
        layer, expert, percent(p, 2), p * m["counts"][layer], kept)


def try_experts(b, d):
    m = d["models"][0]
    b.click("#tab-experts")
    same(b.js("document.querySelectorAll('#maps canvas').length"), len(d["texts"]), "a map for each text")
    canvas = "#maps > figure:nth-of-type(2) canvas"
    _, _, width, height = b.box(canvas)
    row, cell = height / m["layers"], (width - 26) / m["experts"]
    for layer, expert in ((0, 0), (3, 17), (m["layers"] - 1, m["experts"] - 1)):
        b.hover(canvas, 26 + (expert + .5) * cell, (layer + .5) * row)
        same(tip(b), cell_text(m, d["models"][0]["texts"][1], layer, expert), "hover over the map")
    b.move(1, 1)
    same(tip(b), None, "the note goes away")
    choose(b, "#order", 1)
    same(b.js("document.getElementById('order').value"), "0", "order by the keyboard")
    best = sorted(range(m["experts"]), key=lambda e: (-m["texts"][0]["mean"][2][e], e))
    b.hover(canvas, 26 + .5 * cell, 2.5 * row)
    same(tip(b), cell_text(m, m["texts"][1], 2, best[0]), "hover over a map in another text's order")
    choose(b, "#order", -1)
    b.move(1, 1)
    b.js("document.querySelector('%s').focus()" % canvas)
    b.key("ArrowRight", 4)
    b.key("ArrowDown", 2)
    same(tip(b), cell_text(m, m["texts"][1], 2, 4), "arrows walk over the map")
    b.key("Escape")
    same(tip(b), None, "Escape hides the note")
    pixel = "document.querySelector('%s').toDataURL()" % canvas
    before = b.js(pixel)
    b.click("#only")
    expect(b.js(pixel) != before, "what is dropped disappears")
    b.js("document.getElementById('only').focus()")
    b.key(" ")
    same(b.js(pixel), before, "and comes back")
    b.click("#theme")
    expect(b.js(pixel) != before, "the map takes the other theme")
    b.click("#theme")
    same(b.js(pixel), before, "and the first one again")


def try_spread(b, d):
    m = d["models"][0]
    b.click("#tab-spread")

    def shown():
        return cells(b, "#spread .mass")

    mean = [[percent(sum(l[k] for l in t["mass"]) / m["layers"], 1) for k in range(len(m["top"]))]
            for t in m["texts"]]
    same(shown(), mean, "mass, all layers")
    choose(b, "#spread-layer", 3)
    same(shown(), [[percent(x, 1) for x in t["mass"][2]] for t in m["texts"]], "mass in layer 2")
    choose(b, "#spread-layer", -3)
    svg = "#spread figure:nth-of-type(1) svg"
    b.js("document.querySelectorAll('#spread svg[tabindex]')[1].focus()")
    b.key("ArrowRight", 3)
    lines = tip(b).split("\n")
    same(lines[0], "layer 3, bits", "arrows walk along the entropy")
    want = ["%.3f" % t["entropy"][3] for t in m["texts"]]
    same([l.rsplit(" ", 1)[1] for l in lines[1:]], want, "entropy in the note")
    b.js("document.querySelectorAll('#spread svg[tabindex]')[2].focus()")
    b.key("End")
    lines = tip(b).split("\n")
    want = [str(t["above"][-1]) for t in m["texts"]]
    same([l.rsplit(" ", 1)[1] for l in lines[1:]], want, "experts above their share in the note")
    _, _, width, height = b.box(svg)
    b.hover(svg, 46 + 8 / m["experts"] * (width - 58), height / 2)
    lines = tip(b).split("\n")
    same(lines[0], "the best 8 experts hold", "hover over the curve")
    same([l.rsplit(": ", 1)[1] for l in lines[1:]], [r[0] for r in mean], "mass in the note")


def try_overlap(b, d):
    m, n = d["models"][0], len(d["texts"])
    b.click("#tab-overlap")

    def shown(k):
        return sum(cells(b, "#overlap .pair > div:nth-child(%d) .matrix" % (k + 1)), [])

    for presses, of in ((0, lambda t, i, j: sum(l[i][j] for l in t) / m["layers"]),
                        (5, lambda t, i, j: t[4][i][j])):
        choose(b, "#overlap-layer", presses) if presses else None
        for k, key in enumerate(("jaccard", "cosine")):
            want = [of(m[key], i, j) for i in range(n) for j in range(n)]
            for got, w in zip(shown(k), want):
                near(float(got), w, .00501, key)
            same(len(shown(k)), n * n, key + " cells")
    choose(b, "#overlap-layer", -5)
    b.js("document.querySelector('#overlap svg[tabindex]').focus()")
    b.key("ArrowRight")
    pairs = [m["cosine"][1][i][j] for i in range(n) for j in range(i + 1, n)]
    shown = float(tip(b).rsplit(" ", 1)[1])
    near(shown, sum(pairs) / len(pairs), .00051, "mean cosine in the note")


def try_text(b, d):
    m = d["models"][0]
    b.click("#tab-text")
    for which in range(len(d["texts"])):
        text = m["texts"][which]
        same(b.js("document.querySelectorAll('.tokens i').length"), len(text["shown"]), "tokens shown")
        got = b.js("document.querySelector('.tokens').textContent")
        want = "".join(("\n\n" if k and k in text["starts"] else "") + s for k, s in enumerate(text["shown"]))
        # Line ends have a mark of their own, and what is not seen is named.
        strip = re.compile("[\\s\\u21b5]|\\u27e8U\\+[0-9A-F]+\\u27e9|"
                           "[\\x00-\\x1f\\u200b-\\u200f\\u2028-\\u202e]")
        same(strip.sub("", got), strip.sub("", want), "text of " + d["texts"][which])
        layer = int(b.js("document.getElementById('text-layer').value"))
        token = next(k for k, s in enumerate(text["shown"]) if k > 4 and len(s.strip()) > 1)
        b.hover(".tokens i[data-k='%d']" % token)
        note = ["token %d, layer %d" % (token, layer)]
        note += ["expert %d: %s" % (e, rounded(p)) for e, p in leaders(m, text, token, layer)]
        same(tip(b), "\n".join(note), "hover over a token")
        best = {}
        for k in range(len(text["shown"])):
            e = leaders(m, text, k, layer)[0][0]
            best[e] = best.get(e, 0) + 1
        first = sorted(best, key=lambda e: (-best[e], e))[0]
        same(b.js("document.querySelector('.legend button').textContent"),
             "expert %d · %s" % (first, rounded(best[first] / len(text["shown"]))), "legend")
        b.click(".legend button")
        hits = b.js("document.querySelectorAll('.tokens.filter i.hit').length")
        same(hits, best[first], "tokens of one expert")
        pressed = b.js("document.activeElement.getAttribute('aria-pressed')")
        same(pressed, "true", "the legend says that it is pressed")
        b.key("Enter")
        same(b.js("document.querySelectorAll('.tokens.filter').length"), 0, "Enter brings all tokens back")
        if which + 1 < len(d["texts"]):
            choose(b, "#text-which", 1)
    choose(b, "#text-which", 1 - len(d["texts"]))
    choose(b, "#text-layer", -1)
    b.js("document.querySelector('.tokens').focus()")
    b.key("ArrowRight", 3)
    e, p = leaders(m, m["texts"][0], 2, layer - 1)[0]
    expect(tip(b).startswith("token 2, layer %d\nexpert %d: %s" % (layer - 1, e, rounded(p))),
           "arrows walk over tokens: %r" % tip(b))
    b.key("Escape")
    choose(b, "#text-mode", 1)
    same(b.js("document.querySelector('.legend').hidden"), True, "no legend for probabilities")
    shades = b.js("new Set([...document.querySelectorAll('.tokens i')].map(i => i.style.backgroundColor))"
                  ".size")
    expect(shades > 3, "tokens are shaded by probability")
    choose(b, "#text-mode", -1)
    choose(b, "#text-layer", 1)


def try_cost(b, d):
    m = d["models"][0]
    b.click("#tab-cost")
    change = [math.exp((t["nll_kept"] - t["nll"]) / t["scored"]) - 1 for t in m["texts"]]
    want = [("\u2212" if c < 0 else "+") + "%.1f %%" % abs(100 * c) for c in change]
    shown = b.js("[...document.querySelectorAll('.card .big')].map(c => c.textContent)")
    same(shown, want, "change of perplexity")
    saved = 1 - sum(map(len, m["texts"][0]["kept"])) / sum(m["counts"])
    headline = b.js("document.getElementById('lead').textContent")
    expect("saves " + rounded(saved) in headline, "the headline says what is saved: " + headline)
    tallest = b.js("Math.max(...[...document.querySelectorAll('#cost td')].map(c => c.offsetHeight))")
    expect(tallest < 60, "cells of the table hold one line: %d pixels" % tallest)
    rows = cells(b, "#cost table")
    same([r[2] for r in rows], ["%.4f" % (t["nll"] / t["scored"]) for t in m["texts"]], "nats per token")


def go_through(b, d, url, width, scheme):
    b.size(width, 800, width < 600)
    b.colours(scheme)
    b.open(url)
    same(b.js("document.documentElement.dataset.theme"), scheme, "theme of the system")
    same(b.js("window.taken"), None, "nothing from the texts ran")
    for tab in TABS:
        b.click("#tab-" + tab)
        wide = b.js("document.documentElement.scrollWidth")
        expect(wide <= width, "%s at %d pixels is %d wide" % (tab, width, wide))
    go_tabs(b)
    try_experts(b, d)
    try_spread(b, d)
    try_overlap(b, d)
    try_text(b, d)
    try_cost(b, d)
    b.click("#theme")
    other = {"dark": "light", "light": "dark"}[scheme]
    same(b.js("document.documentElement.dataset.theme"), other, "the switch")
    b.js("document.getElementById('theme').focus()")
    b.key("Enter")
    same(b.js("document.documentElement.dataset.theme"), scheme, "the switch by the keyboard")


# ---- vkmoe bench compare

NASTY_DEVICE = "</style><script>window.taken = 1</script> <img src=x onerror=window.taken=1> & \u202e'\"|`"


def result(device, n_prompt, n_gen, speed, share):
    return {"gpu_info": device, "driver": "a driver", "driver_version": "1.2", "model_type": "model <b>",
            "model_size": 7, "model_n_params": 8, "type_k": "f16", "type_v": "f16", "n_prompt": n_prompt,
            "n_gen": n_gen, "n_depth": 0, "avg_ts": speed, "stddev_ts": speed / 10, "share_of_read": share,
            "gb_per_second": None if share is None else 10 * share, "read_gb_per_second": 10}


def compare(build, place):
    """The page of three devices, two of one name, the last with another test by force."""
    files = []
    for name, device, factor in (("a.json", "One device", 1), ("b.json", NASTY_DEVICE, 4),
                                 ("c.json", "One device", 2)):
        rows = [result(device, 64, 0, 100 * factor, None), result(device, 0, 16, 10 * factor, .2 * factor)]
        if name == "c.json":
            rows.append(result(device, 0, 32, 7, .5))
        files.append(place / name)
        files[-1].write_text(json.dumps(rows))
    command = [str(build / "vkmoe"), "bench", "compare", "-o", "html", "--force"] + [str(f) for f in files]
    page = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode()
    style = re.search(r"<style>(.*?)</style>", page, re.S).group(1)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1)
    want = "default-src 'none'; style-src '%s'; base-uri 'none'; form-action 'none'"
    same(policy, want % content_hash(style), "policy of the comparison")
    same((page.count("<script"), page.count("<img")), (0, 0), "elements that came from a name")
    (place / "compare.html").write_text(page)


def look_at_comparison(b, uri, width, scheme):
    b.size(width, 900, width < 500)
    b.colours(scheme)
    b.open(uri)
    wide = b.js("document.documentElement.scrollWidth")
    expect(wide <= width, "the comparison at %d pixels is %d wide" % (width, wide))
    same(b.js("window.taken"), None, "nothing from a name ran")
    rows = b.js("[...document.querySelector('figure').querySelectorAll('.row')].map(r => ["
                "r.querySelector('.who').textContent, +r.querySelectorAll('rect')[1].getAttribute('width'), "
                "r.querySelector('.value').textContent])")
    same(len(rows), 3, "bars of the first test")
    same(rows[0][0], "One device, a.json", "a name that two have")
    same(rows[1][0].replace("U+202E", "\u202e"), NASTY_DEVICE, "the other name")
    for row, speed, times in zip(rows, (100, 400, 200), ("", " 4.00 \u00d7", " 2.00 \u00d7")):
        near(row[1], 100 * speed / 440, .01, "length of a bar")  # the longest with its deviation is all
        same(row[2], "%.2f \u00b1 %.2f%s" % (speed, speed / 10, times), "figures beside it")
    expect("80 %" in b.js("document.querySelector('.lead').textContent"), "share in the heading")
    expect("tg32" in b.js("document.querySelector('.note').textContent"), "what differs is told")
    dark = b.js("getComputedStyle(document.documentElement).backgroundColor") == "rgb(19, 21, 25)"
    same(dark, scheme == "dark", "colours of the comparison")


def beginning(name, n):
    return (DATA / (name + ".validation.txt")).read_bytes()[:n]


def picture(build, out):
    with tempfile.TemporaryDirectory() as place:
        page = pathlib.Path(place) / "report.html"
        texts = []
        for name in ("scripture", "python"):
            texts.append(pathlib.Path(place) / (name + ".txt"))
            texts[-1].write_bytes((DATA / (name + ".validation.txt")).read_bytes())
        make(build, page, texts, 2048)
        with Browser() as b:
            b.size(1280, 930)
            b.colours("light")
            b.open(page.as_uri())
            b.move(1, 1)
            b.picture(out)
    return 0


def main():
    build = (ROOT / sys.argv[1]).resolve()
    if sys.argv[2:3] == ["--picture"]:
        return picture(build, sys.argv[3])
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        texts = [place / "scripture.txt", place / NASTY_NAME, place / "python.txt"]
        texts[0].write_bytes(beginning("scripture", 400))
        texts[1].write_bytes(NASTY)
        texts[2].write_bytes(beginning("python", 500))
        said = make(build, place / "report.html", texts, 192)
        same(said.count("perplexity"), 3, "lines on standard output")
        d = check_file((place / "report.html").read_bytes())
        with Browser() as b:
            for width, scheme in ((1280, "light"), (360, "dark"), (1280, "dark"), (360, "light")):
                go_through(b, d, (place / "report.html").as_uri(), width, scheme)
            compare(build, place)
            for width, scheme in ((1280, "light"), (360, "dark")):
                look_at_comparison(b, (place / "compare.html").as_uri(), width, scheme)
            same(b.complaints, [], "complaints of the browser")
            pages = {(place / name).as_uri() for name in ("report.html", "compare.html")}
            same(set(b.requests), pages, "requests")
    print("report: %s" % ("%d failures" % len(failures) if failures else "all good"))
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrowserError as e:
        sys.exit("browser: %s" % e)
