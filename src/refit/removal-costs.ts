import { notFinite } from "../evaluate/finite.js";
import {
  overBatches,
  type Passage,
  type RecordedStep,
  ResidualStream,
  rowsOfBatch,
} from "../evaluate/residual-stream.js";
import type { Backend } from "../ggml/device.js";
import { type Matrix, multiply, zeroMatrix } from "../linear-algebra/index.js";
import { type ForwardResult, type ModelTensors, type ResidualStep, shapeOf, type Weights } from "../models/index.js";
import { readMatrix } from "../prune/matrices.js";
import { writerMoments } from "../prune/writer-moments.js";
import { elementAt } from "../system/arrays.js";
import { elementCount, type Graph, ops, TensorStore } from "../tensor/index.js";
import { Ridge } from "./ridge.js";
import { rowSizes } from "./scale.js";

export interface RemovalCostInputs {
  /** Sequences for second moments. */
  readonly passage: Passage;
  /** Sequences that divergences are measured on. */
  readonly measured: Passage;
  readonly original: ModelTensors;
  /**
   * For steps that may be cut, what their writing matrix would still multiply: ascending columns, a list for each size. A step
   * whose lists are absent stays whole.
   */
  readonly keptOf: (step: ResidualStep) => readonly Uint32Array[] | undefined;
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/** A step cut to one size, and other sizes whose costs follow from its cost. */
interface Cut {
  /** The refitted matrix, with zeros for what is cut; undefined where the step gives nothing. */
  readonly matrix: Matrix | undefined;
  /** For each size the share of this one's divergence that it costs; undefined where another cut says it. */
  readonly shares: readonly (number | undefined)[];
}

/** A model of which one step is cut, on its way through the others. */
interface Variant extends Cut {
  readonly step: ResidualStep;
  readonly stream: ResidualStream;
}

/**
 * What it costs to cut each step alone to each of several sizes: the mean divergence from the original, in nats per token, with the
 * writing matrix refitted to what is left. One size of each step is measured, and the step's absence; the other sizes' divergences are in
 * proportion to the squared error of the step's output, which the second moments give in closed form, because divergence grows with the
 * square of a small error.
 * All cut models go through the layers side by side, each from the step that it is cut at: the moments and the weights of one step are
 * in memory at a time, and half a forward pass is computed for each.
 * @returns a cost for each size of each step that may be cut; a step that is kept whole costs nothing
 * @throws CoppiceError when a cut model's outputs are not finite
 */
export async function removalCosts(inputs: RemovalCostInputs): Promise<ReadonlyMap<ResidualStep, readonly number[]>> {
  const { passage, original, keptOf, onProgress } = inputs;
  const { steps } = original.model;
  const costs = new Map<ResidualStep, readonly number[]>();
  const variants: Variant[] = [];
  const streams: ResidualStream[] = [];
  try {
    const stream = await ResidualStream.before(passage, original);
    streams.push(stream);
    // each stream that is measured has a part of the memory
    const measuredSizes = steps.map((step) => ((keptOf(step) ?? []).some(({ length }) => length === 0) ? 2 : 1));
    const memoryBytes = inputs.measured.memoryBytes / (measuredSizes.reduce((sum, count) => sum + count, 0) + 1);
    const measured = { ...inputs.measured, memoryBytes };
    const reference = await ResidualStream.before(measured, original);
    streams.push(reference);
    for (const [i, step] of steps.entries()) {
      const kept = keptOf(step);
      const [, width = 0] = shapeOf(step.writer, original.model.sizes);
      // rows are weighted as in the refit
      const rowsOf = (g: Graph, { writerInput, after }: RecordedStep) => ops.div(g, writerInput, rowSizes(g, after));
      const moments = await writerMoments({ passage, stream, step, inputs: width, rowsOf });
      let cuts: readonly Cut[] = [];
      try {
        if (kept !== undefined) cuts = await cutAlone(inputs, step, moments.matrix(), kept);
      } finally {
        moments.free();
      }
      if (kept !== undefined)
        costs.set(
          step,
          kept.map(() => 0),
        );
      const weights = reference.weightsOf(step.parameters);
      try {
        for (const variant of variants) await variant.stream.run(step, weights.get);
        for (const cut of cuts) {
          const own = reference.fork();
          streams.push(own);
          variants.push({ step, stream: own, ...cut });
          await runReplaced(passage.backend, own, step, weights.get, cut.matrix);
        }
        await reference.run(step, weights.get);
      } finally {
        weights.free();
      }
      onProgress?.(i + 1, steps.length);
    }
    const divergences = await divergencesOf(measured, original, reference, variants);
    for (const [i, { step, shares }] of variants.entries()) {
      const known = costs.get(step) ?? [];
      costs.set(
        step,
        shares.map((share, j) => (share === undefined ? elementAt(known, j) : share * elementAt(divergences, i))),
      );
    }
    return costs;
  } finally {
    for (const stream of streams) stream.free();
  }
}

/** The sizes to measure a step at: none when no size changes anything. */
async function cutAlone(
  { passage, original }: RemovalCostInputs,
  { writer }: ResidualStep,
  moments: Matrix,
  kept: readonly Uint32Array[],
): Promise<Cut[]> {
  const whole = readMatrix(original.source, writer.name);
  const errors: number[] = [];
  const refitted: Matrix[] = [];
  for (const columns of kept) {
    const matrix = columns.length === whole.columns ? whole : await refitColumns(passage, whole, moments, columns);
    errors.push(await squaredError(passage, whole, matrix, moments));
    refitted.push(matrix);
  }
  const isAbsent = kept.map(({ length }) => length === 0);
  const cuts: Cut[] = [];
  const probed = probeOf(kept, whole.columns, errors);
  if (probed !== undefined) {
    const shares = errors.map((error, i) => (isAbsent[i] ? undefined : error / elementAt(errors, probed)));
    cuts.push({ matrix: elementAt(refitted, probed), shares });
  }
  const absent = isAbsent.indexOf(true);
  if (absent >= 0 && elementAt(errors, absent) > 0)
    cuts.push({ matrix: undefined, shares: isAbsent.map((value) => (value ? 1 : undefined)) });
  return cuts;
}

/** Runs a step with another writing matrix, or with zeros for all that it writes. */
async function runReplaced(
  backend: Backend,
  stream: ResidualStream,
  step: ResidualStep,
  weights: Weights,
  matrix: Matrix | undefined,
): Promise<void> {
  const names =
    matrix === undefined ? [step.writer, step.writerBias].flatMap((spec) => spec?.name ?? []) : [step.writer.name];
  const store = new TensorStore(backend, names.length);
  try {
    const replaced = new Map(names.map((name) => [name, store.add(name, weights(name).shape, "f32")]));
    store.allocate();
    for (const tensor of replaced.values())
      store.write(tensor, matrix?.data ?? new Float32Array(elementCount(tensor.shape)));
    await stream.run(step, (name) => replaced.get(name) ?? weights(name));
  } finally {
    store.free();
  }
}

/** The mean divergences of models from the original, in nats per token, from their last states. */
async function divergencesOf(
  passage: Passage,
  { model }: ModelTensors,
  reference: ResidualStream,
  variants: readonly Variant[],
): Promise<number[]> {
  const weights = reference.lastWeights();
  const divergences: number[] = [];
  try {
    for (const { step, stream } of variants) {
      let sum = 0;
      await overBatches(passage, (g) => {
        const wires = [reference.input(g, "reference"), stream.input(g, "cut")] as const;
        const [original, cut] = wires.map(([states]) =>
          model.finish({ g, weights: weights.get, layout: passage.layout, tap: () => {} }, states),
        ) as [ForwardResult, ForwardResult];
        const sums = ops.mapHeadRows(g, cut.hidden, model.vocabSize, (part, range) =>
          ops.divergence(g, cut.logits(part), original.logits(ops.rowsOf(g, original.hidden, range)), {
            kind: "forward-kl",
            temperature: 1,
          }),
        );
        const total = g.output(ops.sum(g, sums));
        const afterBatch = () => {
          sum += elementAt(g.read(total), 0);
        };
        return { reads: wires, afterBatch };
      });
      if (!Number.isFinite(sum)) throw notFinite("the model", step.writer.name);
      // rounding can leave it slightly negative
      divergences.push(Math.max(0, sum / (passage.batches.length * rowsOfBatch(passage))));
    }
    return divergences;
  } finally {
    weights.free();
  }
}

/** The share of the inputs that stay in the size that is measured: well above rounding, and not far from the others. */
const PROBED_SHARE = 0.6;

/** The size to measure; undefined when none changes anything. */
function probeOf(kept: readonly Uint32Array[], inputs: number, errors: readonly number[]): number | undefined {
  const distance = (i: number) => Math.abs(elementAt(kept, i).length / inputs - PROBED_SHARE);
  const changing = [...kept.keys()].filter((i) => elementAt(kept, i).length > 0 && elementAt(errors, i) > 0);
  return changing.sort((a, b) => distance(a) - distance(b))[0];
}

/** The matrix with only some of its columns, refitted to give the same; the others are zeros. */
async function refitColumns(
  { backend }: Passage,
  whole: Matrix,
  moments: Matrix,
  columns: Uint32Array,
): Promise<Matrix> {
  if (columns.length === 0) return zeroMatrix(whole.rows, whole.columns);
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
