import { availableParallelism, freemem } from "node:os";
import { dataBytes } from "../ggml/dtype.js";
import { Backend, canKeepThreads, type DeviceKind, type StoredDType } from "../ggml/index.js";
import { defineOp, elementCount, Graph, ops, type Shape, type Tensor, TensorStore } from "../tensor/index.js";
import type { DeviceProfile } from "./profiles.js";

/** Weights that no cache holds, as a model's: [matrices, rows, columns]. */
const [MATRICES, ROWS, COLUMNS] = [8, 4096, 2048] as const;
/** Types that files consist of, by what a weight takes; others count as the next larger one that was measured. */
const TYPES = ["f16", "q8_0", "q6_k", "q5_k", "q4_k", "iq4_xs", "q3_k", "iq3_xxs", "q2_k"] as const;
/** Attention of one token: [query heads, heads of keys and values, tokens before it, size of a head]. */
const [HEADS, KV_HEADS, PAST, HEAD_SIZE] = [16, 4, 2048, 64] as const;
/** Operations after each other that do next to nothing. */
const STARTS = 256;
/** Times that each is computed; their median counts. */
const ROUNDS = 9;

/** What llama.cpp computes for one token's attention: q [heads, 1, size], keys and values [heads, tokens, size] in f16. */
const tokenAttention = defineOp<[q: Tensor, keys: Tensor, values: Tensor], { readonly scale: number }>(
  "tokenAttention",
  3,
  {
    accepts: [undefined, ["f16"], ["f16"]],
    shape: ([q]) => [1, q.shape[0] ?? 0, q.shape[2] ?? 0],
    build: ({ f, context }, [q, keys, values], { scale }) =>
      f.ggml_flash_attn_ext(context, q.handle, keys.handle, values.handle, null, scale, 0, 0),
  },
);

/** Measures the device that ggml computes on here, one token at a time: what it multiplies and reads in a second, by type. */
export async function measureThisMachine(
  options: { device?: DeviceKind | "auto"; threads?: number } = {},
): Promise<DeviceProfile> {
  const cores = availableParallelism();
  // small models are faster on one thread where threads start slowly: whichever is faster is what llama.cpp is given, too
  const tried = options.threads === undefined ? [...new Set([1, cores])] : [options.threads];
  const measured: DeviceProfile[] = [];
  for (const threads of tried) {
    const { device = "auto" } = options;
    // llama.cpp's kernels are to be measured, not ours
    const backend = Backend.open({ device, threads, keepThreads: canKeepThreads(), kernels: "none" });
    try {
      measured.push(await measure(backend));
    } finally {
      backend.free();
    }
  }
  return measured.reduce((a, b) => (b.compute > a.compute ? b : a));
}

async function measure(backend: Backend): Promise<DeviceProfile> {
  const { kind, description, memoryFreeBytes } = backend.device;
  const weights = MATRICES * ROWS * COLUMNS;
  const computeOf: Partial<Record<StoredDType, number>> = {};
  let bandwidth = 0;
  for (const dtype of TYPES) {
    const seconds = await secondsOfProducts(backend, dtype);
    computeOf[dtype] = (2 * weights) / seconds;
    bandwidth = Math.max(bandwidth, dataBytes(dtype, weights) / seconds);
  }
  return {
    id: "this-machine",
    name: `This machine (${description})`,
    kind: kind === "cpu" ? "laptop" : "gpu",
    usableBytes: kind === "cpu" ? 0.75 * freemem() : 0.9 * memoryFreeBytes,
    contextLength: 8192,
    bandwidth,
    compute: computeOf.q4_k ?? 0,
    measured: {
      computeOf,
      attentionCompute: (4 * HEADS * PAST * HEAD_SIZE) / (await secondsOfAttention(backend)),
      startSeconds: (await secondsOfStarts(backend)) / STARTS,
    },
  };
}

/** Seconds of products of a vector with matrices of weights. */
function secondsOfProducts(backend: Backend, dtype: StoredDType): Promise<number> {
  const names = Array.from({ length: MATRICES }, (_, i) => `w${i}`);
  return timed(backend, { names, shape: [ROWS, COLUMNS], dtype }, [1, COLUMNS], (g, x, matrices) => {
    for (const one of matrices) g.output(ops.linear(g, x, one));
  });
}

function secondsOfAttention(backend: Backend): Promise<number> {
  const cache = { names: ["k", "v"], shape: [KV_HEADS, PAST, HEAD_SIZE], dtype: "f16" } as const;
  return timed(backend, cache, [HEADS, 1, HEAD_SIZE], (g, q, [keys, values]) => {
    if (keys && values) g.output(tokenAttention(g, q, keys, values, { scale: HEAD_SIZE ** -0.5 }));
  });
}

function secondsOfStarts(backend: Backend): Promise<number> {
  return timed(backend, undefined, [1, HEAD_SIZE], (g, x) => {
    let sum = x;
    for (let i = 0; i < STARTS; i++) sum = ops.add(g, sum, x);
    g.output(sum);
  });
}

interface Stored {
  readonly names: readonly string[];
  readonly shape: Shape;
  readonly dtype: StoredDType;
}

/** Seconds that a computation of an input and stored tensors takes. */
async function timed(
  backend: Backend,
  stored: Stored | undefined,
  inputShape: Shape,
  build: (g: Graph, x: Tensor, stored: readonly Tensor[]) => void,
): Promise<number> {
  const store = new TensorStore(backend, stored?.names.length ?? 0);
  const tensors = stored?.names.map((name) => store.add(name, stored.shape, stored.dtype)) ?? [];
  if (stored !== undefined) {
    store.allocate();
    const filled = new Uint8Array(dataBytes(stored.dtype, elementCount(stored.shape))).fill(1);
    for (const one of tensors) store.write(one, filled);
  }
  const g = new Graph(backend);
  const x = g.input("x", "f32", inputShape);
  build(g, x, tensors);
  g.write(x, new Float32Array(elementCount(inputShape)).fill(0.5));
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
