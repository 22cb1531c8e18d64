/* The experts report: draws what the block of JSON holds. Reads nothing else and asks for nothing. */
"use strict";
(() => {
const D = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const MANY = D.models.length > 1;

/* ---- text and numbers */

/* Characters that are not seen, or that turn the line round, are named instead. */
const hidden =
  /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
const codeOf = c => c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
const seen = s => s.replace(hidden, c => "⟨U+" + codeOf(c) + "⟩");
const percent = (v, digits = 1) => (100 * v).toFixed(digits) + " %";
const signed = v => (v < 0 ? "−" : "+") + Math.abs(100 * v).toFixed(1) + " %";
const mib = b => (b / 1048576).toFixed(b < 1048576 * 99.5 ? 1 : 0) + " MiB";
const whole = n => String(n).replace(/\B(?=(\d{3})+$)/g, "\u202f");
const counted = (n, what) => whole(n) + " " + what + (n === 1 ? "" : "s");
const ppl = (nll, n) => Math.exp(nll / n);
const number = v => v < 9999 ? v.toPrecision(4) : v.toExponential(2);
const names = D.texts.map(seen);
const letter = i => i < 26 ? String.fromCharCode(65 + i) : String(i + 1);

/* ---- building */

const NS = "http://www.w3.org/2000/svg";

function fill(e, attrs, children) {
  for (const k in attrs)
    if (k.startsWith("on")) e.addEventListener(k.slice(2), attrs[k]);
    else if (attrs[k] !== null && attrs[k] !== false) e.setAttribute(k, attrs[k] === true ? "" : attrs[k]);
  e.append(...children.flat().filter(c => c !== null));
  return e;
}
const el = (tag, attrs = {}, ...children) => fill(document.createElement(tag), attrs, children);
const sv = (tag, attrs = {}, ...children) => fill(document.createElementNS(NS, tag), attrs, children);

function options(select, rows, change) {
  select.append(...rows.map(([value, text]) => el("option", { value }, text)));
  select.addEventListener("change", change);
}

/* ---- the note beside pointer and focus: also what a screen reader says */

const tip = $("tip");

function showTip(text, x, y) {
  if (tip.textContent !== text) tip.textContent = text;
  tip.hidden = false;
  const w = tip.offsetWidth, h = tip.offsetHeight;
  tip.style.left = Math.max(6, Math.min(x + 14, innerWidth - w - 6)) + "px";
  tip.style.top = (y + h + 24 > innerHeight ? Math.max(6, y - h - 12) : y + 18) + "px";
}
const hideTip = () => { tip.hidden = true; };

/* A figure that a pointer or the arrow keys walk over. at(x, y): cell under the pointer or null;
   step(dx, dy): the next cell; tell(cell): its text and place, marks it. Places: in the element. */
function walk(node, { at, step, tell, leave }) {
  const show = cell => {
    if (!cell) return;
    const t = tell(cell), box = node.getBoundingClientRect();
    showTip(t.text, box.left + t.x, box.top + t.y);
  };
  const point = e => {
    const box = node.getBoundingClientRect(), cell = at(e.clientX - box.left, e.clientY - box.top);
    if (cell) show(cell);
    else { leave(); hideTip(); }
  };
  const away = () => { leave(); hideTip(); };
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
                   Home: [-1e9, 0], End: [1e9, 0] };
  node.addEventListener("pointermove", point);
  node.addEventListener("pointerdown", point);
  node.addEventListener("pointerleave", away);
  node.addEventListener("blur", away);
  node.addEventListener("focus", () => { if (node.matches(":focus-visible")) show(step(0, 0)); });
  node.addEventListener("keydown", e => {
    if (e.key === "Escape") away();
    if (!arrows[e.key]) return;
    e.preventDefault();
    show(step(...arrows[e.key]));
  });
}

/* ---- colour: lightness alone orders the scale, hue runs from yellow over green to blue */

const STOPS = {
  light: [[.972, .008, 95], [.90, .085, 112], [.75, .115, 165], [.54, .11, 222], [.27, .12, 277]],
  dark: [[.215, .015, 270], [.37, .105, 277], [.56, .115, 225], [.77, .13, 165], [.965, .12, 106]],
};

function srgb(L, C, h) { /* OKLCH to bytes */
  const a = C * Math.cos(h * Math.PI / 180), b = C * Math.sin(h * Math.PI / 180);
  const l = (L + .3963377774 * a + .2158037573 * b) ** 3, m = (L - .1055613458 * a - .0638541728 * b) ** 3,
        s = (L - .0894841775 * a - 1.291485548 * b) ** 3;
  return [4.0767416621 * l - 3.3077115913 * m + .2309699292 * s,
          -1.2684380046 * l + 2.6097574011 * m - .3413193965 * s,
          -.0041960863 * l - .7034186147 * m + 1.707614701 * s].map(v => {
    v = Math.max(0, Math.min(1, v));
    return Math.round(255 * (v <= .0031308 ? 12.92 * v : 1.055 * v ** (1 / 2.4) - .055));
  });
}

const ramps = {};
for (const theme in STOPS)
  ramps[theme] = Array.from({ length: 256 }, (_, i) => {
    const t = i / 255 * 4, k = Math.min(3, Math.floor(t)), f = t - k;
    const p = STOPS[theme][k], q = STOPS[theme][k + 1];
    return "rgb(" + srgb(...p.map((v, j) => v + f * (q[j] - v))).join(" ") + ")";
  });
const theme = () => document.documentElement.dataset.theme;
const shade = t => ramps[theme()][Math.round(255 * Math.max(0, Math.min(1, t)))];
const inkOn = t => (t > .5) === (theme() === "light") ? "#fff" : "#111";

/* ---- panels: built when first shown, drawn again when their width, the theme or a control changes */

const panels = {}, order = ["experts", "spread", "overlap", "text", "cost"];
let active = null, drawers = [];

function redraw() { for (const draw of panels[active].drawers) draw(); }
function drawn(draw) { drawers.push(draw); }

function show(name, focus) {
  active = name;
  hideTip();
  for (const n of order) {
    const tab = $("tab-" + n), on = n === name;
    tab.setAttribute("aria-selected", on);
    tab.tabIndex = on ? 0 : -1;
    $("panel-" + n).hidden = !on;
    if (on && focus) tab.focus();
  }
  if (!panels[name].drawers) {
    drawers = [];
    panels[name].build();
    panels[name].drawers = drawers;
  }
  redraw();
  $("tab-" + name).scrollIntoView({ block: "nearest", inline: "nearest" });
}

function modelTitle(m) {
  return el("p", { class: "model" }, seen(m.name), el("small", {}, m.experts + " routed experts in a layer"));
}

/* One column a model. */
function perModel(home, build) {
  for (const m of D.models)
    home.append(el("div", {}, MANY ? modelTitle(m) : null, build(m)));
}

const upTo = (n, of = k => k) => Array.from({ length: n }, (_, k) => of(k));
const average = a => a.reduce((s, v) => s + v, 0) / a.length;

/* ---- experts: heat maps */

const view = { order: -1, only: false };
const most = Math.max(...D.models.flatMap(m => m.texts.flatMap(t => t.mean.flat())));
const heat = p => (p / most) ** .72;

/* Column to expert, per layer. */
function columns(m, layer) {
  const ids = upTo(m.counts[layer]);
  if (view.order < 0) return ids;
  const mean = m.texts[view.order].mean[layer];
  return ids.sort((a, b) => mean[b] - mean[a] || a - b);
}

const GUTTER = 26; /* left of a map, for the numbers of layers */

/* Paints a map; map: {canvas, m, t, kept, cols, row, cursor}. Returns its width. */
function paintMap(map) {
  const { canvas, m, t, kept, cols, row, cursor } = map, dpr = window.devicePixelRatio || 1;
  const css = getComputedStyle(document.documentElement), ctx = canvas.getContext("2d");
  const w = canvas.clientWidth, cell = (w - GUTTER) / m.experts, gap = cell > 7 ? 1 : cell > 4 ? .5 : 0;
  canvas.width = Math.round(w * dpr);
  canvas.height = Math.round(m.layers * row * dpr);
  canvas.style.height = m.layers * row + "px";
  ctx.scale(dpr, dpr);
  ctx.font = "12px " + css.getPropertyValue("--sans");
  ctx.textBaseline = "middle";
  ctx.textAlign = "right";
  for (let l = 0; l < m.layers; l++) {
    ctx.fillStyle = css.getPropertyValue("--soft");
    if (m.layers <= 20 || l % 2 === 0) ctx.fillText(l, GUTTER - 8, (l + .5) * row);
    cols[l].forEach((e, c) => {
      const gone = view.only && !kept[l].has(e);
      ctx.fillStyle = gone ? css.getPropertyValue("--paper") : shade(heat(t.mean[l][e]));
      ctx.fillRect(GUTTER + c * cell, l * row, cell - gap + (gap ? 0 : .3), row - 1);
    });
  }
  if (cursor) {
    ctx.strokeStyle = css.getPropertyValue("--ink");
    ctx.lineWidth = 2;
    ctx.strokeRect(GUTTER + cursor.c * cell - 1, cursor.l * row - .5, cell + 1, row);
  }
  return w;
}

function cellText(map, l, e) {
  const p = map.t.mean[l][e], share = (p * map.m.counts[l]).toFixed(2);
  return `layer ${l}, expert ${e}: ${percent(p, 2)}\n${share} × its even share, ` +
         `${map.kept[l].has(e) ? "kept" : "dropped"} at ${D.keep_percent} %`;
}

function heatMap(m, t, i) {
  const canvas = el("canvas", { tabindex: 0, role: "img",
    "aria-label": `Mean router probability of ${names[i]}${MANY ? " in " + seen(m.name) : ""}, ` +
                  `${m.layers} layers by ${m.experts} experts. Arrow keys walk over it.` });
  const map = { canvas, m, t, kept: t.kept.map(ids => new Set(ids)), cols: [], cursor: null,
                row: m.layers <= 8 ? 24 : m.layers <= 20 ? 16 : 9 };
  const left = el("span"), right = el("span");
  let w = 0;
  drawn(() => {
    map.cols = upTo(m.layers, l => columns(m, l));
    left.textContent = view.order < 0 ? "expert 0" : "wanted most in " + names[view.order];
    right.textContent = view.order < 0 ? "expert " + (m.experts - 1) : "least";
    w = paintMap(map);
  });
  walk(canvas, {
    at: (x, y) => {
      const l = Math.floor(y / map.row), c = Math.floor((x - GUTTER) / (w - GUTTER) * m.experts);
      return l >= 0 && l < m.layers && c >= 0 && c < map.cols[l].length ? { l, c } : null;
    },
    step: (dx, dy) => {
      const from = map.cursor || { l: 0, c: 0 }, l = Math.max(0, Math.min(m.layers - 1, from.l + dy));
      return { l, c: Math.max(0, Math.min(map.cols[l].length - 1, from.c + dx)) };
    },
    tell: cell => {
      map.cursor = cell;
      paintMap(map);
      return { text: cellText(map, cell.l, map.cols[cell.l][cell.c]),
               x: GUTTER + (cell.c + .5) / m.experts * (w - GUTTER), y: (cell.l + .5) * map.row };
    },
    leave: () => {
      map.cursor = null;
      paintMap(map);
    },
  });
  const caption = el("figcaption", {}, el("b", {}, names[i]), el("span", {}, counted(t.tokens, "token")));
  return el("figure", {}, caption, canvas, el("div", { class: "axis" }, left, right));
}

function buildScale(m) {
  const canvas = el("canvas"), even = 1 / m.experts;
  const ticks = [["first", 0, "0"], ["", even, percent(even) + " even share"],
                 ["last", most, percent(most, most < .1 ? 1 : 0)]];
  $("scale").append(canvas, el("div", { class: "ticks" }, ticks.map(([cls, p, text]) => {
    const s = el("span", { class: cls }, text);
    s.style.left = 100 * heat(p) + "%";
    return s;
  })));
  drawn(() => {
    const ctx = canvas.getContext("2d");
    canvas.width = 256;
    canvas.height = 1;
    for (let x = 0; x < 256; x++) {
      ctx.fillStyle = shade(x / 255);
      ctx.fillRect(x, 0, 1, 1);
    }
  });
}

panels.experts = { build() {
  const m = D.models[0], whose = names.map((n, i) => [String(i), "what " + n + " wants most"]);
  options($("order"), [["-1", "expert number"], ...whose], e => {
    view.order = +e.target.value;
    redraw();
  });
  $("only").addEventListener("change", e => {
    view.only = e.target.checked;
    redraw();
  });
  $("only-label").textContent = `only what ${D.keep_percent} % keeps` +
    (MANY ? "" : ` (${m.keep} of ${m.experts + m.shared} with the shared one)`);
  buildScale(m);
  if (MANY) $("maps").append(el("div", { class: "pair" }, D.models.map(modelTitle)));
  D.texts.forEach((_, i) => {
    const maps = D.models.map(x => heatMap(x, x.texts[i], i));
    $("maps").append(MANY ? el("div", { class: "pair" }, maps) : maps[0]);
  });
} };

/* ---- line charts */

const style = i => `s${i % 8} d${Math.floor(i / 8) % 4}`;

function key(series) {
  const sample = i => sv("svg", { viewBox: "0 0 30 8", "aria-hidden": "true" },
                         sv("line", { class: "line " + style(i), x1: 1, x2: 29, y1: 4, y2: 4 }));
  return el("ul", { class: "key" }, series.map(s => el("li", {}, sample(s.i), s.name)));
}

function niceStep(span) {
  const raw = span / 4, p = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 5, 10].map(k => k * p).find(s => s >= raw * .999);
}

const H = 210, L = 46, R = 12, T = 10, B = 26; /* height and margins of charts */

/* Everything of a chart but its cursor. d: what a chart's `of` gives; X, Y: index and value to places. */
function chartParts(d, w, X, Y, xtext, ytext) {
  const low = d.low || 0, step = niceStep(d.top - low), parts = [];
  const path = ys => ys.map((v, k) => (k ? "L" : "M") + X(k).toFixed(1) + " " + Y(v).toFixed(1)).join("");
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= d.top * 1.0001; v += step)
    parts.push(sv("line", { class: v > low ? "grid" : "base", x1: L, x2: w - R, y1: Y(v), y2: Y(v) }),
               sv("text", { x: L - 7, y: Y(v) + 4, "text-anchor": "end" }, ytext(v)));
  for (const k of d.ticks)
    parts.push(sv("text", { x: X(k), y: H - 7, "text-anchor": "middle" }, xtext(d.xs[k])));
  if (d.even) parts.push(sv("path", { class: "even", d: path(d.even) }));
  for (const s of d.series) {
    parts.push(sv("path", { class: "line " + style(s.i), d: path(s.ys) }));
    for (const k of d.marks)
      parts.push(sv("circle", { class: "dot s" + s.i % 8, cx: X(k), cy: Y(s.ys[k]), r: 3.6 }));
  }
  return parts;
}

/* of(): {xs, series: [{i, name, ys}], low and top of the y axis, ticks and marks: indices with a number
   and with a dot, even: ys of the dotted line or null}. told(x): first line of the note. */
function chart({ title, unit, of, ytext, xtext, told }) {
  const svg = sv("svg", { tabindex: 0, role: "img", "aria-label": title + ". Arrow keys walk along it." });
  let d = of(), w = 0, cursor = null, mark = null;
  const last = () => d.xs.length - 1;
  const X = k => L + (last() ? (d.xs[k] - d.xs[0]) / (d.xs[last()] - d.xs[0]) : .5) * (w - L - R);
  const Y = v => T + (1 - (v - (d.low || 0)) / (d.top - (d.low || 0))) * (H - T - B);
  drawn(() => {
    d = of();
    w = Math.max(200, svg.clientWidth);
    svg.setAttribute("viewBox", `0 0 ${w} ${H}`);
    svg.style.height = H + "px";
    mark = sv("line", { class: "cursor", y1: T, y2: H - B, visibility: "hidden" });
    svg.replaceChildren(...chartParts(d, w, X, Y, xtext, ytext), mark);
  });
  walk(svg, {
    at: (x, y) => {
      if (x < L - 12 || x > w + R || y < 0 || y > H) return null;
      let best = 0;
      d.xs.forEach((_, k) => { if (Math.abs(X(k) - x) < Math.abs(X(best) - x)) best = k; });
      return { k: best };
    },
    step: dx => ({ k: Math.max(0, Math.min(last(), (cursor ? cursor.k : 0) + dx)) }),
    tell: c => {
      cursor = c;
      for (const a of ["x1", "x2"]) mark.setAttribute(a, X(c.k));
      mark.setAttribute("visibility", "visible");
      const lines = d.series.map(s => `${s.name}: ${ytext(s.ys[c.k], true)}`);
      return { text: [told(d.xs[c.k]), ...lines].join("\n"), x: X(c.k), y: T + 20 };
    },
    leave: () => {
      cursor = null;
      mark.setAttribute("visibility", "hidden");
    },
  });
  return el("figure", {}, el("figcaption", {}, el("b", {}, title), el("span", {}, unit)), svg);
}

const layerRows = [["-1", "mean of all"],
                   ...upTo(Math.max(...D.models.map(m => m.layers)), l => [String(l), String(l)])];
/* At a layer, or the mean over layers; a model with fewer layers shows its last. */
const layered = (m, layer, of) => layer < 0 ? average(upTo(m.layers, of)) : of(Math.min(layer, m.layers - 1));

/* What charts over layers have in common. */
function overLayers(m) {
  const xs = upTo(m.layers);
  return { xs, marks: xs, ticks: xs.filter(l => m.layers <= 16 || l % 4 === 0) };
}

function table(attrs, head, body) {
  const cells = head.map(h => h instanceof Node ? h : el("th", { scope: "col" }, h));
  return el("div", { class: "wide" }, el("table", attrs, el("thead", {}, el("tr", {}, cells)), body));
}

const row = (name, cells) => el("tr", {}, el("th", { scope: "row" }, name), cells);

/* ---- spread */

const spread = { layer: -1 };
/* Figures of all models with as many experts: they get the same scale. */
const alike = (m, of) => D.models.filter(x => x.experts === m.experts).flatMap(x => x.texts.flatMap(of));

function curve(mean) { /* mass of the best d, d = 0, 1, ... */
  let sum = 0;
  return [0, ...[...mean].sort((a, b) => b - a).map(p => sum += p)];
}

function massChart(m, series) {
  const curves = m.texts.map(t => t.mean.map(curve)), xs = upTo(m.experts + 1);
  const at = i => xs.map(d => layered(m, spread.layer, l => curves[i][l][Math.min(d, m.counts[l])]));
  const ends = [0, ...m.top, m.experts];
  const ticks = ends.filter((d, k) => !k || d === m.experts || d - ends[k - 1] >= m.experts / 12);
  return chart({ title: "Probability held by the best experts", unit: `of ${m.experts} routed`,
                 of: () => ({ xs, top: 1, marks: m.top, ticks, even: xs.map(d => d / m.experts),
                              series: series.map(s => ({ i: s.i, name: s.name, ys: at(s.i) })) }),
                 ytext: (v, exact) => percent(v, exact ? 1 : 0), xtext: d => d,
                 told: d => `the best ${d} experts hold` });
}

function massTable(m) {
  if (!m.top.length) return null;
  const body = el("tbody");
  drawn(() => body.replaceChildren(...m.texts.map((t, i) => row(names[i],
    m.top.map((_, k) => el("td", {}, percent(layered(m, spread.layer, l => t.mass[l][k]))))))));
  return table({ class: "mass" }, ["", ...m.top.map(d => "best " + d)], body);
}

function layerCharts(m) {
  const narrowest = Math.min(...alike(m, t => t.entropy)), broadest = Math.max(...alike(m, t => t.above));
  const common = overLayers(m), series = of => m.texts.map((t, i) => ({ i, name: names[i], ys: of(t) }));
  return [
    chart({ title: "Entropy by layer", unit: `bits; all alike: ${Math.log2(m.experts).toFixed(2)}`,
            of: () => ({ ...common, top: Math.log2(m.experts) + .05,
                         low: Math.max(0, Math.floor(narrowest * 2 - .2) / 2),
                         series: series(t => t.entropy), even: m.counts.map(n => Math.log2(n)) }),
            ytext: (v, exact) => v.toFixed(exact ? 3 : 1), xtext: l => l, told: l => `layer ${l}, bits` }),
    chart({ title: "Experts above their even share", unit: `of ${m.experts}`,
            of: () => ({ ...common, top: Math.max(1, broadest * 1.1), series: series(t => t.above) }),
            ytext: v => String(Math.round(v * 10) / 10), xtext: l => l, told: l => `layer ${l}, experts` }),
  ];
}

panels.spread = { build() {
  options($("spread-layer"), layerRows, e => {
    spread.layer = +e.target.value;
    redraw();
  });
  perModel($("spread"), m => {
    const series = names.map((name, i) => ({ i, name }));
    return el("div", { class: MANY ? "" : "cols" },
              el("div", {}, key(series), massChart(m, series), massTable(m)), el("div", {}, layerCharts(m)));
  });
} };

/* ---- overlap */

const overlap = { layer: -1 };

function matrix(m, title, small, figures) {
  const body = el("tbody");
  const cell = (i, j) => {
    const v = layered(m, overlap.layer, l => figures[l][i][j]);
    const td = el("td", { title: `${names[i]} and ${names[j]}: ${v.toFixed(4)}` }, v.toFixed(2));
    td.style.background = shade(v);
    td.style.color = inkOn(v);
    return td;
  };
  const label = i => [el("span", { class: "letter" }, letter(i)), " " + names[i]];
  drawn(() => body.replaceChildren(...names.map((_, i) => el("tr", {},
    el("th", { scope: "row" }, label(i)), names.map((__, j) => cell(i, j))))));
  const head = [el("td"), ...names.map((n, i) => el("th", { scope: "col", title: n }, letter(i)))];
  return el("div", {}, el("h3", {}, title), el("p", { class: "how" }, small),
            table({ class: "matrix", "aria-label": title }, head, body));
}

/* Per layer: the mean over pairs of different texts. */
function pairs(figures) {
  return figures.map(t => average(t.flatMap((values, i) => values.filter((_, j) => i < j))));
}

function overlapOf(m) {
  const series = [{ i: 0, name: "overlap of kept experts", ys: pairs(m.jaccard) },
                  { i: 1, name: "cosine", ys: pairs(m.cosine) }];
  return el("div", {}, el("div", { class: "pair" },
    matrix(m, "Overlap of kept experts",
           `experts kept by both, of those kept by either (Jaccard); each keeps ${m.keep - m.shared} routed`,
           m.jaccard),
    matrix(m, "Cosine of mean probabilities", "1: in the same proportions", m.cosine)),
    key(series),
    chart({ title: "Mean over pairs of texts, by layer", unit: "",
            of: () => ({ ...overLayers(m), top: 1, series, even: null }),
            ytext: (v, exact) => v.toFixed(exact ? 3 : 1), xtext: l => l, told: l => `layer ${l}` }));
}

panels.overlap = { build() {
  options($("overlap-layer"), layerRows, e => {
    overlap.layer = +e.target.value;
    redraw();
  });
  $("overlap-layer").parentNode.hidden = names.length < 2;
  $("overlap-how").textContent = names.length < 2 ?
    "There is one text only: give a second one with -f to compare them." :
    "Two texts that keep the same experts have an overlap of 1, two that share none 0. The cosine compares " +
    `all mean probabilities, not only the best ${D.keep_percent} %. Experts that specialise by topic give ` +
    "low figures between topics.";
  if (names.length > 1) perModel($("overlap"), overlapOf);
} };

/* ---- text */

/* Three leading experts of each token and layer: number (16 bits), probability in half percents. */
function leaders(t) {
  const b = t.bytes = t.bytes || Uint8Array.from(atob(t.lead), c => c.charCodeAt(0)), NONE = 65535;
  return (token, layer, layers) => [0, 3, 6].map(k => k + 9 * (token * layers + layer))
    .map(at => ({ e: b[at] + 256 * b[at + 1], p: b[at + 2] / 200 })).filter(x => x.e !== NONE);
}

/* Line ends get a mark and stay, tabs stay, the rest of what is not seen is named. */
const visible = s => s.split(/([\n\t])/).map(p => p === "\n" ? "↵\n" : p === "\t" ? p : seen(p)).join("");

/* The tokens of one model; pick: {text, layer, mode}, shared by all models. */
function tokenView(m, pick) {
  const box = el("div", { class: "tokens", tabindex: 0, role: "group", dir: "auto" });
  const legend = el("div", { class: "legend" }), note = el("p", { class: "how" });
  let spans = [], lead = null, layer = 0, cursor = -1, filter = -1, pictured = -1;

  const unmark = () => {
    if (spans[cursor]) spans[cursor].classList.remove("on");
    cursor = -1;
  };
  const clear = () => {
    unmark();
    hideTip();
  };
  const tell = k => {
    unmark();
    cursor = k;
    spans[k].classList.add("on");
    const b = spans[k].getBoundingClientRect();
    const lines = lead(k, layer, m.layers).map(x => `expert ${x.e}: ${percent(x.p, 0)}`);
    showTip([`token ${k}, layer ${layer}`, ...lines].join("\n"), b.left, b.bottom - 8);
  };
  const fillBox = t => {
    const starts = new Set(t.starts.slice(1));
    spans = t.shown.map((s, k) => el("i", { "data-k": k, class: s === "" ? "part" : null }, visible(s)));
    box.replaceChildren(...spans.flatMap((s, k) => starts.has(k) ? ["\n\n", s] : [s]));
    box.setAttribute("aria-label", "Tokens of " + names[pick.text] + ". Left and right walk over them.");
    note.textContent = t.shown.length === t.tokens ? "" :
      `The first ${whole(t.shown.length)} of ${whole(t.tokens)} tokens are shown.`;
    pictured = pick.text;
    filter = cursor = -1;
  };
  const press = e => {
    filter = e === filter ? -1 : e;
    paint();
    legend.querySelector(`[data-expert="${e}"]`).focus();
  };
  const fillLegend = (best, count) => legend.replaceChildren(...best.map((e, rank) =>
    el("button", { type: "button", class: "k" + rank, "aria-pressed": String(e === filter), "data-expert": e,
                   onclick: () => press(e) }, `expert ${e} · ${percent(count.get(e) / spans.length, 0)}`)));
  const paint = () => {
    const t = m.texts[pick.text], count = new Map(), sure = pick.mode === "sure";
    layer = Math.min(pick.layer, m.layers - 1);
    lead = leaders(t);
    if (pictured !== pick.text) fillBox(t);
    const first = spans.map((_, k) => lead(k, layer, m.layers)[0]);
    for (const x of first) count.set(x.e, (count.get(x.e) || 0) + 1);
    const best = [...count].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, 8).map(x => x[0]);
    if (!best.includes(filter)) filter = -1;
    spans.forEach((s, k) => {
      const rank = best.indexOf(first[k].e), hit = first[k].e === filter && !sure;
      const classes = [s.textContent ? "" : "part", rank >= 0 && !sure ? "k" + rank : "", hit ? "hit" : ""];
      s.className = classes.join(" ");
      s.style.backgroundColor = sure ? shade(first[k].p) : "";
      s.style.color = sure ? inkOn(first[k].p) : "";
    });
    box.classList.toggle("filter", filter >= 0 && !sure);
    legend.hidden = sure;
    fillLegend(best, count);
  };
  const point = e => e.target.dataset.k === undefined ? clear() : tell(+e.target.dataset.k);
  const keyed = e => {
    const to = { ArrowLeft: cursor - 1, ArrowRight: cursor + 1, Home: 0, End: spans.length - 1 }[e.key];
    if (e.key === "Escape") clear();
    if (to === undefined) return;
    e.preventDefault();
    const k = Math.max(0, Math.min(spans.length - 1, to));
    spans[k].scrollIntoView({ block: "nearest" });
    tell(k);
  };
  drawn(paint);
  for (const name of ["pointermove", "pointerdown"]) box.addEventListener(name, point);
  for (const name of ["pointerleave", "blur"]) box.addEventListener(name, clear);
  box.addEventListener("keydown", keyed);
  return el("div", {}, legend, box, note);
}

panels.text = { build() {
  const pick = { text: 0, layer: Math.floor(Math.max(...D.models.map(m => m.layers)) / 2), mode: "lead" };
  const on = (name, value) => e => {
    pick[name] = value(e.target.value);
    redraw();
  };
  options($("text-which"), names.map((n, i) => [String(i), n]), on("text", Number));
  options($("text-layer"), layerRows.slice(1), on("layer", Number));
  $("text-layer").value = String(pick.layer);
  $("text-mode").addEventListener("change", on("mode", String));
  perModel($("text"), m => tokenView(m, pick));
} };

/* ---- cost and saving */

const pplAll = t => ppl(t.nll, t.scored), pplKept = t => ppl(t.nll_kept, t.scored);
const cost = t => t.scored ? pplKept(t) / pplAll(t) - 1 : null;
const allBytes = m => m.counts.reduce((s, n) => s + n, 0) * m.expert_bytes;
const keptBytes = (m, t) => t.kept.reduce((s, ids) => s + ids.length, 0) * m.expert_bytes;
const tone = c => c > .0005 ? "worse" : c < -.0005 ? "better" : "";

function card(m, t, i) {
  const c = cost(t), bar = el("div"), share = keptBytes(m, t) / allBytes(m);
  bar.style.width = 100 * share + "%";
  return el("div", { class: "card" }, el("h3", {}, names[i]),
    el("p", { class: "big " + (c === null ? "" : tone(c)) }, c === null ? "–" : signed(c)),
    el("p", {}, c === null ? "too short to score" :
       `perplexity ${number(pplKept(t))} with its own experts, ${number(pplAll(t))} with all`),
    el("div", { class: "bar" }, bar),
    el("p", {}, `${mib(keptBytes(m, t))} of ${mib(allBytes(m))} of experts, ${percent(share)}`));
}

function costTable(m) {
  const figures = t => !t.scored ? upTo(5, () => "–") :
    [(t.nll / t.scored).toFixed(4), (t.nll_kept / t.scored).toFixed(4), number(pplAll(t)), number(pplKept(t)),
     signed(cost(t))];
  const cells = t => [whole(t.documents), whole(t.scored), ...figures(t)].map(c => el("td", {}, c));
  const head = ["", "documents", "tokens scored", "nats per token, all", "kept", "perplexity, all", "kept",
                "change"];
  return table({}, head, el("tbody", {}, m.texts.map((t, i) => row(names[i], cells(t)))));
}

panels.cost = { build() {
  $("cost-title").textContent = `What keeping ${D.keep_percent} % costs, and what it saves`;
  $("cost-how").textContent =
    "Each text was scored twice on this machine: with all experts, and with only those that it wants most, " +
    "chosen from the same text. A text judged by experts that it chose itself is the kindest case; " +
    "vkmoe experts eval measures on texts not used for choosing. Perplexity is per token: lower is " +
    "better. Bytes are those of expert slots on the device.";
  for (const m of D.models)
    $("cost").append(MANY ? el("p", { class: "model" }, seen(m.name)) : "",
      el("p", { class: "how" }, `${m.keep} of ${m.experts + m.shared} experts in a layer, ` +
         `${m.keep - m.shared} routed and ${m.shared} shared; a token uses ${m.used} of the routed ones.`),
      el("div", { class: "cards" }, m.texts.map((t, i) => card(m, t, i))), costTable(m));
} };

/* ---- head, foot, theme, tabs */

function range(values, text) {
  const a = Math.min(...values), b = Math.max(...values);
  return text(a) === text(b) ? text(a) : `${text(a)} to ${text(b)}`;
}

/* What is kept, for people: more than keep_percent where a token uses more experts than that. */
function keptPart(m) {
  const all = m.experts + m.shared, exact = Math.abs(100 * m.keep / all - D.keep_percent) < 50 / all;
  return exact ? `${D.keep_percent} % of the experts` : `${m.keep} of ${all} experts, as many as a token uses,`;
}

function leadLine(m) {
  const costs = m.texts.map(cost).filter(c => c !== null);
  const saved = m.texts.map(t => 1 - keptBytes(m, t) / allBytes(m));
  const parts = [MANY ? seen(m.name) + ": keeping" : "Keeping", ` ${keptPart(m)} saves `,
                 el("b", {}, range(saved, v => percent(v, 0))), " of their memory"];
  if (costs.length) parts.push(" and changes perplexity by ", el("b", {}, range(costs, signed)));
  if (names.length > 1)
    parts.push("; two of these texts share on average ", el("b", {}, percent(average(pairs(m.jaccard)), 0)),
               " of the experts that they keep");
  return el("span", {}, parts, ". ");
}

function footLine(m) {
  const texts = m.texts.map((t, i) =>
    `${names[i]}: ${counted(t.tokens, "token")} in ${counted(t.documents, "document")}` +
    (t.whole ? "" : ", the beginning of the file") + (t.cut ? `, ${t.cut} cut to the context` : ""));
  return el("p", {}, `${seen(m.name)}: ${m.layers} layers of ${range(m.counts, String)} routed and ` +
                     `${m.shared} shared experts, ${m.used} routed ones per token. ${texts.join("; ")}.`);
}

function setTheme(name) {
  const other = name === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = name;
  $("theme").textContent = other === "dark" ? "Dark" : "Light";
  $("theme").setAttribute("aria-label", `Switch to ${other} colours`);
  if (active) redraw();
}

function followTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const current = () => system.matches ? "dark" : "light";
  let chosen = false;
  setTheme(current());
  system.addEventListener("change", () => { if (!chosen) setTheme(current()); });
  $("theme").addEventListener("click", () => {
    chosen = true;
    setTheme(theme() === "dark" ? "light" : "dark");
  });
}

function followTabs() {
  order.forEach((name, i) => {
    const tab = $("tab-" + name), n = order.length;
    tab.addEventListener("click", () => show(name));
    tab.addEventListener("keydown", e => {
      const to = { ArrowRight: (i + 1) % n, ArrowLeft: (i + n - 1) % n, Home: 0, End: n - 1 }[e.key];
      if (to === undefined) return;
      e.preventDefault();
      show(order[to], true);
    });
  });
}

function followWidth() {
  let width = 0;
  new ResizeObserver(() => {
    if (document.body.clientWidth !== width && active) redraw();
    width = document.body.clientWidth;
  }).observe(document.body);
}

document.title = "Experts of " + names.join(", ");
$("kicker").textContent = "vkmoe experts report · " + D.models.map(m => seen(m.name)).join(" and ");
$("title").textContent = `Which experts ${names.length > 1 ? "do these texts" : "does this text"} use?`;
$("lead").append(...D.models.map(leadLine));
const made = `Made by ${seen(D.tool)}. Every document was read alone, behind an end-of-text token.`;
$("foot").append(...D.models.map(footLine), el("p", {}, made));
followTheme();
followTabs();
followWidth();
show("experts");
})();
