/**
 * Prunes a sharded checkpoint of random weights larger than memory should need, and says how much memory it took.
 *
 *     npx tsx bench/memory.ts [--size-gb 4.5] [--dir /tmp/coppice-memory]
 */
import { spawnSync } from "node:child_process";
import { existsSync, rmSync } from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";
import { saveScores } from "../src/prune/index.js";
import { Random } from "../src/system/random.js";
import { randomCheckpoint } from "./random-checkpoint.js";

const { values } = parseArgs({
  options: { "size-gb": { type: "string", default: "4.5" }, dir: { type: "string", default: "/tmp/coppice-memory" } },
});
const source = path.join(values.dir, "model");
const scoresFile = path.join(values.dir, "scores.safetensors");
const model = randomCheckpoint(source, Number(values["size-gb"]));
if (!existsSync(scoresFile)) {
  const random = new Random(2);
  const grouped = model.groups.map(({ groupedBy }) => groupedBy);
  const dimensions = new Set([...model.scoredBy.map(({ dimension }) => dimension), ...grouped, "layers"]);
  const scoresOf = (name: string) => Float32Array.from({ length: model.sizes[name] ?? 0 }, () => random.uniform());
  saveScores(scoresFile, new Map([...dimensions].map((name) => [name, scoresOf(name)])));
}

const out = path.join(values.dir, "pruned");
rmSync(out, { recursive: true, force: true });
const started = performance.now();
const main = path.resolve(import.meta.dirname, "../bin/coppice.cjs");
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
