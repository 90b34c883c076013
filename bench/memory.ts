/**
 * Prunes a sharded checkpoint of random weights larger than memory should need, and says how much memory it took.
 *
 *     npx tsx bench/memory.ts [--size-gb 4.5] [--dir /tmp/coppice-memory]
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, rmSync } from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";
import { type TensorInfo, writeCheckpoint } from "../src/checkpoint/index.js";
import { rowBytes, tensorInfo } from "../src/checkpoint/tensor-source.js";
import { bytesOf } from "../src/ggml/index.js";
import { modelFromConfig, shapeOf } from "../src/models/index.js";
import { saveScores } from "../src/prune/index.js";
import { Random } from "../src/system/random.js";

const { values } = parseArgs({
  options: { "size-gb": { type: "string", default: "4.5" }, dir: { type: "string", default: "/tmp/coppice-memory" } },
});
const [layers, hidden, ffn] = [Math.max(1, Math.round((Number(values["size-gb"]) - 0.5) / 0.24)), 3072, 9216];
const config = {
  ...{
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    vocab_size: 40960,
    hidden_size: hidden,
    intermediate_size: ffn,
  },
  ...{
    num_hidden_layers: layers,
    num_attention_heads: 24,
    num_key_value_heads: 8,
    head_dim: 128,
    torch_dtype: "bfloat16",
  },
};
const model = modelFromConfig(config);
const source = path.join(values.dir, "model");
const scoresFile = path.join(values.dir, "scores.safetensors");

if (!existsSync(path.join(source, "config.json"))) {
  mkdirSync(values.dir, { recursive: true });
  const random = new Random(1);
  const noise = Uint32Array.from({ length: 1 << 20 }, () => random.uint32() & 0xbfffbfff);
  const tensors = new Map<string, TensorInfo>(
    model.parameters.map((spec) => [spec.name, { dtype: "bf16", shape: shapeOf(spec, model.sizes) }]),
  );
  const readRows = (name: string, from: number, to: number): Uint8Array => {
    const bytes = new Uint8Array((to - from) * rowBytes(tensorInfo({ tensors }, name)));
    for (let at = 0; at < bytes.length; at += noise.byteLength)
      bytes.set(bytesOf(noise).subarray(0, bytes.length - at), at);
    return bytes;
  };
  writeCheckpoint(source, config, { tensors, readRows, releaseRows: () => {} }, { shardBytes: 1e9 });
  const dimensions = [
    ...new Set([
      ...model.scoredBy.map(({ dimension }) => dimension),
      ...model.headGroups.map((g) => g.kvHeads),
      "layers",
    ]),
  ];
  saveScores(
    scoresFile,
    new Map(
      dimensions.map((name) => [name, Float32Array.from({ length: model.sizes[name] ?? 0 }, () => random.uniform())]),
    ),
  );
}

const out = path.join(values.dir, "pruned");
rmSync(out, { recursive: true, force: true });
const started = performance.now();
const main = path.resolve(import.meta.dirname, "../dist/cli/main.js");
const script = `process.on("exit",()=>process.stderr.write("PEAK "+process.resourceUsage().maxRSS+"\\n"));await import("${main}")`;
const args = [
  "prune",
  source,
  "--target",
  "hidden=2048,ffn=6144,heads=16",
  "--scores",
  scoresFile,
  "--out",
  out,
  "--json",
];
const child = spawnSync(process.execPath, ["--input-type=module", "-e", script, ...args], { encoding: "utf8" });
if (child.status !== 0) throw new Error(child.stderr);
const peakBytes = Number(/PEAK (\d+)/.exec(child.stderr)?.[1]) * 1024;
const result = JSON.parse(child.stdout) as { parameters: { from: number; to: number } };
const seconds = (performance.now() - started) / 1000;
const readGb = (2 * result.parameters.from) / 1e9;
console.log(`| checkpoint | pruned to | seconds | peak resident memory |\n| --- | --- | --- | --- |`);
console.log(
  `| ${readGb.toFixed(2)} GB | ${((2 * result.parameters.to) / 1e9).toFixed(2)} GB | ${seconds.toFixed(1)} | ${(peakBytes / 2 ** 20).toFixed(0)} MiB |`,
);
