// Token ids from llama.cpp through node-llama-cpp: peer_tokens.mjs FOLDER JOBS.json
// FOLDER has node_modules. JOBS.json holds [{"file", "texts", "special"}]: GGUF files (a vocabulary is enough),
// and names of JSON arrays of strings. One JSON line per job: {"bos", "ids": [[...], ...]}, bos -1 where none is
// added.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [, , folder, jobs] = process.argv;
const { getLlama, LlamaLogLevel } = await import(
  pathToFileURL(join(folder, "node_modules/node-llama-cpp/dist/index.js")));
const put = (x) => new Promise((done) => process.stdout.write(JSON.stringify(x) + "\n", done));
const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.disabled, maxThreads: 1 });
for (const job of JSON.parse(readFileSync(jobs, "utf8"))) {
  try {
    const model = await llama.loadModel({ modelPath: job.file, vocabOnly: true, gpuLayers: 0 });
    const ids = JSON.parse(readFileSync(job.texts, "utf8")).map((text) => model.tokenize(text, job.special));
    const bos = model.tokens.shouldPrependBosToken ? model.tokens.bos : -1;
    await put({ bos, ids });
    await model.dispose();
  } catch (error) {
    await put({ error: String(error) });
  }
}
process.exit(0);
