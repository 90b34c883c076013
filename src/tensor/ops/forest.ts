import type { Graph } from "../graph.js";
import { sizeAt, type Tensor } from "../tensor.js";
import { add, scale, step, sub } from "./elementwise.js";
import { embedding } from "./lookup.js";
import { reshape, zeros } from "./shape.js";

/**
 * Token sequences that share their beginnings, as one: a forest (one tree, or several) written in depth-first order, each token once.
 * A token reads itself and what is above it. Made by {@link forestInput}.
 */
export interface Forest {
  /** How far below its root each token is, i32 [places]. */
  readonly positions: Tensor;
  /** On devices with kernels where each token's subtree ends, i32 [places]; elsewhere an additive mask [places, places]. */
  readonly visibility: Tensor;
}

/** What a forest is at a time. */
export interface ForestLayout {
  readonly positions: Int32Array;
  /** The place after the last token of each token's subtree. */
  readonly ends: Int32Array;
}

/** A forest of so many places that is written before each run. */
export function forestInput(g: Graph, places: number): Forest {
  const [dtype, shape] =
    g.backend.kernels === undefined ? (["f32", [places, places]] as const) : (["i32", [places]] as const);
  return { positions: g.input("positions", "i32", [places]), visibility: g.input("visibility", dtype, shape) };
}

export function writeForest(g: Graph, forest: Forest, { positions, ends }: ForestLayout): void {
  g.write(forest.positions, positions);
  g.write(
    forest.visibility,
    forest.visibility.dtype === "i32" ? ends : maskOf((i, j) => i < (ends[j] ?? 0), ends.length),
  );
}

/** Additive attention mask [seq, seq]: 0 where query i may read key j, itself or one before it, -infinity elsewhere. */
export function maskOf(reads: (query: number, key: number) => boolean, seq: number): Float32Array {
  const mask = new Float32Array(seq * seq).fill(-Infinity);
  for (let i = 0; i < seq; i++) for (let j = 0; j <= i; j++) if (reads(i, j)) mask[i * seq + j] = 0;
  return mask;
}

/** What hides a score: its exponential is 0, and no product with it is NaN. */
const HIDDEN = -1e30;

/** On devices without kernels, a forest's additive mask where each token reads only the last `window` positions. */
export function forestMask(g: Graph, { positions, visibility }: Forest, window: number | undefined): Tensor {
  if (window === undefined) return visibility;
  return g.memo(visibility, `window ${window}`, () =>
    g.withoutGradient(() => {
      const places = sizeAt(positions, 0);
      const numbers = Float32Array.from({ length: places }, (_, i) => i);
      const depths = embedding(g, g.constant(`numbers ${places}`, "f32", [places, 1], numbers), positions);
      const queries = add(g, zeros(g, [places, places]), depths);
      const distances = sub(g, queries, reshape(g, depths, { to: [1, places] }));
      const tooFar = step(g, scale(g, distances, { factor: 1, bias: 0.5 - window })); // 1 where a distance is `window` or more
      return add(g, visibility, scale(g, tooFar, { factor: HIDDEN }));
    }),
  );
}
