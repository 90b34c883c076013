/**
 * The matrix products of a training step, ours beside oneDNN's: each product in turn, again and again; the best of two to ten counts
 * in a round, the median over rounds.
 *
 *     npm run build && npx tsx bench/matmul.ts [--python .venv/bin/python] [--rounds 5] [--threads 2]
 *
 * Ours reads and writes f32 and converts on the way; oneDNN's reads and writes bf16.
 */
import path from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { parseArgs } from "node:util";
import { median } from "../src/system/statistics.js";
import { Contender, markdown } from "./lines.js";

const { values } = parseArgs({
  options: {
    python: { type: "string", default: "python3" },
    rounds: { type: "string", default: "5" },
    threads: { type: "string", default: "2" },
  },
});

/** rows, terms, columns of x w'. The last of each model is its head, all rows at once and as many as we compute at a time. */
const PRODUCTS: Readonly<Record<string, readonly (readonly [number, number, number])[]>> = {
  "15M": [
    ...([
      [1024, 288, 288],
      [1024, 288, 768],
      [1024, 768, 288],
    ] as const),
    ...([
      [1024, 288, 32000],
      [256, 288, 32000],
    ] as const),
  ],
  "110M": [
    ...([
      [512, 768, 768],
      [512, 768, 2048],
      [512, 2048, 768],
    ] as const),
    ...([
      [512, 768, 32000],
      [256, 768, 32000],
    ] as const),
  ],
  "60M": [
    ...([
      [512, 384, 384],
      [512, 384, 1024],
      [512, 1024, 384],
    ] as const),
    ...([
      [512, 384, 131072],
      [256, 384, 131072],
    ] as const),
  ],
};

const here = import.meta.dirname;
const ours = await Contender.start("coppice", process.execPath, [path.join(here, "products.mjs"), values.threads]);
const peerArguments = [path.join(here, "peers/matmul.py"), "--threads", values.threads];
const peer = await Contender.start("oneDNN", values.python, peerArguments);
const rows = [];
for (const [model, products] of Object.entries(PRODUCTS))
  for (const product of products) {
    const times: { ours: number[]; peer: number[] } = { ours: [], peer: [] };
    for (let round = 0; round < Number(values.rounds); round++) {
      await wait(100);
      times.ours.push(await ours.ask(product.join(" ")));
      await wait(100);
      times.peer.push(await peer.ask(product.join(" ")));
    }
    const rate = (seconds: number[]) => (6 * product[0] * product[1] * product[2]) / median(seconds) / 1e9;
    const [we, they] = [rate(times.ours), rate(times.peer)];
    rows.push([`${model}: ${product.join(" x ")}`, we.toFixed(0), they.toFixed(0), (we / they).toFixed(2)]);
  }
ours.stop();
peer.stop();
console.log(markdown(["rows x terms x columns", "coppice, GFLOP/s", "oneDNN bf16, GFLOP/s", "ratio"], rows));
