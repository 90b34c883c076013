/**
 * Requests per second of our evaluation beside lm-evaluation-harness with transformers: the same model (random weights, a tokenizer
 * learned from the benchmarks), the same documents, each in a process of its own, in turns.
 *
 *     npm run build && npx tsx bench/evaluation.ts [--python .venv/bin/python] [--rounds 3] [--limit 50] [--threads 2]
 *         [--tasks hellaswag,mmlu] [--batch-sizes 1,16] [--out bench/results/evaluation.json]
 *
 * The peer needs bench/peers/requirements.txt; the data lie beside the project.
 */
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import { gunzipSync } from "node:zlib";
import { writeCheckpoint } from "../src/checkpoint/index.js";
import { Backend } from "../src/ggml/index.js";
import type { EvaluateOutcome } from "../src/index.js";
import { initialize, modelFromConfig } from "../src/models/index.js";
import { median } from "../src/system/statistics.js";
import { writeBenchmarkData } from "./benchmark-data.js";
import { markdown } from "./lines.js";

const { values } = parseArgs({
  options: {
    python: { type: "string", default: "python3" },
    rounds: { type: "string", default: "3" },
    limit: { type: "string", default: "50" },
    threads: { type: "string", default: "2" },
    tasks: { type: "string", default: "hellaswag,mmlu" },
    "batch-sizes": { type: "string", default: "1,16" },
    out: { type: "string", default: "bench/results/evaluation.json" },
  },
});
const root = path.resolve(import.meta.dirname, "..");
const work = mkdtempSync(path.join(tmpdir(), "evaluation-"));
const [data, model] = [path.join(work, "data"), path.join(work, "model")];

/** Rows as long as HellaSwag's (about 45 words of context, 20 of each ending), of real stories. */
function writeHellaswag(): void {
  const file = path.join(root, "../shared/data/corpora/tinystories-excerpt.txt.gz");
  const sentences = gunzipSync(readFileSync(file))
    .toString("utf8")
    .replaceAll("<|endoftext|>", " ")
    .split(/(?<=[.!?])\s+/)
    .filter((sentence) => sentence.length > 30);
  let at = 0;
  const take = (words: number): string => {
    const taken: string[] = [];
    for (let count = 0; count < words; at++) {
      const sentence = sentences[at % sentences.length] ?? "";
      taken.push(sentence);
      count += sentence.split(" ").length;
    }
    return taken.join(" ");
  };
  const row = (label: number) => ({
    activity_label: "Telling a story",
    ctx_a: take(35),
    ctx_b: "then",
    endings: Array.from({ length: 4 }, () => take(15)),
    label: `${label % 4}`,
  });
  for (const [split, count] of [
    ["train", 200],
    ["validation", 200],
  ] as const) {
    const rows = Array.from({ length: count }, (_, i) => JSON.stringify(row(i)));
    writeFileSync(path.join(data, `Rowan/hellaswag/default/${split}.jsonl`), rows.join("\n"));
  }
}

/** 15 M parameters and a vocabulary of 32000, as llama2.c's. */
async function writeModel(): Promise<void> {
  mkdirSync(model);
  const texts = readdirSync(data, { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".jsonl"));
  execFileSync(values.python, [
    path.join(root, "bench/peers/tokenizer.py"),
    model,
    "32000",
    ...texts.map((name) => path.join(data, name)),
  ]);
  const config = {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    vocab_size: 32000,
    hidden_size: 288,
    intermediate_size: 768,
    num_hidden_layers: 6,
    num_attention_heads: 6,
    num_key_value_heads: 6,
    max_position_embeddings: 2048,
    tie_word_embeddings: true,
    torch_dtype: "float32",
    bos_token_id: 0,
    eos_token_id: 1,
    rms_norm_eps: 1e-5,
  };
  const backend = Backend.open({ device: "cpu" });
  const weights = initialize(backend, modelFromConfig(config), 1);
  writeCheckpoint(model, config, weights.source());
  weights.free();
  backend.free();
}

const threads = ["--threads", values.threads];

/** Requests and seconds, loading the model left out for the harness and counted for us. */
function ours(task: string): { readonly requests: number; readonly seconds: number } {
  const cache = mkdtempSync(path.join(work, "cache-"));
  const flags = ["--tasks", task, "--limit", values.limit, "--data", data, "--device", "cpu", "--json", ...threads];
  const text = execFileSync(process.execPath, [path.join(root, "bin/coppice.cjs"), "evaluate", model, ...flags], {
    env: { ...process.env, COPPICE_CACHE: cache },
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"],
  });
  const { models } = JSON.parse(text) as EvaluateOutcome;
  const requests = models[0]?.tasks.reduce((sum, one) => sum + one.requests, 0) ?? 0;
  return { requests, seconds: models[0]?.seconds ?? Number.NaN };
}

function harness(task: string, batchSize: string): { readonly requests: number; readonly seconds: number } {
  const flags = ["--tasks", task, "--limit", `=${values.limit}`, "--batch-size", batchSize, "--speed", ...threads];
  const script = path.join(root, "bench/peers/harness.py");
  const text = execFileSync(values.python, [script, model, data, "-", ...flags], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"],
    maxBuffer: 1 << 28,
  });
  const line = text.split("\n").find((one) => one.startsWith('{"task"')) ?? "{}";
  return JSON.parse(line) as { requests: number; seconds: number };
}

writeBenchmarkData(data);
writeHellaswag();
await writeModel();
const rows: { task: string; contender: string; requests: number; perSecond: number[]; ratio?: number }[] = [];
for (const task of values.tasks.split(",")) {
  const contenders = [
    { name: "coppice", run: () => ours(task) },
    ...values["batch-sizes"].split(",").map((size) => ({
      name: `harness with transformers, batch size ${size}`,
      run: () => harness(task, size),
    })),
  ];
  const found = contenders.map(({ name }) => ({ task, contender: name, requests: 0, perSecond: [] as number[] }));
  for (let round = 0; round < Number(values.rounds); round++)
    contenders.forEach(({ run }, i) => {
      const { requests, seconds } = run();
      Object.assign(found[i] as object, { requests });
      found[i]?.perSecond.push(requests / seconds);
    });
  const best = Math.max(...found.slice(1).map(({ perSecond }) => median(perSecond)));
  rows.push(...found.map((one, i) => (i === 0 ? { ...one, ratio: median(one.perSecond) / best } : one)));
}
rmSync(work, { recursive: true });
mkdirSync(path.dirname(values.out), { recursive: true });
writeFileSync(values.out, `${JSON.stringify(rows, null, 2)}\n`);
console.log(
  markdown(
    ["task", "contender", "requests", "requests/s (median)", "all", "times the harness's best"],
    rows.map(({ task, contender, requests, perSecond, ratio }) => [
      task,
      contender,
      `${requests}`,
      median(perSecond).toFixed(1),
      perSecond.map((value) => value.toFixed(1)).join(", "),
      ratio?.toFixed(2) ?? "",
    ]),
  ),
);
