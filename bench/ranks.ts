/**
 * Training steps shared by several processes on this machine, by each MPI that is installed.
 *
 *     npm run build && npx tsx bench/ranks.ts [--ranks 1,2,4] [--shape 15M] [--steps 7]
 *
 * The same cores compute whatever the number of processes, so an efficiency of 1 means that sharing costs nothing.
 */
import { execFileSync, spawnSync } from "node:child_process";
import path from "node:path";
import { parseArgs } from "node:util";
import { median } from "../src/system/statistics.js";
import { markdown } from "./lines.js";

const { values } = parseArgs({
  options: {
    ranks: { type: "string", default: "1,2,4" },
    shape: { type: "string", default: "15M" },
    steps: { type: "string", default: "7" },
  },
});

const llama = (hidden: number, ffn: number, layers: number, heads: number) => ({
  model_type: "llama",
  architectures: ["LlamaForCausalLM"],
  hidden_size: hidden,
  intermediate_size: ffn,
  num_hidden_layers: layers,
  num_attention_heads: heads,
  num_key_value_heads: heads,
  vocab_size: 32000,
  max_position_embeddings: 512,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  tie_word_embeddings: true,
});
const SHAPES: Readonly<Record<string, object>> = {
  "15M": { config: llama(288, 768, 6, 6), batchSize: 8, sequenceLength: 256 },
  "110M": { config: llama(768, 2048, 12, 12), batchSize: 4, sequenceLength: 512 },
};

interface Measured {
  readonly seconds: readonly number[];
  /** A step's. */
  readonly traffic: { readonly bytes: number; readonly calls: number; readonly seconds: number };
}

const shape = SHAPES[values.shape];
if (shape === undefined) throw new Error(`there is no shape ${values.shape}, only ${Object.keys(SHAPES).join(", ")}`);
const job = JSON.stringify({ ...shape, steps: Number(values.steps) });
const env = { ...process.env, OMPI_ALLOW_RUN_AS_ROOT: "1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: "1" };
const program = [process.execPath, path.join(import.meta.dirname, "rank-steps.mjs"), job];
const run = ([command = "", ...args]: readonly string[]): Measured =>
  JSON.parse(execFileSync(command, args, { env, encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] })) as Measured;

const launchers = { "Open MPI": ["mpirun.openmpi", "--oversubscribe", "--bind-to", "none"], MPICH: ["mpirun.mpich"] };
const rows: string[][] = [];
const alone = median(run(program).seconds);
rows.push(["-", "1", alone.toFixed(3), "1.00", "", "", ""]);
for (const [name, launcher] of Object.entries(launchers)) {
  if (spawnSync(launcher[0] ?? "", ["--version"]).error !== undefined) continue;
  for (const ranks of values.ranks.split(",").filter((count) => count !== "1")) {
    const { seconds, traffic } = run([...launcher, "-n", ranks, ...program]);
    const step = median(seconds);
    rows.push([
      name,
      ranks,
      step.toFixed(3),
      (alone / step).toFixed(2),
      (traffic.bytes / 1e6).toFixed(0),
      traffic.calls.toFixed(0),
      traffic.seconds.toFixed(3),
    ]);
  }
}
console.log(
  markdown(["MPI", "processes", "step, s", "efficiency", "MB a rank and step", "calls", "seconds in calls"], rows),
);
