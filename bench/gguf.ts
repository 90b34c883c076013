/**
 * Export and quantization of a model of over 2 GB, beside plain copying and llama.cpp's own quantizer, alternating; each in a process
 * of its own, with its peak memory.
 *
 *     npm run build && npx tsx bench/gguf.ts [--size-gb 2.2] [--rounds 3] [--types q8_0,q4_0,q4_k_m] [--dir /tmp/coppice-gguf]
 */
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, rmSync, statSync } from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";
import { fileTypeOf, parseFileKind } from "../src/quantize/recipes.js";
import { median } from "../src/system/statistics.js";
import { markdown } from "./lines.js";
import { randomCheckpoint } from "./random-checkpoint.js";

const { values } = parseArgs({
  options: {
    "size-gb": { type: "string", default: "2.2" },
    rounds: { type: "string", default: "3" },
    types: { type: "string", default: "q8_0,q4_0,q4_k_m" },
    threads: { type: "string", default: "2" },
    dir: { type: "string", default: "/tmp/coppice-gguf" },
  },
});
const model = path.join(values.dir, "model");
randomCheckpoint(model, Number(values["size-gb"]));
const shards = readdirSync(model).filter((name) => name.endsWith(".safetensors"));
const bytes = shards.reduce((sum, name) => sum + statSync(path.join(model, name)).size, 0);
const root = path.resolve(import.meta.dirname, "..");
const main = path.join(root, "bin/coppice.cjs");
const exported = path.join(values.dir, "bf16.gguf");

interface Run {
  readonly seconds: number;
  readonly peakMiB: number;
}

/** Runs a script in a new process, which says at its end how much memory it took. */
function run(script: string, args: readonly string[]): Run {
  const whole = `process.on("exit",()=>process.stderr.write("\\nPEAK "+process.resourceUsage().maxRSS+"\\n"));${script}`;
  const started = performance.now();
  const child = spawnSync(process.execPath, ["--input-type=module", "-e", whole, ...args], {
    encoding: "utf8",
    cwd: root,
  });
  const seconds = (performance.now() - started) / 1000;
  if (child.status !== 0) throw new Error(child.stderr);
  return { seconds, peakMiB: Number(/PEAK (\d+)/.exec(child.stderr)?.[1]) / 1024 };
}

const coppice = (...args: string[]) =>
  run(`await import(${JSON.stringify(main)})`, [...args, "--threads", values.threads, "--json"]);

const copy = () => {
  const to = path.join(values.dir, "copy");
  const script = `import fs from "node:fs/promises";
    const buffer = Buffer.allocUnsafe(1 << 22);
    const out = await fs.open(${JSON.stringify(to)}, "w");
    for (const name of ${JSON.stringify(shards.map((name) => path.join(model, name)))}) {
      const from = await fs.open(name);
      for (let n; (n = (await from.read(buffer, 0, buffer.length)).bytesRead) > 0; ) await out.write(buffer, 0, n);
      await from.close();
    }
    await out.sync();`;
  const result = run(script, []);
  rmSync(to);
  return result;
};

const peer = (type: string) => {
  const to = path.join(values.dir, "theirs.gguf");
  const file = path.join(root, "bench/peers/llama-quantize.ts");
  const call = `[${JSON.stringify(exported)}, ${JSON.stringify(to)}, ${fileTypeOf(parseFileKind(type))}, { threads: ${values.threads} }]`;
  const script = `import { register } from "tsx/esm/api"; register();
    const { quantizeWithLlamaCpp } = await import(${JSON.stringify(file)});
    await quantizeWithLlamaCpp(...${call});
    const fs = await import("node:fs/promises"); const out = await fs.open(${JSON.stringify(to)}, "r+"); await out.sync();`;
  const result = run(script, []);
  rmSync(to);
  return result;
};

const ours = (type: string, from: string) => {
  const to = path.join(values.dir, "ours.gguf");
  const result = coppice("quantize", from, "--type", type, "--out", to);
  rmSync(to);
  return result;
};

const types = values.types.split(",");
const work: Record<string, () => Run> = {
  "plain copy": copy,
  "export to bf16": () => coppice("export", model, "--out", exported),
  ...Object.fromEntries(
    types.flatMap((type): [string, () => Run][] => [
      [`${type}, coppice, from safetensors`, () => ours(type, model)],
      [`${type}, coppice, from GGUF`, () => ours(type, exported)],
      [`${type}, llama.cpp, from GGUF`, () => peer(type)],
    ]),
  ),
};
if (!existsSync(exported)) work["export to bf16"]?.();
const results = new Map<string, Run[]>(Object.keys(work).map((name) => [name, []]));
for (let round = 0; round < Number(values.rounds); round++)
  for (const [name, measure] of Object.entries(work)) results.get(name)?.push(measure());

const of = (name: string, field: keyof Run) => median((results.get(name) ?? []).map((result) => result[field]));
console.log(`\n${(bytes / 1e9).toFixed(2)} GB of bf16, ${values.threads} threads, median of ${values.rounds}\n`);
console.log(
  markdown(
    ["", "seconds", "GB/s read", "share of copying", "llama.cpp's time / this", "peak MiB"],
    Object.keys(work).map((name) => {
      const seconds = of(name, "seconds");
      const theirs = `${name.split(",")[0]}, llama.cpp, from GGUF`;
      return [
        name,
        seconds.toFixed(1),
        (bytes / 1e9 / seconds).toFixed(2),
        (of("plain copy", "seconds") / seconds).toFixed(2),
        results.has(theirs) ? (of(theirs, "seconds") / seconds).toFixed(2) : "",
        of(name, "peakMiB").toFixed(0),
      ];
    }),
  ),
);
