// Byte-level BPE by the regular expressions of the original tokenizers, written as they stand there (greedy, on
// the engine of Node), and the plainest merging: tokenizers_reference.mjs VOCAB.json TEXTS.json NAME...
// VOCAB.json: {"tokens", "merges"} as in GGUF and "user", the user-defined tokens. One JSON line of ids per name
// of tokenizer.ggml.pre, for those whose originals llama.cpp does not follow to the letter.
import { readFileSync } from "node:fs";

const W = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"; // \s of Rust and Oniguruma
const ENGLISH = "(?:'(?:[sS\\u017f]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD]))?";
const SPACES = `[${W}]*[\\r\\n]+|[${W}]+(?![^${W}])|[${W}]+`;
const UPPER = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]", LOWER = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]";
const FRONT = "[^\\r\\n\\p{L}\\p{N}]?", SIGNS = ` ?[^${W}\\p{L}\\p{N}]+`;
const cased = (upper, lower, suffix) => `${FRONT}${upper}*${lower}+${suffix}|${FRONT}${upper}+${lower}*${suffix}`;
const o200k = (numbers, suffix) => `${cased(UPPER, LOWER, suffix)}|${numbers}|${SIGNS}[\\r\\n/]*|${SPACES}`;
const noHan = (c) => `(?:(?!\\p{Script=Han})${c})`;
const three = "\\p{N}{1,3}";
const PUNCTUATION = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~]";

const CASED_LETTERS = // of the Unicode version that DeepSeek's author had
  "A-Za-z\\u00b5\\u00c0-\\u00d6\\u00d8-\\u00f6\\u00f8-\\u01ba\\u01bc-\\u01bf\\u01c4-\\u0293" +
  "\\u0295-\\u02af\\u0370-\\u0373\\u0376\\u0377\\u037b-\\u037d\\u037f\\u0386\\u0388-\\u038a\\u038c" +
  "\\u038e-\\u03a1\\u03a3-\\u03f5\\u03f7-\\u0481\\u048a-\\u052f\\u0531-\\u0556\\u10a0-\\u10c5" +
  "\\u13a0-\\u13f5\\u13f8-\\u13fd\\u1c90-\\u1cba\\u1cbd-\\u1cbf\\u1d00-\\u1d2b\\u1d6b-\\u1d77" +
  "\\u1d79-\\u1d9a\\u1e00-\\u1f15\\u1f18-\\u1f1d\\u1f20-\\u1f45\\u1f48-\\u1f4d\\u1f50-\\u1f57\\u1f59" +
  "\\u1f5b\\u1f5d\\u1f5f-\\u1f7d\\u1f80-\\u1fb4\\u1fb6-\\u1fbc\\u1fbe\\u1fc2-\\u1fc4\\u1fc6-\\u1fcc" +
  "\\u1fd0-\\u1fd3\\u1fd6-\\u1fdb\\u1fe0-\\u1fec\\u1ff2-\\u1ff4\\u1ff6-\\u1ffc\\u2102\\u2107" +
  "\\u210a-\\u2113\\u2115\\u2119-\\u211d\\u2124\\u2126\\u2128\\u212a-\\u212d\\u212f-\\u2134\\u2139" +
  "\\u213c-\\u213f\\u2145-\\u2149\\u214e\\u2183\\u2184\\u2c00-\\u2c7b\\u2c7e-\\u2ce4\\u2ceb-\\u2cee" +
  "\\u2cf2\\u2cf3\\ua640-\\ua66d\\ua680-\\ua69b\\ua722-\\ua76f\\ua771-\\ua787\\ua78b-\\ua78e" +
  "\\uab70-\\uabbf\\ufb00-\\ufb06\\ufb13-\\ufb17\\uff21-\\uff3a\\uff41-\\uff5a\\u{10400}-\\u{1044f}" +
  "\\u{104b0}-\\u{104d3}\\u{104d8}-\\u{104fb}\\u{10c80}-\\u{10cb2}\\u{10cc0}-\\u{10cf2}" +
  "\\u{118a0}-\\u{118df}\\u{1e900}-\\u{1e943}";
const DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+";

const families = {
  o200k: [o200k(three, ENGLISH)],
  tekken: [o200k("\\p{N}", "")],
  kimi: [`\\p{Script=Han}+|${cased(noHan(UPPER), noHan(LOWER), ENGLISH)}|${three}|${SIGNS}[\\r\\n]*|${SPACES}`],
  youtu: ["[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c" +
          "\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
          o200k("\\p{N}", ENGLISH)],
  cohere: ["\\p{Nd}{1,3}(?=(?:\\p{Nd}{3})*(?:$|[^\\p{L}\\p{M}\\p{N}\\p{Pc}]))", o200k(three, ENGLISH)],
  "deepseek-llm": ["[\\r\\n]", `[${W}]?[${CASED_LETTERS}]+`,
                   `[${W}]?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+`, `[${W}]+$`,
                   DEEPSEEK_CJK, "\\p{N}+"],
  "deepseek-coder": ["[\\r\\n]", `[${W}]?\\p{L}+`, `[${W}]?\\p{P}+`, DEEPSEEK_CJK, "\\p{N}"],
  afmoe: ["\\p{N}{1,3}(?=(?:\\p{N}{3})*(?!\\p{N}))",
          "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f" +
          "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+",
          `${PUNCTUATION}[A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|${SPACES}`],
};
const names = {
  "gpt-4o": "o200k", llama4: "o200k", kanana2: "o200k", talkie: "o200k", "minimax-m2": "o200k", tekken: "tekken",
  "kimi-k2": "kimi", youtu: "youtu", cohere2moe: "cohere", tiny_aya: "cohere", afmoe: "afmoe",
  "deepseek-llm": "deepseek-llm", "deepseek-coder": "deepseek-coder",
};

const alphabet = []; // of bytes, GPT-2's
for (let b = 0, n = 256; b < 256; b++)
  alphabet.push(String.fromCodePoint((b > 32 && b < 127) || (b > 160 && b !== 173) ? b : n++));

function pieces(text, cuts) {
  let list = [text];
  for (const cut of cuts) {
    const next = [];
    for (const part of list) {
      let at = 0;
      for (const m of part.matchAll(new RegExp(cut, "gu"))) {
        if (m.index > at) next.push(part.slice(at, m.index));
        next.push(m[0]);
        at = m.index + m[0].length;
      }
      if (at < part.length) next.push(part.slice(at));
    }
    list = next;
  }
  return list;
}

const [, , vocabFile, textsFile, ...wanted] = process.argv;
const vocab = JSON.parse(readFileSync(vocabFile, "utf8")), texts = JSON.parse(readFileSync(textsFile, "utf8"));
const idOf = new Map(vocab.tokens.map((t, i) => [t, i])), rankOf = new Map(vocab.merges.map((m, i) => [m, i]));
const whole = new Set(["tekken", "youtu"]); // a piece that is a token is taken whole

function merge(piece, ignoreMerges) {
  let parts = [...Buffer.from(piece)].map((b) => alphabet[b]);
  if (ignoreMerges && idOf.has(parts.join(""))) return [idOf.get(parts.join(""))];
  for (;;) {
    let best = Infinity, at = -1;
    for (let i = 0; i + 1 < parts.length; i++) {
      const rank = rankOf.get(`${parts[i]} ${parts[i + 1]}`);
      if (rank < best) [best, at] = [rank, i];
    }
    if (at < 0) return parts.map((p) => idOf.get(p));
    parts.splice(at, 2, parts[at] + parts[at + 1]);
  }
}

const user = new RegExp(`(${vocab.user.map((t) => t.replace(/[\[\]]/g, "\\$&")).join("|")})`);
for (const name of wanted) {
  const known = new Map(), cuts = families[names[name]];
  if (!cuts) {
    console.log("null");
    continue;
  }
  console.log(JSON.stringify(texts.map((text) => text.split(user).flatMap((part, i) => {
    if (i % 2) return [idOf.get(part)];
    return pieces(part, cuts).flatMap((piece) => {
      if (!known.has(piece)) known.set(piece, merge(piece, whole.has(name)));
      return known.get(piece);
    });
  }))));
}
