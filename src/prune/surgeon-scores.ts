import { checkSums } from "../evaluate/finite.js";
import { overBatches, type Passage, ResidualStream } from "../evaluate/residual-stream.js";
import type { Matrix } from "../linear-algebra/index.js";
import {
  type Axis,
  axisSize,
  type DimensionName,
  type Model,
  type ModelTensors,
  shapeOf,
  sizeOf,
} from "../models/index.js";
import { type Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";
import { groupSums } from "./calibration.js";
import { readMatrix } from "./matrices.js";
import { removalLosses } from "./obs.js";
import { writerMoments } from "./writer-moments.js";

export interface SurgeonScores {
  /** The losses of removal of neurons and heads, by dimension: see {@link removalLosses}. A key-value head's is the sum of its heads'. */
  readonly scores: ReadonlyMap<DimensionName, Float32Array>;
  /** Σ n nᵀ over calibration data and all norms of n = x / rms(x), x the residual stream that the norm reads: [hidden, hidden]. */
  readonly streamMoments: Matrix;
}

/**
 * Scores what the matrices that write to the residual stream read, neurons and heads, by optimal brain surgeon. The model is gone
 * through step by step: one step's weights and second moments [inputs, inputs] are in memory at a time.
 */
export async function surgeonScores(
  passage: Passage,
  tensors: ModelTensors,
  onProgress?: (done: number, total: number) => void,
): Promise<SurgeonScores> {
  const { model, source } = tensors;
  const { backend } = passage;
  const hidden = sizeOf("hidden", model.sizes);
  const scores = new Map<DimensionName, Float32Array>();
  const sums = new TensorStore(backend, 1);
  const streamSum = sums.add("stream moments", [hidden, hidden], "f32");
  sums.allocate();
  const stream = await ResidualStream.before(passage, tensors);
  try {
    for (const [i, step] of model.steps.entries()) {
      const [, width = 0] = shapeOf(step.writer, model.sizes);
      const moments = await writerMoments(passage, stream, step, width, (g, { blockInput, writerInput }) => {
        addStreamMoments(g, streamSum, blockInput);
        return writerInput;
      });
      const [, inputs] = step.writer.axes;
      const units = inputs === undefined ? undefined : unitsOf(inputs, model);
      if (units !== undefined) {
        const weight = readMatrix(source, step.writer.name);
        scores.set(units.dimension, await removalLosses(backend, moments, weight, { groupSize: units.size }));
      }
      onProgress?.(i + 1, model.steps.length);
    }
    await addLastMoments(passage, stream, streamSum);
    const streamMoments = { rows: hidden, columns: hidden, data: sums.read(streamSum) };
    checkSums("the second moments of the residual stream", streamMoments.data);
    for (const { dimension, groupedBy } of model.groups) {
      const members = scores.get(dimension);
      if (members !== undefined) scores.set(groupedBy, groupSums(members, sizeOf(groupedBy, model.sizes)));
    }
    return { scores, streamMoments };
  } finally {
    stream.free();
    sums.free();
  }
}

/** Keeps rows of zeros from becoming infinite. */
const EPSILON = 1e-12;

function addStreamMoments(g: Graph, sum: Tensor, x: Tensor): void {
  const normed = ops.rmsNorm(g, x, { epsilon: EPSILON });
  g.effect(ops.addProducts(g, sum, normed, normed));
}

const addLastMoments = (passage: Passage, stream: ResidualStream, sum: Tensor): Promise<void> =>
  overBatches(passage, (g) => {
    const wire = stream.input(g, "stream");
    addStreamMoments(g, sum, wire[0]);
    return { reads: [wire] };
  });

/** What an axis counts: `ffn`, or heads with their channels. */
function unitsOf(axis: Axis, model: Model): { readonly dimension: DimensionName; readonly size: number } | undefined {
  if (typeof axis === "string") return { dimension: axis, size: 1 };
  if (!("product" in axis)) return undefined;
  const [first, ...channels] = axis.product;
  if (typeof first !== "string") return undefined;
  return { dimension: first, size: axisSize({ product: channels }, model.sizes) };
}
