/**
 * Prunes a sharded checkpoint of random weights with less memory than it has bytes, and says how much it took: a plain cut with known
 * scores, and one that is calibrated, searched and refitted, killed on the way.
 *
 *     npx tsx bench/memory.ts [--size-gb 4.5] [--memory 1GiB] [--samples 8] [--refit-samples 8] [--only refitted] [--target 0.7x]
 *         [--dir /tmp/coppice-memory]
 *     npx tsx bench/memory.ts --nemo-layers 40 --target 8.4B --samples 128    # Mistral NeMo 12B, 24.5 GB
 */
import { spawn } from "node:child_process";
import { existsSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";
import { countParameters, type Model } from "../src/models/index.js";
import { saveScores } from "../src/prune/index.js";
import { Random } from "../src/system/random.js";
import { MISTRAL_NEMO, randomCheckpoint, randomLlama } from "./random-checkpoint.js";

const { values } = parseArgs({
  options: {
    "size-gb": { type: "string", default: "4.5" },
    memory: { type: "string", default: "1GiB" },
    "nemo-layers": { type: "string" },
    samples: { type: "string", default: "8" },
    /** As many as --samples by default. */
    "refit-samples": { type: "string" },
    /** Only what has this in its name. */
    only: { type: "string", default: "" },
    target: { type: "string", default: "0.7x" },
    dir: { type: "string", default: "/tmp/coppice-memory" },
  },
});
const source = path.join(values.dir, "model");
const model =
  values["nemo-layers"] === undefined
    ? randomCheckpoint(source, Number(values["size-gb"]))
    : randomLlama(source, { ...MISTRAL_NEMO, layers: Number(values["nemo-layers"]) });

/** What a run took. */
interface Run {
  readonly seconds: number;
  readonly peakBytes: number;
  readonly parameters: number;
}

const main = path.resolve(import.meta.dirname, "../bin/coppice.cjs");
const script = `process.on("exit",()=>process.stderr.write("PEAK "+process.resourceUsage().maxRSS+"\\n"));await import("${main}")`;

/** Runs a command of ours. @param killAt kills it when its progress matches, and runs it again */
async function run(args: readonly string[], killAt?: RegExp): Promise<Run> {
  const started = performance.now();
  const child = spawn(process.execPath, ["--input-type=module", "-e", script, main, ...args, "--json"]);
  let [stdout, stderr] = ["", ""];
  child.stdout.on("data", (chunk: Buffer) => {
    stdout += chunk.toString();
  });
  child.stderr.on("data", (chunk: Buffer) => {
    process.stderr.write(chunk);
    stderr += chunk.toString();
    if (killAt?.test(stderr)) child.kill("SIGKILL");
  });
  const code = await new Promise((resolve) => child.on("close", resolve));
  const seconds = (performance.now() - started) / 1000;
  if (child.signalCode === "SIGKILL") {
    const rest = await run(args);
    return { ...rest, seconds: seconds + rest.seconds };
  }
  if (code !== 0) throw new Error(stderr);
  const { parameters } = JSON.parse(stdout) as { parameters: { to: number } };
  return { seconds, peakBytes: 1024 * Number(/PEAK (\d+)/.exec(stderr)?.[1]), parameters: parameters.to };
}

/** Scores for a cut that measures nothing. */
function randomScores(file: string, { groups, scoredBy, sizes }: Model): void {
  if (existsSync(file)) return;
  const random = new Random(2);
  const dimensions = new Set([
    ...scoredBy.map(({ dimension }) => dimension),
    ...groups.map(({ groupedBy }) => groupedBy),
    "layers",
  ]);
  const scoresOf = (name: string) => Float32Array.from({ length: sizes[name] ?? 0 }, () => random.uniform());
  saveScores(file, new Map([...dimensions].map((name) => [name, scoresOf(name)])));
}

/** A text of about so many of the random model's tokens, which are bytes. */
function randomText(name: string, tokens: number, seed: number): string {
  const file = path.join(values.dir, name);
  const random = new Random(seed);
  const letters = Array.from({ length: tokens }, () => String.fromCharCode(97 + Math.floor(26 * random.uniform())));
  writeFileSync(file, letters.join(""));
  return file;
}

const scores = path.join(values.dir, "scores.safetensors");
randomScores(scores, model);
const out = path.join(values.dir, "pruned");
const cut = async (...args: string[]) => {
  rmSync(out, { recursive: true, force: true });
  return ["prune", source, "--out", out, ...args];
};
const samples = Number(values.samples);
const data = ["--data", randomText("data.txt", 256 * samples + 1, 1), "--validation", randomText("held.txt", 1025, 2)];
const refitSamples = values["refit-samples"] ?? values.samples;
const measured = ["--samples", values.samples, "--refit-samples", refitSamples, "--candidates", "2"];
const start = ["--start", "refit", "--memory", values.memory, ...data, ...measured];
const work: readonly (readonly [name: string, extra: readonly string[], killAt?: RegExp])[] = [
  ["cut, scores known", ["--scores", scores]],
  [
    `calibrated on ${256 * samples} tokens, searched, refitted on ${256 * Number(refitSamples)} and cut, killed on the way; --memory ${values.memory}`,
    start,
    /statistics.*[2-9] of/,
  ],
];
const runs: (readonly [string, Run])[] = [];
for (const [name, extra, killAt] of work.filter(([title]) => title.includes(values.only)))
  runs.push([name, await run(await cut("--target", values.target, ...extra), killAt)]);
const gigabytes = (parameters: number) => `${((2 * parameters) / 1e9).toFixed(2)} GB`;
console.log(
  `| of ${gigabytes(countParameters(model.parameters, model.sizes))} | to | seconds | peak resident memory |`,
);
console.log("| --- | ---: | ---: | ---: |");
for (const [name, { seconds, peakBytes, parameters }] of runs)
  console.log(
    `| ${name} | ${gigabytes(parameters)} | ${seconds.toFixed(0)} | ${(peakBytes / 2 ** 20).toFixed(0)} MiB |`,
  );
