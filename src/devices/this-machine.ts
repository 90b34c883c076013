import { availableParallelism, freemem } from "node:os";
import { fromFloat32 } from "../ggml/convert.js";
import { dataBytes } from "../ggml/dtype.js";
import { Backend, canKeepThreads, type DeviceKind, type Pointer, type StoredDType } from "../ggml/index.js";
import { Random } from "../system/random.js";
import { median } from "../system/statistics.js";
import { defineOp, elementCount, Graph, ops, type Shape, type Tensor, TensorStore } from "../tensor/index.js";
import { type DeviceProfile, deviceProfile, THIS_MACHINE } from "./profiles.js";

/** Matrices of weights that no cache holds: [matrices, rows, columns]. */
type Matrices = readonly [count: number, rows: number, columns: number];
/** As many weights in few long rows and in many short ones, as larger and smaller models have them. */
const [LONG, SHORT]: readonly [Matrices, Matrices] = [
  [8, 4096, 2048],
  [128, 1024, 512],
];
/** Of the time that long rows take, what is laid to their number at most. */
const MOST_ROW_SHARE = 0.5;
const rowsOf = ([count, rows]: Matrices): number => count * rows;
const WEIGHTS = LONG[0] * LONG[1] * LONG[2];
/** Types that files consist of, by what a weight takes; others count as the nearest one in size. */
const TYPES = ["f16", "q8_0", "q6_k", "q5_k", "q4_k", "iq4_xs", "q3_k", "iq3_xxs", "q2_k"] as const;
/** Attention of one token: [query heads, heads of keys and values, tokens before it, size of a head]. */
const [HEADS, KV_HEADS, PAST, HEAD_SIZE] = [16, 4, 2048, 64] as const;
const LAYERS = 12;
/** Operations after each other that do next to nothing. */
const STARTS = 256;
/** Times that each is computed; their median counts. */
const ROUNDS = 9;

/**
 * What llama.cpp computes for one token's attention: q [heads, 1, size], keys and values [tokens, heads, size] as its cache has them,
 * and the mask [1, tokens], in f16.
 */
const tokenAttention = defineOp<[q: Tensor, keys: Tensor, values: Tensor, mask: Tensor], { readonly scale: number }>(
  "tokenAttention",
  4,
  {
    accepts: [undefined, ["f16"], ["f16"], ["f16"]],
    shape: ([q]) => [1, q.shape[0] ?? 0, q.shape[2] ?? 0],
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
 * A device by its id. This machine is measured at the first wish, which takes seconds, and then taken as it was then.
 * @throws UsageError for an id that is not known
 */
export function profileOf(id: string): Promise<DeviceProfile> {
  if (id !== THIS_MACHINE) return Promise.resolve().then(() => deviceProfile(id));
  thisMachine ??= measureThisMachine().catch((error: unknown) => {
    thisMachine = undefined; // the next wish tries again
    throw error;
  });
  return thisMachine;
}

/** Measures the device that ggml computes on here, one token at a time: what it multiplies and reads in a second, by type. */
export async function measureThisMachine(
  options: { device?: DeviceKind | "auto" | undefined; threads?: number | undefined } = {},
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
  const startSeconds = (await secondsOfStarts(backend)) / STARTS;
  const secondsOf = async (dtype: StoredDType, matrices: Matrices) =>
    (await secondsOfProducts(backend, dtype, matrices)) - matrices[0] * startSeconds;
  const times: { readonly dtype: (typeof TYPES)[number]; readonly long: number; readonly byRow: number }[] = [];
  for (const dtype of TYPES) {
    const [long, short] = [await secondsOf(dtype, LONG), await secondsOf(dtype, SHORT)];
    times.push({ dtype, long, byRow: (short - long) / (rowsOf(SHORT) - rowsOf(LONG)) }); // the same weights, in more rows
  }
  // of one type it may be lost in the noise
  const byRow = Math.max(0, median(times.map((one) => one.byRow)));
  const rowSeconds = Math.min(byRow, ...times.map(({ long }) => (MOST_ROW_SHARE * long) / rowsOf(LONG)));
  const bandwidth = Math.max(...times.map(({ dtype, long }) => dataBytes(dtype, WEIGHTS) / long));
  const computeOf = Object.fromEntries(
    times.map(({ dtype, long }) => [dtype, (2 * WEIGHTS) / (long - rowsOf(LONG) * rowSeconds)]),
  ) as Record<(typeof TYPES)[number], number>;
  return {
    id: THIS_MACHINE,
    name: `This machine (${description})`,
    kind: kind === "cpu" ? "laptop" : "gpu",
    usableBytes: kind === "cpu" ? 0.75 * freemem() : 0.9 * memoryFreeBytes,
    contextLength: 8192,
    bandwidth,
    compute: computeOf.q4_k,
    measured: {
      ...{ computeOf, rowSeconds },
      attentionCompute: (4 * HEADS * PAST * HEAD_SIZE) / (await secondsOfAttention(backend)),
      startSeconds,
    },
  };
}

/** Seconds of products of a vector with matrices of weights. */
function secondsOfProducts(backend: Backend, dtype: StoredDType, [count, rows, columns]: Matrices): Promise<number> {
  const names = Array.from({ length: count }, (_, i) => `w${i}`);
  const stored = names.map((name) => ({ name, shape: [rows, columns], dtype }));
  return timed(backend, stored, [1, columns], (g, x, of) => {
    for (const name of names) g.output(ops.linear(g, x, of(name)));
  });
}

/** Seconds of a token's attention in one layer of several, whose keys and values a core's own cache does not hold. */
async function secondsOfAttention(backend: Backend): Promise<number> {
  const cache = { shape: [PAST, KV_HEADS, HEAD_SIZE], dtype: "f16" } as const;
  const layers = Array.from({ length: LAYERS }, (_, i) => [`k${i}`, `v${i}`]);
  const stored = [
    ...layers.flat().map((name) => ({ name, ...cache })),
    { name: "mask", shape: [1, PAST], dtype: "f16" as const },
  ];
  const scale = HEAD_SIZE ** -0.5;
  const seconds = await timed(backend, stored, [HEADS, 1, HEAD_SIZE], (g, q, of) => {
    for (const [keys = "", values = ""] of layers)
      g.output(tokenAttention(g, q, of(keys), of(values), of("mask"), { scale }));
  });
  return seconds / LAYERS;
}

function secondsOfStarts(backend: Backend): Promise<number> {
  return timed(backend, [], [1, HEAD_SIZE], (g, x) => {
    let sum = x;
    for (let i = 0; i < STARTS; i++) sum = ops.add(g, sum, x);
    g.output(sum);
  });
}

interface Stored {
  readonly name: string;
  readonly shape: Shape;
  readonly dtype: StoredDType;
}

/** Seconds that a computation of an input and stored tensors takes. */
async function timed(
  backend: Backend,
  stored: readonly Stored[],
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
      const began = performance.now();
      await g.run();
      seconds.push((performance.now() - began) / 1000);
    }
    return median(seconds);
  } finally {
    g.free();
    store.free();
  }
}

/** Numbers in f16, drawn from a normal distribution: what attention does depends on them. */
function fillWithNoise(bytes: Uint8Array, { functions }: Backend): void {
  const random = new Random(1);
  const noise = fromFloat32(
    functions,
    Float32Array.from({ length: 1 << 14 }, () => random.normal()),
    "f16",
  );
  for (let at = 0; at < bytes.length; at += noise.length) bytes.set(noise.subarray(0, bytes.length - at), at);
}
