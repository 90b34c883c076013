import type { Batch } from "../data/index.js";
import { targetIndices, tokenLosses } from "../evaluate/index.js";
import type { ForwardResult, Model, ModelWeights } from "../models/index.js";
import { CoppiceError } from "../system/errors.js";
import { type Graph, ops, type Tensor } from "../tensor/index.js";
import { type Divergence, denseDivergence, stopGradient, topKDivergence } from "./losses.js";
import type { TopKTeacher } from "./teacher.js";

/** What an objective is given to build its part of the training graph. */
export interface ObjectiveContext {
  readonly g: Graph;
  readonly model: Model;
  /** i32 [batch, sequence]. */
  readonly tokens: Tensor;
  readonly student: ForwardResult;
  /** The student's tapped activations by name. */
  readonly taps: ReadonlyMap<string, Tensor>;
  /** Trained along with the student and thrown away afterwards, for example projections. */
  readonly auxiliary: (name: string) => Tensor;
}

/** The part of the graph that an objective built. */
export interface BuiltObjective {
  /** What is minimised, [1]. */
  readonly loss: Tensor;
  /** Its terms, for the record. */
  readonly terms: Readonly<Record<string, Tensor>>;
  /** Fills the objective's own inputs for a batch. `numbers` are its sequences' numbers in the data. */
  readonly feed: (batch: Batch, numbers: readonly number[]) => Promise<void>;
}

/** Something to train towards. */
export interface Objective {
  readonly name: string;
  /** Extra parameters it needs: names and shapes. */
  readonly auxiliary: (student: Model) => readonly { readonly name: string; readonly shape: readonly number[] }[];
  readonly build: (context: ObjectiveContext) => BuiltObjective;
}

/** Mean cross-entropy with the next token of the data. */
function nextTokenLoss({ g, model, tokens, student }: ObjectiveContext) {
  const rows = tokens.shape.reduce((a, b) => a * b, 1);
  const indices = g.input("targets", "i32", [rows]);
  const loss = ops.mean(g, tokenLosses(g, student.logits(), indices));
  const feed = async (batch: Batch) => g.write(indices, targetIndices(batch.targets, model.vocabSize));
  return { loss, feed };
}

/** Ordinary language modelling. */
export const crossEntropyObjective: Objective = {
  name: "cross-entropy",
  auxiliary: () => [],
  build: (context) => {
    const { loss, feed } = nextTokenLoss(context);
    return { loss, terms: { crossEntropy: loss }, feed };
  },
};

export interface DistillationOptions {
  readonly divergence: Divergence;
  readonly temperature: number;
  /** Weight of the cross-entropy with the data, beside 1 for the divergence. */
  readonly crossEntropyWeight: number;
  /** Intermediate states to match too: pairs of tap names, the student's and the teacher's. */
  readonly intermediate: readonly { readonly student: string; readonly teacher: string }[];
}

export const DISTILLATION_DEFAULTS: DistillationOptions = {
  divergence: "forward-kl",
  temperature: 1,
  crossEntropyWeight: 0,
  intermediate: [],
};

/** The teacher as the training graph sees it: computed in it, or its most probable tokens fed in. */
export type Teacher =
  | { readonly kind: "online"; readonly weights: ModelWeights }
  | { readonly kind: "top-k"; readonly source: TopKTeacher };

/**
 * Knowledge distillation: the student's distributions towards the teacher's (arXiv 2407.14679, section 3), optionally its
 * states too (eq. 6-8, with the weight set to the ratio of the losses at each step).
 * @throws CoppiceError when the options do not go together
 */
export function distillationObjective(teacher: Teacher, options: DistillationOptions): Objective {
  if (teacher.kind === "top-k" && options.intermediate.length > 0)
    throw new CoppiceError(
      "intermediate-state losses need the whole teacher: they do not go with top-k or cached logits",
    );
  if (teacher.kind === "online" && options.divergence === "top-k")
    throw new CoppiceError("a top-k divergence takes a top-k teacher");
  return {
    name: "distillation",
    auxiliary: (student) =>
      options.intermediate.map((_, i) => ({
        name: `projection.${i}`,
        shape: [teacher.kind === "online" ? hiddenSize(teacher.weights.model) : 1, hiddenSize(student)],
      })),
    build: (context) => buildDistillation(context, teacher, options),
  };
}

const hiddenSize = (model: Model): number => model.sizes.hidden ?? 1;

function buildDistillation(context: ObjectiveContext, teacher: Teacher, options: DistillationOptions): BuiltObjective {
  const { g } = context;
  const terms: Record<string, Tensor> = {};
  const feeds: BuiltObjective["feed"][] = [];
  let loss: Tensor;
  if (teacher.kind === "online") {
    const { weights } = teacher;
    const states = new Map<string, Tensor>();
    const logits = g.withoutGradient(() =>
      weights.model
        .forward(g, weights.get, context.tokens, { tap: (name, activation) => void states.set(name, activation) })
        .logits(),
    );
    loss = denseDivergence(
      g,
      options.divergence as "forward-kl",
      context.student.logits(),
      logits,
      options.temperature,
    );
    terms.divergence = loss;
    if (options.intermediate.length > 0) {
      const matched = intermediateLoss(context, states, options);
      terms.intermediate = matched;
      const alpha = g.withoutGradient(() => ops.div(g, stopGradient(loss), stopGradient(matched)));
      loss = ops.add(g, loss, ops.mul(g, matched, alpha));
    }
  } else {
    const { source } = teacher;
    const targets = source.declareInputs(context);
    loss = topKDivergence(g, context.student.logits(), targets, options.temperature);
    terms.divergence = loss;
    feeds.push((batch, numbers) => source.feed(g, targets, batch, numbers));
  }
  if (options.crossEntropyWeight > 0) {
    const data = nextTokenLoss(context);
    terms.crossEntropy = data.loss;
    feeds.push(data.feed);
    loss = ops.add(g, loss, ops.scale(g, data.loss, { factor: options.crossEntropyWeight }));
  }
  return {
    loss,
    terms,
    feed: async (batch, numbers) => {
      for (const feed of feeds) await feed(batch, numbers);
    },
  };
}

/** Mean squared error between the teacher's states and the student's, projected to the teacher's width. */
function intermediateLoss(
  { g, taps, auxiliary }: ObjectiveContext,
  states: ReadonlyMap<string, Tensor>,
  { intermediate }: DistillationOptions,
): Tensor {
  const errors = intermediate.map((pair, i) => {
    const student = taps.get(pair.student);
    const teacher = states.get(pair.teacher);
    if (student === undefined || teacher === undefined)
      throw new CoppiceError(`there is no state ${student === undefined ? pair.student : pair.teacher} to match`);
    const projected = ops.linear(g, student, auxiliary(`projection.${i}`));
    return ops.mean(g, ops.square(g, ops.sub(g, projected, teacher)));
  });
  return errors.reduce((total, error) => ops.add(g, total, error));
}

/**
 * Which states to match after a depth cut: the embeddings' output and the outputs of the student's last layers, each with
 * the teacher layer it was taken from (arXiv 2407.14679, section 3.2: the later layers matter).
 * @param keptLayers for each student layer, the teacher's layer it came from
 */
export function defaultIntermediatePairs(keptLayers: readonly number[]): DistillationOptions["intermediate"] {
  const late = keptLayers
    .map((from, to) => ({ student: `layers.${to}.output`, teacher: `layers.${from}.output` }))
    .slice(-3, -1);
  return [{ student: "embed_tokens.output", teacher: "embed_tokens.output" }, ...late];
}
