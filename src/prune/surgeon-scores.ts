import { overBatches, type Passage, type RecordedStep, ResidualStream } from "../evaluate/residual-stream.js";
import type { SavedStreams } from "../evaluate/saved-streams.js";
import type { Matrix } from "../linear-algebra/index.js";
import {
  axisSize,
  type DimensionName,
  type Model,
  type ModelTensors,
  type ResidualStep,
  shapeOf,
  sizeOf,
} from "../models/index.js";
import { type Graph, ops, type Tensor } from "../tensor/index.js";
import { groupSums } from "./calibration.js";
import { Gram } from "./gram.js";
import { readMatrix } from "./matrices.js";
import { removalLosses } from "./obs.js";
import { withWriterMoments } from "./writer-moments.js";

export interface SurgeonScores {
  /** The losses of removal of neurons and heads, by dimension: see {@link removalLosses}. A key-value head's is the sum of its heads'. */
  readonly scores: ReadonlyMap<DimensionName, Float32Array>;
  /** Σ n nᵀ over calibration data and all norms of n = x / rms(x), x the residual stream that the norm reads: [hidden, hidden]. */
  readonly streamMoments: Matrix;
}

/** What is known after the first steps of a model. */
export interface SurgeonProgress {
  readonly steps: number;
  readonly scores: ReadonlyMap<DimensionName, Float32Array>;
  /** Sums so far, [hidden, hidden] row by row. */
  readonly streamMoments: Float32Array;
}

export interface SurgeonOptions {
  /** What earlier work on the same data found: it goes on from there, with the same result. */
  readonly known?: SurgeonProgress | undefined;
  /** The model's stream after some of the steps that are known, which are gone through again without it. */
  readonly savedStreams?: SavedStreams | undefined;
  /** Called after each step, with what `known` would be. */
  readonly onStep?: ((progress: SurgeonProgress) => void) | undefined;
}

/**
 * Scores what the matrices that write to the residual stream read, neurons and heads, by optimal brain surgeon. The model is gone
 * through step by step: one step's weights and second moments [inputs, inputs] are in memory at a time.
 */
export async function surgeonScores(
  passage: Passage,
  tensors: ModelTensors,
  { known, savedStreams, onStep }: SurgeonOptions = {},
): Promise<SurgeonScores> {
  const { model, source } = tensors;
  const { backend } = passage;
  const hidden = sizeOf("hidden", model.sizes);
  const scores = new Map(known?.scores);
  const streamSum = new Gram(backend, "the second moments of the residual stream", hidden);
  let stream: ResidualStream | undefined;
  try {
    if (known !== undefined) streamSum.write(known.streamMoments);
    const saved = savedStreams?.resume(({ steps, file }) =>
      steps <= (known?.steps ?? 0)
        ? ResidualStream.restored(passage, tensors, { source: file, name: "stream" })
        : undefined,
    );
    stream = saved?.restored ?? (await ResidualStream.before(passage, tensors));
    for (const [i, step] of model.steps.entries()) {
      if (i < (saved?.steps ?? 0)) continue;
      if (known !== undefined && i < known.steps) {
        await stream.runOwn(step);
        continue;
      }
      const [, width = 0] = shapeOf(step.writer, model.sizes);
      const rowsOf = (g: Graph, { blockInput, writerInput }: RecordedStep): Tensor => {
        addStreamMoments(g, streamSum, blockInput);
        return writerInput;
      };
      await withWriterMoments({ passage, stream, step, inputs: width, rowsOf }, async (moments) => {
        const units = unitsOf(step, model);
        if (units === undefined) return;
        const weight = readMatrix(source, step.writer.name);
        const losses = await removalLosses(backend, moments, weight, { groupSize: units.size });
        scores.set(units.dimension, losses);
        for (const groups of groupsOf(units.dimension, model))
          scores.set(groups, groupSums(losses, sizeOf(groups, model.sizes)));
      });
      onStep?.({ steps: i + 1, scores, streamMoments: streamSum.read() });
      await savedStreams?.save(i + 1, { stream });
    }
    await addLastMoments(passage, stream, streamSum);
    return { scores, streamMoments: streamSum.matrix() };
  } finally {
    stream?.free();
    streamSum.free();
  }
}

/** Keeps rows of zeros from becoming infinite. */
const EPSILON = 1e-12;

const addStreamMoments = (g: Graph, sum: Gram, x: Tensor): void => sum.add(g, ops.rmsNorm(g, x, { epsilon: EPSILON }));

const addLastMoments = (passage: Passage, stream: ResidualStream, sum: Gram): Promise<void> =>
  overBatches(passage, (g) => {
    const wire = stream.input(g, "stream");
    addStreamMoments(g, sum, wire[0]);
    return { reads: [wire] };
  });

/** The dimensions that are scored after a model's first steps. */
export function scoredBySteps(model: Model, steps: number): DimensionName[] {
  const units = model.steps.slice(0, steps).flatMap((step) => unitsOf(step, model)?.dimension ?? []);
  return units.flatMap((dimension) => [dimension, ...groupsOf(dimension, model)]);
}

/** What counts groups of a dimension: key-value heads of heads. */
const groupsOf = (dimension: DimensionName, model: Model): DimensionName[] =>
  model.groups.filter((group) => group.dimension === dimension).map(({ groupedBy }) => groupedBy);

/** What the inputs of a step's writer count: `ffn`, or heads with their channels. */
function unitsOf(
  { writer }: ResidualStep,
  model: Model,
): { readonly dimension: DimensionName; readonly size: number } | undefined {
  const [, axis] = writer.axes;
  if (typeof axis === "string") return { dimension: axis, size: 1 };
  if (axis === undefined || !("product" in axis)) return undefined;
  const [first, ...channels] = axis.product;
  if (typeof first !== "string") return undefined;
  return { dimension: first, size: axisSize({ product: channels }, model.sizes) };
}
