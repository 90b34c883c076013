import { elementAt } from "../../system/arrays.js";
import type { Graph } from "../graph.js";
import { elementCount, type Tensor } from "../tensor.js";
import { add, scale, step, sub } from "./elementwise.js";
import { embedding } from "./lookup.js";
import { reshape, zeros } from "./shape.js";

/**
 * Token sequences that share their beginnings, as one sequence: a forest (one tree, or several) in depth-first order that holds
 * each shared token once. A token reads itself and its ancestors. See {@link forestInput}.
 */
export interface Forest {
  /** Each token's depth below its root, i32 [places]. */
  readonly positions: Tensor;
  /** With kernels, the end of each token's subtree, i32 [places]; without, an additive mask, f32 [places, places]. */
  readonly visibility: Tensor;
  /** How many tokens a path from a root has at most. */
  readonly longest: number;
}

/** The trees of a forest, as data. */
export interface ForestLayout {
  /** Each token's depth below its root: its position in its own sequence. */
  readonly positions: Int32Array;
  /** The place after the last token of each token's subtree. */
  readonly ends: Int32Array;
}

/**
 * Declares a forest of so many tokens; fill it with {@link writeForest} before each run.
 * @param longest how many tokens a path from a root has at most; all by default
 */
export function forestInput(g: Graph, places: number, longest = places): Forest {
  const [dtype, shape] =
    g.backend.kernels === undefined ? (["f32", [places, places]] as const) : (["i32", [places]] as const);
  return { positions: g.input("positions", "i32", [places]), visibility: g.input("visibility", dtype, shape), longest };
}

/** Fills a forest. Places beyond the layout's become trees of one token. @throws RangeError when the layout has more places */
export function writeForest(g: Graph, forest: Forest, layout: ForestLayout): void {
  const places = elementCount(forest.positions.shape);
  const positions = new Int32Array(places);
  positions.set(layout.positions);
  const ends = Int32Array.from({ length: places }, (_, i) => i + 1);
  ends.set(layout.ends);
  g.write(forest.positions, positions);
  const isMask = forest.visibility.dtype !== "i32";
  g.write(forest.visibility, isMask ? maskOf((i, j) => j <= i && i < elementAt(ends, j), places, places) : ends);
}

/** Additive attention mask [queries, keys]: 0 where the query reads the key, -infinity elsewhere. */
export function maskOf(reads: (query: number, key: number) => boolean, queries: number, keys: number): Float32Array {
  const mask = new Float32Array(queries * keys).fill(-Infinity);
  for (let i = 0; i < queries; i++) for (let j = 0; j < keys; j++) if (reads(i, j)) mask[i * keys + j] = 0;
  return mask;
}

/** Added to a score to hide it: its exponential is 0, and unlike -infinity it times 0 is not NaN. */
const HIDDEN = -1e30;

/** A forest's additive mask on devices without kernels, where each token reads only the last `window` positions. */
export function forestMask(g: Graph, { positions, visibility }: Forest, window: number | undefined): Tensor {
  if (window === undefined) return visibility;
  return g.memo(visibility, `window ${window}`, () =>
    g.withoutGradient(() => {
      const places = elementCount(positions.shape);
      const numbers = () => Float32Array.from(Array(places).keys());
      const depths = embedding(g, g.constant(`numbers ${places}`, "f32", [places, 1], numbers), positions);
      const queries = add(g, zeros(g, [places, places]), depths);
      const distances = sub(g, queries, reshape(g, depths, { to: [1, places] }));
      const tooFar = step(g, scale(g, distances, { factor: 1, bias: 0.5 - window })); // 1 where a distance is `window` or more
      return add(g, visibility, scale(g, tooFar, { factor: HIDDEN }));
    }),
  );
}
