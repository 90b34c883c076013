import { afterAll, describe, expect, it } from "vitest";
import { ShapeError } from "../../../src/system/errors.js";
import { Random } from "../../../src/system/random.js";
import { type Graph, ops, type Tensor } from "../../../src/tensor/index.js";
import { backends, furthest, normal, type Values } from "./compute.js";

interface Settings {
  readonly scale: number;
  readonly window?: number;
  readonly softCap?: number;
  readonly sinks?: Float32Array;
}

/** Which keys each query reads, and the depth of each token below its root. */
interface Reading {
  readonly positions: readonly number[];
  readonly reads: (query: number, key: number) => boolean;
}

const oneSequence = (seq: number): Reading => ({
  positions: Array.from({ length: seq }, (_, i) => i),
  reads: (i, j) => j <= i,
});

/** Attention by its definition, in double precision: softmax over the keys in the window, and the sink. */
function definition(q: Values, k: Values, v: Values, reading: Reading, settings: Settings): Float64Array {
  const { scale, window = Number.POSITIVE_INFINITY, softCap, sinks } = settings;
  const [batch = 1, seq = 1, heads = 1, dim = 1] = q.shape;
  const kvHeads = k.shape[2] ?? 1;
  const result = new Float64Array(batch * seq * heads * dim);
  const at = (b: number, s: number, h: number, count: number) => ((b * seq + s) * count + h) * dim;
  for (let b = 0; b < batch; b++)
    for (let h = 0; h < heads; h++)
      for (let i = 0; i < seq; i++) {
        const kv = Math.floor((h * kvHeads) / heads);
        const scores = Array.from({ length: seq }, (_, j) => {
          const distance = (reading.positions[i] ?? 0) - (reading.positions[j] ?? 0);
          if (!reading.reads(i, j) || distance >= window) return Number.NEGATIVE_INFINITY;
          let dot = 0;
          for (let c = 0; c < dim; c++) dot += q.data[at(b, i, h, heads) + c]! * k.data[at(b, j, kv, kvHeads) + c]!;
          return softCap === undefined ? dot * scale : softCap * Math.tanh((dot * scale) / softCap);
        });
        const powers = scores.map(Math.exp);
        const total = powers.reduce((sum, power) => sum + power, sinks === undefined ? 0 : Math.exp(sinks[h]!));
        powers.forEach((power, j) => {
          for (let c = 0; c < dim; c++)
            result[at(b, i, h, heads) + c]! += (power / total) * v.data[at(b, j, kv, kvHeads) + c]!;
        });
      }
  return result;
}

const sinks = Float32Array.of(0.5, -1, 3, 0, 1, -20);

/** Longer than a block of queries, and no multiple of anything. */
const CASES: Record<string, Settings & { readonly seq?: number }> = {
  "a window": { scale: 0.3, window: 17 },
  "a window of one position": { scale: 0.3, window: 1, seq: 40 },
  "a window longer than the sequence": { scale: 0.3, window: 1e9, seq: 40 },
  "soft-capped scores": { scale: 0.5, softCap: 2 },
  "soft-capped scores in a window": { scale: 0.5, softCap: 2, window: 40 },
  sinks: { scale: 0.3, sinks },
  "a sink larger than every score": { scale: 0.01, sinks: sinks.map((x) => x + 60), seq: 20 },
  "sinks, a soft cap and a window": { scale: 0.5, softCap: 2, window: 33, sinks },
};

/** A random forest in depth-first order: each token is a child of the one before or of one of its ancestors. */
function randomForest(random: Random, places: number) {
  const parents = Array.from({ length: places }, () => -1);
  const positions = new Int32Array(places);
  const path: number[] = [];
  for (let i = 0; i < places; i++) {
    // mostly deeper; sometimes back to an ancestor, sometimes a tree of its own
    if (random.uniform() < 0.06) path.length = random.integer(path.length + 1);
    parents[i] = path.at(-1) ?? -1;
    positions[i] = path.length;
    path.push(i);
  }
  const ancestors = parents.map((_, i) => {
    const found = new Set<number>();
    for (let j = i; j >= 0; j = parents[j] ?? -1) found.add(j);
    return found;
  });
  const ends = Int32Array.from({ length: places }, (_, j) => {
    let end = j + 1;
    while (end < places && ancestors[end]?.has(j)) end++;
    return end;
  });
  const reading: Reading = { positions: [...positions], reads: (i, j) => ancestors[i]?.has(j) ?? false };
  return { layout: { positions, ends }, reading };
}

const inputs = (random: Random, batch: number, seq: number): [Values, Values, Values] => [
  normal(random, [batch, seq, 6, 20]),
  normal(random, [batch, seq, 2, 20]),
  normal(random, [batch, seq, 2, 20]),
];

/** Inputs and the result by definition: the same for every backend. */
const sequences = Object.entries(CASES).map(([title, { seq = 131, ...settings }]) => {
  const values = inputs(new Random(3), 2, seq);
  return { title, settings, values, expected: definition(...values, oneSequence(seq), settings) };
});

const FOREST_CASES: Record<string, Settings> = {
  alone: { scale: 0.3 },
  "in a window": { scale: 0.3, window: 9 },
  "in a window of one position": { scale: 0.3, window: 1 },
  "with everything": { scale: 0.5, window: 30, softCap: 2, sinks },
};

const forests = Object.entries(FOREST_CASES).flatMap(([title, settings]) =>
  [1, 2, 3].map((seed) => {
    const random = new Random(seed);
    const places = 90 + 37 * seed;
    const { layout, reading } = randomForest(random, places);
    const values = inputs(random, 1, places);
    return { title, seed, settings, places, layout, values, expected: definition(...values, reading, settings) };
  }),
);

const { each, free } = backends();
afterAll(free);

describe.each(each)("on %s", (_name, compute) => {
  const withSinks = (g: Graph, logits: Float32Array | undefined): Tensor | undefined =>
    logits === undefined ? undefined : g.constant("sinks", "f32", [logits.length], logits);

  it.each(sequences)("$title: it is its definition", async ({ settings, values, expected }) => {
    for (const computeType of ["f32", "bf16"] as const) {
      const [actual] = await compute(
        values,
        (g, [q, k, v]) => [ops.attention(g, q!, k!, v!, { ...settings, sinks: withSinks(g, settings.sinks) })],
        { computeType },
      );
      expect(furthest(actual!, expected)).toBeLessThan(computeType === "f32" ? 2e-5 : 3e-2);
    }
  });

  it.each(sequences)(
    "$title: composed of other ops, in blocks of any length, too",
    async ({ settings, values, expected }) => {
      for (const rows of [1, 32, 50, 130, 131, 200]) {
        if (rows === 1 && expected.length > 20_000) continue; // a block for each query
        const [actual] = await compute(values, (g, [q, k, v]) => [
          ops.composedAttention(g, q!, k!, v!, { ...settings, sinks: withSinks(g, settings.sinks), rows }),
        ]);
        expect(furthest(actual!, expected), `${rows} rows`).toBeLessThan(2e-5);
      }
    },
  );

  it.each(forests)("in forest $seed, $title, each token reads the ancestors in its window only", async (test) => {
    const { settings, places, layout, values, expected } = test;
    let forest: ops.Forest | undefined;
    const results = await compute(
      values,
      (g, [q, k, v]) => {
        forest = ops.forestInput(g, places);
        const attributes = { ...settings, sinks: withSinks(g, settings.sinks), forest };
        const inBlocks = () => ops.composedAttention(g, q!, k!, v!, { ...attributes, rows: 32 });
        const whole = ops.attention(g, q!, k!, v!, attributes);
        return g.backend.kernels === undefined ? [whole, inBlocks()] : [whole];
      },
      { before: (g) => forest && ops.writeForest(g, forest, layout) },
    );
    for (const actual of results) expect(furthest(actual, expected)).toBeLessThan(2e-5);
  });

  it("what does not fit is refused by name", async () => {
    const values = inputs(new Random(3), 2, 5);
    const attempt = (attributes: Partial<ops.AttentionAttributes>, wrong?: Float32Array) =>
      compute(values, (g, [q, k, v]) => [
        ops.attention(g, q!, k!, v!, { scale: 1, ...attributes, sinks: withSinks(g, wrong) }),
      ]);
    await expect(attempt({ window: 0 })).rejects.toThrow(/window of 0 positions/);
    await expect(attempt({ window: 2.5 })).rejects.toThrow(ShapeError);
    await expect(attempt({ softCap: -1 })).rejects.toThrow(/limited to ±-1/);
    await expect(attempt({}, sinks.subarray(1))).rejects.toThrow(/sinks f32 \[5\] are not the sinks/);
  });
});
