import type { DivergenceMeter } from "../evaluate/divergence.js";
import type { ReadableWeights } from "../evaluate/finite.js";
import { type Passage, type RecordedStep, ResidualStream } from "../evaluate/residual-stream.js";
import { type Matrix, multiply, zeroMatrix } from "../linear-algebra/index.js";
import { type ModelTensors, type ResidualStep, shapeOf } from "../models/index.js";
import { readMatrix } from "../prune/matrices.js";
import { withWriterMoments } from "../prune/writer-moments.js";
import { elementAt } from "../system/arrays.js";
import { type Graph, ops, TensorStore } from "../tensor/index.js";
import { Ridge } from "./ridge.js";
import { rowSizes } from "./scale.js";

export interface RemovalCostInputs {
  readonly passage: Passage;
  readonly original: ModelTensors;
  /** The original's weights on the device. */
  readonly weights: ReadableWeights;
  /** Holds the original's predictions on the data that divergences are measured on. */
  readonly meter: DivergenceMeter;
  /**
   * For steps that may be cut, what their writing matrix would still multiply: ascending columns, a list for each size. A step
   * whose lists are absent stays whole.
   */
  readonly keptOf: (step: ResidualStep) => readonly Uint32Array[] | undefined;
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/**
 * What it costs to cut each step alone to each of several sizes: the mean divergence from the original, in nats per token, with the
 * writing matrix refitted to what is left. One size of each step is measured by a forward pass; the others' divergences are in
 * proportion to the squared error of the step's output, which the second moments give in closed form, because divergence grows with
 * the square of a small error. Takes the moments of one step, [inputs, inputs], in memory at a time.
 * @returns a cost for each size of each step that may be cut; a step that is kept whole costs nothing
 */
export async function removalCosts(inputs: RemovalCostInputs): Promise<ReadonlyMap<ResidualStep, readonly number[]>> {
  const { passage, original, keptOf, onProgress } = inputs;
  const { steps } = original.model;
  const costs = new Map<ResidualStep, readonly number[]>();
  const stream = await ResidualStream.before(passage, original);
  try {
    for (const [i, step] of steps.entries()) {
      const kept = keptOf(step);
      const [, width = 0] = shapeOf(step.writer, original.model.sizes);
      // rows are weighted as in the refit
      const rowsOf = (g: Graph, { writerInput, after }: RecordedStep) => ops.div(g, writerInput, rowSizes(g, after));
      await withWriterMoments({ passage, stream, step, inputs: width, rowsOf }, async (moments) => {
        if (kept !== undefined) costs.set(step, await costsOf(inputs, step, moments.matrix(), kept));
      });
      onProgress?.(i + 1, steps.length);
    }
    return costs;
  } finally {
    stream.free();
  }
}

async function costsOf(
  { passage, original, weights, meter }: RemovalCostInputs,
  { writer }: ResidualStep,
  moments: Matrix,
  kept: readonly Uint32Array[],
): Promise<number[]> {
  const { backend } = passage;
  const whole = readMatrix(original.source, writer.name);
  const errors: number[] = [];
  const refitted: Matrix[] = [];
  for (const columns of kept) {
    const matrix = columns.length === whole.columns ? whole : await refitColumns(passage, whole, moments, columns);
    errors.push(await squaredError(passage, whole, matrix, moments));
    refitted.push(matrix);
  }
  const probed = probeOf(kept, whole.columns, errors);
  if (probed === undefined) return kept.map(() => 0);
  const store = new TensorStore(backend, 1);
  const replaced = store.add(writer.name, [whole.rows, whole.columns], "f32");
  store.allocate().write(replaced, elementAt(refitted, probed).data);
  const variant = meter.of({
    model: weights.model,
    get: (name) => (name === writer.name ? replaced : weights.get(name)),
  });
  try {
    const perError = (await variant.measure()) / elementAt(errors, probed);
    return errors.map((error) => error * perError);
  } finally {
    variant.free();
    store.free();
  }
}

/** The share of the inputs that stay in the size that is measured: well above rounding, and not far from the others. */
const PROBED_SHARE = 0.6;

/** The size to measure; undefined when none changes anything. */
function probeOf(kept: readonly Uint32Array[], inputs: number, errors: readonly number[]): number | undefined {
  const distance = (i: number) => Math.abs(elementAt(kept, i).length / inputs - PROBED_SHARE);
  const changing = [...kept.keys()].filter((i) => elementAt(errors, i) > 0);
  return changing.sort((a, b) => distance(a) - distance(b))[0];
}

/** The matrix with only some of its columns, refitted to give the same; the others are zeros. */
async function refitColumns(
  { backend }: Passage,
  whole: Matrix,
  moments: Matrix,
  columns: Uint32Array,
): Promise<Matrix> {
  const rows = selectRows(moments, columns); // [kept, inputs]
  const ridge = await Ridge.of(backend, selectColumns(rows, columns));
  try {
    const targets = await multiply(backend, whole, rows, { transposeB: true });
    const solved = await ridge.solve(targets, selectColumns(whole, columns));
    const result = zeroMatrix(whole.rows, whole.columns);
    for (let i = 0; i < whole.rows; i++)
      columns.forEach((column, j) => {
        result.data[i * whole.columns + column] = elementAt(solved.data, i * columns.length + j);
      });
    return result;
  } finally {
    ridge.free();
  }
}

/** tr(D G Dᵀ) with D the difference of two matrices. */
async function squaredError({ backend }: Passage, a: Matrix, b: Matrix, moments: Matrix): Promise<number> {
  if (a === b) return 0;
  const difference = { ...a, data: a.data.map((value, i) => value - elementAt(b.data, i)) };
  const product = await multiply(backend, difference, moments);
  return Math.max(
    0,
    product.data.reduce((sum, value, i) => sum + value * elementAt(difference.data, i), 0),
  );
}

function selectRows({ columns, data }: Matrix, indices: Uint32Array): Matrix {
  const result = zeroMatrix(indices.length, columns);
  indices.forEach((row, i) => {
    result.data.set(data.subarray(row * columns, (row + 1) * columns), i * columns);
  });
  return result;
}

function selectColumns({ rows, columns, data }: Matrix, indices: Uint32Array): Matrix {
  const result = zeroMatrix(rows, indices.length);
  for (let i = 0; i < rows; i++)
    indices.forEach((column, j) => {
      result.data[i * indices.length + j] = elementAt(data, i * columns + column);
    });
  return result;
}
