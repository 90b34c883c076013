/**
 * Calibration (importance of every axis) beside a forward pass alone, batch by batch in turn.
 *
 *     npm run build && npx tsx bench/calibration.ts [--rounds 5] [--threads 2]
 */
import path from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { parseArgs } from "node:util";
import { median } from "../src/system/statistics.js";
import { Contender, markdown } from "./lines.js";

const { values } = parseArgs({
  options: { rounds: { type: "string", default: "5" }, threads: { type: "string", default: "2" } },
});

const SHAPES: Readonly<Record<string, string>> = {
  "15M": "hidden=288,ffn=768,layers=6,heads=6,vocab=32000",
  "110M": "hidden=768,ffn=2048,layers=12,heads=12,vocab=32000",
};

const rows = [];
for (const [name, model] of Object.entries(SHAPES)) {
  const contenders = [];
  for (const work of ["forward", "calibrate"]) {
    const job = { model, work, batchSize: 4, sequenceLength: 256, threads: Number(values.threads), kernels: "auto" };
    const worker = path.join(import.meta.dirname, "step.mjs");
    contenders.push(await Contender.start(work, process.execPath, [worker, JSON.stringify(job)]));
  }
  const times: number[][] = contenders.map(() => []);
  for (let round = 0; round < Number(values.rounds); round++)
    for (const [i, contender] of contenders.entries()) {
      await wait(300);
      times[i]!.push(await contender.ask("step"));
    }
  const [forward, calibrate] = await Promise.all(
    contenders.map(async (contender, i) => (await contender.ask("tokens")) / median(times[i]!)),
  );
  for (const contender of contenders) contender.stop();
  rows.push([name, forward!.toFixed(0), calibrate!.toFixed(0), (calibrate! / forward!).toFixed(2)]);
}
console.log(markdown(["", "forward, tokens/s", "calibration, tokens/s", "ratio"], rows));
