import { availableParallelism } from "node:os";
import { fromFloat32 } from "../ggml/convert.js";
import { dataBytes } from "../ggml/dtype.js";
import { Backend, canKeepThreads, type DeviceKind, type Pointer, type StoredDType } from "../ggml/index.js";
import { freeMemory } from "../system/memory.js";
import { Random } from "../system/random.js";
import { median } from "../system/statistics.js";
import { defineOp, elementCount, Graph, ops, type Shape, type Tensor, TensorStore } from "../tensor/index.js";
import { type DeviceProfile, deviceProfile, THIS_MACHINE } from "./profiles.js";

/** Matrices of weights that together are larger than any cache. */
interface Matrices {
  readonly count: number;
  readonly rows: number;
  readonly columns: number;
}
/** The same number of weights in few long rows, as in large models, and in many short ones, as in small models. */
const LONG_ROWS: Matrices = { count: 8, rows: 4096, columns: 2048 };
const SHORT_ROWS: Matrices = { count: 128, rows: 1024, columns: 512 };
const rowCount = ({ count, rows }: Matrices): number => count * rows;
const WEIGHTS = rowCount(LONG_ROWS) * LONG_ROWS.columns;
/** The largest share of the time for long rows that is attributed to their number. */
const MAX_ROW_SHARE = 0.5;
/** The types that files mostly consist of, from large to small; others count as the nearest one in size. */
const TYPES = ["f16", "q8_0", "q6_k", "q5_k", "q4_k", "iq4_xs", "q3_k", "iq3_xxs", "q2_k"] as const;
/** Sizes of the measured attention of one token, which attends to PAST others. */
const [HEADS, KV_HEADS, PAST, HEAD_SIZE] = [16, 4, 2048, 64] as const;
const LAYERS = 12;
/** Consecutive operations with next to no work. */
const STARTS = 256;
/** How often each computation is timed; the median counts. */
const ROUNDS = 9;

/**
 * One token's attention as llama.cpp computes it, in f16: q [heads, 1, size], keys and values [tokens, heads, size] as in its cache,
 * and the mask [1, tokens].
 */
const tokenAttention = defineOp<[q: Tensor, keys: Tensor, values: Tensor, mask: Tensor], { readonly scale: number }>(
  "tokenAttention",
  4,
  {
    accepts: [undefined, ["f16"], ["f16"], ["f16"]],
    shape: ([
      {
        shape: [heads = 0, , size = 0],
      },
    ]) => [1, heads, size],
    build: ({ f, context }, [q, keys, values, mask], { scale }) => {
      const [k, v] = [keys, values].map(({ handle }) => f.ggml_permute(context, handle, 0, 2, 1, 3)) as [
        Pointer,
        Pointer,
      ];
      return f.ggml_flash_attn_ext(context, q.handle, k, v, mask.handle, scale, 0, 0);
    },
  },
);

let thisMachine: Promise<DeviceProfile> | undefined;

/**
 * A device by its id. This machine is measured on the first call, which takes seconds, and remembered.
 * @throws UsageError for an unknown id
 */
export async function profileOf(id: string): Promise<DeviceProfile> {
  if (id !== THIS_MACHINE) return deviceProfile(id);
  thisMachine ??= measureThisMachine().catch((error: unknown) => {
    thisMachine = undefined; // try again next time
    throw error;
  });
  return thisMachine;
}

/** Measures how fast ggml's device reads weights and computes here, one token at a time, by type. */
export async function measureThisMachine(
  options: { device?: DeviceKind | "auto" | undefined; threads?: number | undefined } = {},
): Promise<DeviceProfile> {
  const cores = availableParallelism();
  // where threads start slowly small models are faster on one; llama.cpp, too, gets whichever number is faster
  const threadCounts = options.threads === undefined ? [...new Set([1, cores])] : [options.threads];
  const measured: DeviceProfile[] = [];
  for (const threads of threadCounts) {
    const { device = "auto" } = options;
    // measure llama.cpp's kernels, not ours
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
  const startSeconds = (await secondsOfStarts(backend)) / STARTS;
  const secondsOf = async (dtype: StoredDType, matrices: Matrices) =>
    (await secondsOfProducts(backend, dtype, matrices)) - matrices.count * startSeconds;
  const times: { readonly dtype: (typeof TYPES)[number]; readonly long: number; readonly perRow: number }[] = [];
  for (const dtype of TYPES) {
    const [long, short] = [await secondsOf(dtype, LONG_ROWS), await secondsOf(dtype, SHORT_ROWS)];
    // the same weights in more rows
    times.push({ dtype, long, perRow: (short - long) / (rowCount(SHORT_ROWS) - rowCount(LONG_ROWS)) });
  }
  // for a single type the difference may be lost in the noise
  const perRow = Math.max(0, median(times.map((time) => time.perRow)));
  const rowSeconds = Math.min(perRow, ...times.map(({ long }) => (MAX_ROW_SHARE * long) / rowCount(LONG_ROWS)));
  const bandwidth = Math.max(...times.map(({ dtype, long }) => dataBytes(dtype, WEIGHTS) / long));
  const computeOf = Object.fromEntries(
    times.map(({ dtype, long }) => [dtype, (2 * WEIGHTS) / (long - rowCount(LONG_ROWS) * rowSeconds)]),
  ) as Record<(typeof TYPES)[number], number>;
  return {
    id: THIS_MACHINE,
    name: `This machine (${description})`,
    kind: kind === "cpu" ? "laptop" : "gpu",
    usableBytes: kind === "cpu" ? 0.75 * freeMemory() : 0.9 * memoryFreeBytes,
    contextLength: 8192,
    bandwidth,
    compute: computeOf.q4_k,
    measured: {
      computeOf,
      rowSeconds,
      attentionCompute: (4 * HEADS * PAST * HEAD_SIZE) / (await secondsOfAttention(backend)),
      startSeconds,
    },
  };
}

/** Seconds that the products of a vector with matrices of weights take. */
function secondsOfProducts(backend: Backend, dtype: StoredDType, { count, rows, columns }: Matrices): Promise<number> {
  const names = Array.from({ length: count }, (_, i) => `w${i}`);
  const stored = names.map((name) => ({ name, shape: [rows, columns], dtype }));
  return secondsOfComputing(backend, stored, [1, columns], (g, x, of) => {
    for (const name of names) g.output(ops.linear(g, x, of(name)));
  });
}

/** Seconds that a token's attention takes in one of several layers, whose keys and values do not fit in a core's own cache. */
async function secondsOfAttention(backend: Backend): Promise<number> {
  const cache = { shape: [PAST, KV_HEADS, HEAD_SIZE], dtype: "f16" } as const;
  const layers = Array.from({ length: LAYERS }, (_, i) => [`k${i}`, `v${i}`]);
  const stored = [
    ...layers.flat().map((name) => ({ name, ...cache })),
    { name: "mask", shape: [1, PAST], dtype: "f16" as const },
  ];
  const scale = HEAD_SIZE ** -0.5;
  const seconds = await secondsOfComputing(backend, stored, [HEADS, 1, HEAD_SIZE], (g, q, of) => {
    for (const [keys = "", values = ""] of layers)
      g.output(tokenAttention(g, q, of(keys), of(values), of("mask"), { scale }));
  });
  return seconds / LAYERS;
}

/** Seconds that consecutive operations without work take. */
function secondsOfStarts(backend: Backend): Promise<number> {
  return secondsOfComputing(backend, [], [1, HEAD_SIZE], (g, x) => {
    let sum = x;
    for (let i = 0; i < STARTS; i++) sum = ops.add(g, sum, x);
    g.output(sum);
  });
}

interface TimedTensor {
  readonly name: string;
  readonly shape: Shape;
  readonly dtype: StoredDType;
}

/** Seconds that a computation takes; it is built from an input and stored tensors, which `of` finds by name. */
async function secondsOfComputing(
  backend: Backend,
  stored: readonly TimedTensor[],
  inputShape: Shape,
  build: (g: Graph, x: Tensor, of: (name: string) => Tensor) => void,
): Promise<number> {
  const store = new TensorStore(backend, stored.length);
  const tensors = new Map(stored.map(({ name, shape, dtype }) => [name, store.add(name, shape, dtype)]));
  if (stored.length > 0) store.allocate();
  for (const { name, shape, dtype } of stored) {
    const bytes = new Uint8Array(dataBytes(dtype, elementCount(shape)));
    if (dtype === "f16" && name !== "mask") fillWithNoise(bytes, backend);
    store.write(tensors.get(name) as Tensor, bytes);
  }
  const g = new Graph(backend);
  const x = g.input("x", "f32", inputShape);
  build(g, x, (name) => tensors.get(name) as Tensor);
  g.write(x, new Float32Array(elementCount(inputShape)).fill(0.5));
  try {
    const seconds: number[] = [];
    for (let round = 0; round < ROUNDS; round++) {
      const started = performance.now();
      await g.run();
      seconds.push((performance.now() - started) / 1000);
    }
    return median(seconds);
  } finally {
    g.free();
    store.free();
  }
}

/** Fills f16 data from a normal distribution: the work that attention does depends on its values. */
function fillWithNoise(bytes: Uint8Array, { functions }: Backend): void {
  const random = new Random(1);
  const noise = fromFloat32(
    functions,
    Float32Array.from({ length: 1 << 14 }, () => random.normal()),
    "f16",
  );
  for (let at = 0; at < bytes.length; at += noise.length) bytes.set(noise.subarray(0, bytes.length - at), at);
}
