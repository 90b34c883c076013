/**
 * A distillation step of ours beside PyTorch's: every contender is set up, then each takes a step in turn, again and again.
 *
 *     npm run build && npx tsx bench/training.ts [--python .venv/bin/python] [--shapes 15M,110M,60M] [--rounds 7]
 *         [--threads N] [--dtypes bf16,f32] [--low-memory] [--out bench/results/training.json]
 *
 * --threads: of either; by default as many as `coppice` finds to be fastest on this machine.
 * --dtypes: PyTorch's; without instructions for it, its bf16 takes minutes a step.
 * --low-memory: all recompute activations, keep moments in 8 bits and free gradients as they come; without our kernels and compiled
 * variants, to leave room for a shape of a billion parameters.
 *
 * The peer needs bench/peers/requirements.txt.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { parseArgs } from "node:util";
import { Backend } from "../src/ggml/index.js";
import { median } from "../src/system/statistics.js";
import { Contender, markdown } from "./lines.js";

const { values } = parseArgs({
  options: {
    python: { type: "string", default: "python3" },
    shapes: { type: "string", default: "15M,110M,60M" },
    rounds: { type: "string", default: "7" },
    threads: { type: "string" },
    dtypes: { type: "string", default: "bf16,f32" },
    "low-memory": { type: "boolean", default: false },
    out: { type: "string", default: "bench/results/training.json" },
  },
});

/** Teacher and student are both of the shape; tied embeddings. 135M is SmolLM2-135M's. */
const SHAPES: Readonly<Record<string, Readonly<Record<string, number>>>> = {
  "15M": { hidden: 288, ffn: 768, layers: 6, heads: 6, vocab: 32000, batch: 4, sequence: 256 },
  "110M": { hidden: 768, ffn: 2048, layers: 12, heads: 12, vocab: 32000, batch: 1, sequence: 512 },
  "135M": { hidden: 576, ffn: 1536, layers: 30, heads: 9, kvHeads: 3, vocab: 49152, batch: 1, sequence: 1024 },
  "1.2B": { hidden: 2048, ffn: 8192, layers: 16, heads: 16, vocab: 49152, batch: 1, sequence: 256 },
  "60M": { hidden: 384, ffn: 1024, layers: 6, heads: 6, vocab: 131072, batch: 2, sequence: 256 },
};

/** Long enough for the threads of whoever was last to go to sleep. */
const PAUSE_MS = 300;

/** The same measures as the peer's --low-memory. */
const LESS_MEMORY = { recompute: true, optimizerState: "8bit", freeGradients: true };

const here = import.meta.dirname;
const threads = values.threads === undefined ? await fastestThreads() : Number(values.threads);

/** What `coppice` would take here; PyTorch gets as many. */
async function fastestThreads(): Promise<number> {
  const backend = Backend.open({ device: "cpu" });
  await backend.measureThreads();
  const count = backend.threads;
  backend.free();
  return count;
}

function ours(name: string, shape: Readonly<Record<string, number>>, kernels: string): Promise<Contender> {
  const { batch, sequence, ...sizes } = shape;
  const model = Object.entries(sizes)
    .map(([key, value]) => `${key}=${value}`)
    .join(",");
  const less = values["low-memory"] ? LESS_MEMORY : {};
  const job = { model, batchSize: batch, sequenceLength: sequence, threads, kernels, ...less };
  return Contender.start(name, process.execPath, [path.join(here, "step.mjs"), JSON.stringify(job)]);
}

function pytorch(name: string, shape: Readonly<Record<string, number>>, flags: readonly string[]): Promise<Contender> {
  const sizes = Object.entries({ ...shape, threads }).flatMap(([key, value]) => [
    `--${key === "kvHeads" ? "kv-heads" : key}`,
    String(value),
  ]);
  const less = values["low-memory"] ? ["--low-memory"] : [];
  return Contender.start(name, values.python, [path.join(here, "peers/distill_step.py"), ...sizes, ...flags, ...less]);
}

const results: Record<string, unknown>[] = [];
for (const name of values.shapes.split(",")) {
  const shape = SHAPES[name];
  if (shape === undefined) throw new Error(`there is no shape ${name}, only ${Object.keys(SHAPES).join(", ")}`);
  const starts = values["low-memory"]
    ? [() => ours("coppice", shape, "auto"), () => pytorch("PyTorch f32", shape, ["--dtype", "f32"])]
    : [
        () => ours("coppice", shape, "auto"),
        () => ours("coppice without kernels", shape, "none"),
        ...values.dtypes
          .split(",")
          .flatMap((dtype) => [
            () => pytorch(`PyTorch ${dtype}`, shape, ["--dtype", dtype]),
            () => pytorch(`PyTorch ${dtype}, compiled`, shape, ["--dtype", dtype, "--compile"]),
          ]),
      ];
  const tokens = shape.batch! * shape.sequence!;
  const measured: { name: string; times: number[]; tokensPerSecond: number; memory: number }[] = [];
  // in turn, or where memory is for one only, one after the other
  for (const group of values["low-memory"] ? starts.map((start) => [start]) : [starts]) {
    const contenders: Contender[] = [];
    for (const start of group) contenders.push(await start());
    const seconds = new Map(contenders.map((contender) => [contender, [] as number[]]));
    for (let round = 0; round < Number(values.rounds); round++)
      for (const contender of contenders) {
        await wait(PAUSE_MS);
        seconds.get(contender)!.push(await contender.ask("step"));
      }
    for (const contender of contenders) {
      const memory = await contender.ask("memory");
      contender.stop();
      const times = seconds.get(contender)!;
      measured.push({ name: contender.name, times, tokensPerSecond: tokens / median(times), memory });
    }
  }
  const [we] = measured;
  const rows = measured.map((m) => [
    m.name,
    m.tokensPerSecond.toFixed(0),
    (we!.tokensPerSecond / m.tokensPerSecond).toFixed(2),
    (m.memory / 2 ** 20).toFixed(0),
    (we!.memory / m.memory).toFixed(2),
  ]);
  console.log(`\n${name}: ${JSON.stringify(shape)}, ${threads} threads, median of ${values.rounds}\n`);
  console.log(markdown(["", "tokens/s", "coppice / this", "peak MiB", "coppice / this"], rows));
  results.push({ shape: name, sizes: shape, threads, measured });
}
mkdirSync(path.dirname(values.out), { recursive: true });
writeFileSync(values.out, `${JSON.stringify(results, null, 2)}\n`);
