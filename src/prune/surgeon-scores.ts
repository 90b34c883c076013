import { overBatches, type Passage, type RecordedStep, ResidualStream } from "../evaluate/residual-stream.js";
import type { SavedStreams } from "../evaluate/saved-streams.js";
import { leads, stopTogether, type Team } from "../evaluate/team.js";
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
import { writerMoments } from "./writer-moments.js";

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
 * through step by step: one step's weights and second moments [inputs, inputs] are in memory at a time. In a team each process goes
 * through its part of the data, keeps the moments of one of as many steps as there are processes, and scores that.
 * @returns the scores; the stream's moments at the leader only
 */
export async function surgeonScores(
  passage: Passage,
  tensors: ModelTensors,
  { known, savedStreams, onStep }: SurgeonOptions = {},
): Promise<SurgeonScores> {
  const { model } = tensors;
  const { backend, team } = passage;
  const hidden = sizeOf("hidden", model.sizes);
  const scores = new Map(known?.scores);
  const streamSum = new Gram(backend, "the second moments of the residual stream", hidden);
  const turns = new Turns(passage, tensors);
  const finished = known?.steps ?? 0;
  let stream: ResidualStream | undefined;
  try {
    if (known !== undefined) streamSum.write(known.streamMoments);
    const saved = savedStreams?.resume(({ steps, file }) =>
      steps <= finished ? ResidualStream.restored(passage, tensors, { source: file, name: "stream" }) : undefined,
    );
    stream = saved?.restored ?? (await ResidualStream.before(passage, tensors));
    for (const [i, step] of model.steps.entries()) {
      if (i < (saved?.steps ?? 0)) continue;
      if (i < finished) {
        await stream.runOwn(step);
        continue;
      }
      const [, width = 0] = shapeOf(step.writer, model.sizes);
      const rowsOf = (g: Graph, { blockInput, writerInput }: RecordedStep): Tensor => {
        addStreamMoments(g, streamSum, blockInput);
        return writerInput;
      };
      await turns.take(step, await writerMoments({ passage, stream, step, inputs: width, rowsOf }));
      if (!turns.areOver && i < model.steps.length - 1) continue;
      for (const [dimension, values] of await turns.scores()) scores.set(dimension, values);
      await sumAtLeader(streamSum, team);
      onStep?.({ steps: i + 1, scores, streamMoments: streamSum.read() });
      // a team that goes on goes through the known steps once more
      if (team === undefined) await savedStreams?.save(i + 1, { stream });
      await stopTogether(team);
    }
    await addLastMoments(passage, stream, streamSum);
    await sumAtLeader(streamSum, team);
    return { scores, streamMoments: streamSum.matrix() };
  } finally {
    turns.free();
    stream?.free();
    streamSum.free();
  }
}

/** Moves the sums of all to the leader. */
async function sumAtLeader(sum: Gram, team: Team | undefined): Promise<void> {
  await sum.sumOver(team, 0);
  if (!leads(team)) sum.clear();
}

/** Steps that a team's processes score, each one of them. */
class Turns {
  private steps: ResidualStep[] = [];
  /** Of the step that is this process's. */
  private moments: Gram | undefined;

  constructor(
    private readonly passage: Passage,
    private readonly tensors: ModelTensors,
  ) {}

  /** Whether every process has a step. */
  get areOver(): boolean {
    return this.steps.length === (this.passage.team?.size ?? 1);
  }

  /** Gives the next process a step. @param moments of this process's data */
  async take(step: ResidualStep, moments: Gram): Promise<void> {
    const { team } = this.passage;
    const turn = this.steps.length;
    const isOwn = turn === (team?.rank ?? 0);
    if (isOwn) this.moments = moments;
    try {
      await moments.sumOver(team, turn);
      this.steps.push(step);
    } finally {
      if (!isOwn) moments.free();
    }
  }

  /** The scores of all steps that were taken, at all processes. */
  async scores(): Promise<Map<DimensionName, Float32Array>> {
    const { passage, tensors, steps } = this;
    const { model } = tensors;
    const own = await this.ownLosses();
    this.free();
    this.steps = [];
    const scores = new Map<DimensionName, Float32Array>();
    for (const [turn, step] of steps.entries()) {
      const units = unitsOf(step, model);
      if (units === undefined) continue;
      const isOwn = turn === (passage.team?.rank ?? 0);
      const losses = isOwn && own !== undefined ? own : new Float32Array(sizeOf(units.dimension, model.sizes));
      await passage.team?.broadcast(losses, turn);
      scores.set(units.dimension, losses);
      for (const groups of groupsOf(units.dimension, model))
        scores.set(groups, groupSums(losses, sizeOf(groups, model.sizes)));
    }
    return scores;
  }

  private async ownLosses(): Promise<Float32Array | undefined> {
    const { passage, tensors, moments, steps } = this;
    const step = steps[passage.team?.rank ?? 0];
    const units = step && unitsOf(step, tensors.model);
    if (step === undefined || units === undefined || moments === undefined) return undefined;
    const weight = readMatrix(tensors.source, step.writer.name);
    return await removalLosses(passage.backend, moments, weight, { groupSize: units.size });
  }

  free(): void {
    this.moments?.free();
    this.moments = undefined;
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
