import { availableParallelism, freemem } from "node:os";
import { dataBytes } from "../ggml/dtype.js";
import { Backend, canKeepThreads, type DeviceKind, type StoredDType } from "../ggml/index.js";
import { Graph, ops, TensorStore } from "../tensor/index.js";
import type { DeviceProfile } from "./profiles.js";

/** Weights that no cache holds, and weights that stay in one: [rows, columns]. */
const LARGE = [32768, 2048] as const;
const SMALL = [8192, 2048] as const;
/** Times that each is multiplied; their median counts. */
const ROUNDS = 15;

/** Measures the device that ggml computes on here: what it reads and what it multiplies in a second, one token at a time. */
export async function measureThisMachine(
  options: { device?: DeviceKind | "auto"; threads?: number } = {},
): Promise<DeviceProfile> {
  const cores = availableParallelism();
  // small models are faster on one thread where threads start slowly: whichever is faster is what llama.cpp is given, too
  const tried = options.threads === undefined ? [...new Set([1, cores])] : [options.threads];
  const measured: { bandwidth: number; compute: number }[] = [];
  let usableBytes = 0.75 * freemem();
  let name = "CPU";
  for (const threads of tried) {
    const backend = Backend.open({ device: options.device ?? "auto", threads, keepThreads: canKeepThreads() });
    try {
      if (backend.device.kind !== "cpu") usableBytes = 0.9 * backend.device.memoryFreeBytes;
      name = backend.device.description;
      const large = await secondsOf(backend, "q8_0", LARGE);
      const small = await secondsOf(backend, "q4_k", SMALL);
      measured.push({
        bandwidth: dataBytes("q8_0", LARGE[0] * LARGE[1]) / large,
        compute: (2 * SMALL[0] * SMALL[1]) / small,
      });
    } finally {
      backend.free();
    }
  }
  const best = measured.reduce((a, b) => (b.bandwidth + b.compute > a.bandwidth + a.compute ? b : a));
  return {
    id: "this-machine",
    name: `This machine (${name})`,
    kind: "this",
    usableBytes,
    contextLength: 8192,
    ...best,
  };
}

/** Seconds of a product of a vector with weights. */
async function secondsOf(
  backend: Backend,
  dtype: StoredDType,
  [rows, columns]: readonly [number, number],
): Promise<number> {
  const store = new TensorStore(backend, 1);
  const weights = store.add("w", [rows, columns], dtype);
  store.allocate();
  store.write(weights, new Uint8Array(dataBytes(dtype, rows * columns)).fill(1));
  const g = new Graph(backend);
  const x = g.input("x", "f32", [1, columns]);
  g.output(ops.linear(g, x, weights));
  g.write(x, new Float32Array(columns).fill(0.5));
  try {
    const seconds: number[] = [];
    for (let round = 0; round < ROUNDS; round++) {
      const began = performance.now();
      await g.run();
      seconds.push((performance.now() - began) / 1000);
    }
    return seconds.sort((a, b) => a - b)[ROUNDS >> 1] ?? Number.NaN;
  } finally {
    g.free();
    store.free();
  }
}
