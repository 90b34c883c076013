/**
 * Cholesky factorization, solves, inverses and eigenvectors, ours beside SciPy's (OpenBLAS): each task in turn, the best round
 * counts. GFLOP/s by the textbook's count (product 2 n³, factor n³ / 3, solve with n right-hand sides 2 n³, inverse 2 n³ / 3),
 * and beside a plain product of the same engine.
 *
 *     npx tsx bench/linear-algebra.ts [--sizes 1536,4096] [--python .venv/bin/python] [--rounds 3] [--threads 2] [--device cpu]
 *         [--kernels auto] [--eigen 576]
 */
import path from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { parseArgs } from "node:util";
import { Backend, type DeviceKind } from "../src/ggml/index.js";
import { Cholesky, type Matrix, multiply, symmetricEigen } from "../src/linear-algebra/index.js";
import { Random } from "../src/system/random.js";
import { Graph, ops, TensorStore } from "../src/tensor/index.js";
import { Contender, markdown } from "./lines.js";

const { values } = parseArgs({
  options: {
    sizes: { type: "string", default: "1536,4096" },
    eigen: { type: "string", default: "576" },
    python: { type: "string" },
    rounds: { type: "string", default: "3" },
    threads: { type: "string", default: "2" },
    device: { type: "string", default: "cpu" },
    kernels: { type: "string", default: "auto" },
  },
});
const backend = Backend.open({
  device: values.device as DeviceKind,
  threads: Number(values.threads),
  kernels: values.kernels,
});
const peer =
  values.python === undefined
    ? undefined
    : await Contender.start("SciPy", values.python, [
        path.join(import.meta.dirname, "peers/linear_algebra.py"),
        "--threads",
        values.threads,
      ]);

const sizesOf = (list: string) => list.split(",").filter(Boolean).map(Number);

/** Uniform numbers in [-1/2, 1/2). */
function randomMatrix(size: number): Matrix {
  const random = new Random(size);
  return { rows: size, columns: size, data: Float32Array.from({ length: size * size }, () => random.uniform() - 0.5) };
}

/** The best of the rounds, in seconds. */
async function best(task: () => Promise<number>): Promise<number> {
  const times: number[] = [];
  for (let round = 0; round < Number(values.rounds); round++) {
    await wait(100);
    times.push(await task());
  }
  return Math.min(...times);
}

async function seconds(task: () => Promise<void>): Promise<number> {
  const startedAt = performance.now();
  await task();
  return (performance.now() - startedAt) / 1000;
}

/** A product of matrices that are on the device: what the engine can do at most. */
async function engineProduct(size: number): Promise<number> {
  const store = new TensorStore(backend, 2);
  const [a, b] = [store.add("a", [size, size], "f32"), store.add("b", [size, size], "f32")];
  store.allocate();
  for (const tensor of store) store.write(tensor, randomMatrix(size).data);
  const g = new Graph(backend);
  g.output(ops.matmul(g, a, b));
  g.compile();
  const time = await best(() => seconds(() => g.run()));
  g.free();
  store.free();
  return time;
}

/** FLOPs of a task, in n³. */
const FLOPS = { product: 2, factor: 1 / 3, solve: 1 / 3 + 2, inverse: 1 };

/** Our time for each task. */
async function ourTimes(size: number): Promise<Record<keyof typeof FLOPS, number>> {
  const product = await engineProduct(size);
  const x = randomMatrix(size);
  const a = await multiply(backend, x, x, { transposeA: true });
  const ridge = size / 12; // the mean of the diagonal
  const factored = (use: (factor: Cholesky) => Promise<unknown>) => () =>
    seconds(async () => {
      const factor = await Cholesky.factor(backend, a, { ridge });
      await use(factor);
      factor.free();
    });
  return {
    product,
    factor: await best(factored(async () => {})),
    solve: await best(factored((factor) => factor.solve(x))),
    inverse: await best(factored((factor) => factor.invert())),
  };
}

const rows: (string | number)[][] = [];
for (const size of sizesOf(values.sizes)) {
  const ours = await ourTimes(size);
  for (const task of Object.keys(FLOPS) as (keyof typeof FLOPS)[]) {
    const rate = (time: number) => ((FLOPS[task] * size ** 3) / time / 1e9).toFixed(0);
    const peers: string[] = [];
    for (const type of ["float32", "float64"]) {
      if (peer === undefined) continue;
      const time = await best(() => peer.ask(`${task} ${type} ${size}`));
      peers.push(rate(time), (time / ours[task]).toFixed(2));
    }
    const ofProduct = (FLOPS[task] / ours[task] / (FLOPS.product / ours.product)).toFixed(2);
    rows.push([`${size}: ${task}`, ours[task].toFixed(2), rate(ours[task]), ofProduct, ...peers]);
  }
}
const peerHead = peer === undefined ? [] : ["SciPy f32, GFLOP/s", "ours / f32", "SciPy f64, GFLOP/s", "ours / f64"];
console.log(markdown(["size: task", "seconds", "GFLOP/s", "of the product's", ...peerHead], rows));

const eigenRows: (string | number)[][] = [];
for (const size of sizesOf(values.eigen)) {
  const x = randomMatrix(size);
  const a = await multiply(backend, x, x, { transposeA: true });
  const row: (string | number)[] = [size];
  for (const library of ["lapack", "ml-matrix"] as const)
    row.push((await best(() => seconds(async () => void (await symmetricEigen(a, { library }))))).toFixed(2));
  if (peer !== undefined) row.push((await best(() => peer.ask(`eigen float64 ${size}`))).toFixed(2));
  eigenRows.push(row);
}
const eigenHead = [
  "size",
  "LAPACK, seconds",
  "ml-matrix, seconds",
  ...(peer === undefined ? [] : ["SciPy f64, seconds"]),
];
if (eigenRows.length > 0) console.log(`\n${markdown(eigenHead, eigenRows)}`);
backend.free();
peer?.stop();
