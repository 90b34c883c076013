/**
 * The parts of a training step that take the most time, ours beside PyTorch's in bf16: matrix products beside oneDNN's, attention
 * beside SDPA, the head with its loss. Each in turn, again and again; the best of two to ten counts in a round, the median over rounds.
 *
 *     npm run build && npx tsx bench/step-parts.ts [--python .venv/bin/python] [--rounds 5] [--threads 2] [--kinds matmul,attention,head]
 *
 * Ours reads and writes f32 and converts on the way; PyTorch's reads and writes bf16.
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
    kinds: { type: "string", default: "matmul,attention,head" },
  },
});

interface Work {
  readonly model: string;
  readonly sizes: readonly number[];
}

interface Kind {
  readonly title: string;
  readonly work: readonly Work[];
  /** Operations that a forward pass needs, and how many times as many one with gradients does. */
  readonly flops: (sizes: readonly number[]) => number;
  readonly withGradients: number;
}

const work = (model: string, ...sizes: number[]): Work => ({ model, sizes });

const KINDS: Readonly<Record<string, Kind>> = {
  matmul: {
    title: "x w': rows x terms x columns",
    work: [
      ...[work("15M", 1024, 288, 288), work("15M", 1024, 288, 768), work("15M", 1024, 768, 288)],
      ...[work("110M", 512, 768, 768), work("110M", 512, 768, 2048), work("110M", 512, 2048, 768)],
      ...[work("60M", 512, 384, 384), work("60M", 512, 384, 1024), work("60M", 512, 1024, 384)],
      ...[work("1.2B", 256, 2048, 2048), work("1.2B", 256, 2048, 8192), work("1.2B", 256, 8192, 2048)],
    ],
    flops: ([n, k, m]) => 2 * n! * k! * m!,
    withGradients: 3,
  },
  attention: {
    title: "attention: batch x length x heads x kvHeads x headDim",
    work: [
      ...[work("15M", 4, 256, 6, 6, 48), work("110M", 1, 512, 12, 12, 64), work("SmolLM2-135M", 1, 1024, 9, 3, 64)],
      ...[work("", 1, 2048, 9, 3, 64), work("", 1, 4096, 9, 3, 64), work("1.2B", 1, 256, 16, 16, 128)],
    ],
    // two products of each query with half of the keys; backwards four more
    flops: ([batch, length, heads, , dim]) => 2 * batch! * heads! * length! ** 2 * dim!,
    withGradients: 3,
  },
  head: {
    title: "head and cross-entropy: rows x hidden x vocabulary",
    work: [
      ...[work("15M", 1024, 288, 32000), work("110M", 512, 768, 32000), work("60M", 512, 384, 131072)],
      work("SmolLM2-135M", 1024, 576, 49152),
    ],
    flops: ([n, k, m]) => 2 * n! * k! * m!,
    withGradients: 3,
  },
};

const here = import.meta.dirname;
const ours = await Contender.start("coppice", process.execPath, [path.join(here, "step-parts.mjs"), values.threads]);
const peerArguments = [path.join(here, "peers/step_parts.py"), "--threads", values.threads];
const peer = await Contender.start("PyTorch", values.python, peerArguments);

async function secondsOf(question: string): Promise<readonly [ours: number, peer: number]> {
  const times: { ours: number[]; peer: number[] } = { ours: [], peer: [] };
  for (let round = 0; round < Number(values.rounds); round++) {
    await wait(100);
    times.ours.push(await ours.ask(question));
    await wait(100);
    times.peer.push(await peer.ask(question));
  }
  return [median(times.ours), median(times.peer)];
}

for (const name of values.kinds.split(",")) {
  const kind = KINDS[name];
  if (kind === undefined) throw new Error(`there is no kind ${name}, only ${Object.keys(KINDS).join(", ")}`);
  const rows = [];
  for (const { model, sizes } of kind.work) {
    const row = [`${model} ${sizes.join(" x ")}`.trim()];
    for (const pass of ["forward", "gradients"]) {
      const flops = kind.flops(sizes) * (pass === "forward" ? 1 : kind.withGradients);
      const rates = (await secondsOf(`${name} ${pass} ${sizes.join(" ")}`)).map((seconds) => flops / seconds / 1e9);
      const [we, they] = rates as [number, number];
      row.push(we.toFixed(0), they.toFixed(0), (we / they).toFixed(2));
    }
    rows.push(row);
  }
  const columns = ["coppice, GFLOP/s", "PyTorch", "ratio", "with gradients: coppice", "PyTorch", "ratio"];
  console.log(`\n${markdown([kind.title, ...columns], rows)}`);
}
ours.stop();
peer.stop();
