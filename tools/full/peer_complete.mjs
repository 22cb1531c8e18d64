// llama.cpp through node-llama-cpp, decoding with logits: peer_complete.mjs FOLDER FILE GENERATED
// FOLDER has node_modules. Times greedy decoding of whole tokens behind two: output head and every layer, which
// llama.cpp leaves out (in the last layer router and experts) where nobody asks for logits. One JSON line.
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [, , folder, file, generated] = process.argv;
const { getLlama, LlamaLogLevel } = await import(
  pathToFileURL(join(folder, "node_modules/node-llama-cpp/dist/index.js")));
const llama = await getLlama({
  gpu: "vulkan", build: "never", logLevel: LlamaLogLevel.error, vramPadding: 0, maxThreads: 2 });
const model = await llama.loadModel({ modelPath: file, gpuLayers: "max", ignoreMemorySafetyChecks: true });
const context = await model.createContext({
  contextSize: 1024, batchSize: 512, threads: 2, ignoreMemorySafetyChecks: true, flashAttention: true,
  experimentalKvCacheKeyType: "F16", experimentalKvCacheValueType: "F16" });
const n = Number(generated), times = [];
for await (const _ of context.getSequence().evaluate([300, 2219], { temperature: 0, yieldEogToken: true })) {
  times.push(performance.now());
  if (times.length === n + 2) break; // the first two warm up
}
console.log(JSON.stringify({ generated: n, decode_tps: n / ((times.at(-1) - times[1]) / 1e3) }));
process.exit(0);
