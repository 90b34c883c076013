import type { Batch } from "../data/index.js";
import { type ForwardResult, type Model, type ModelWeights, sizeOf, type Tap } from "../models/index.js";
import { CoppiceError } from "../system/errors.js";
import { type Graph, ops, type Tensor } from "../tensor/index.js";
import type { Divergence } from "./divergences.js";
import { stopGradient } from "./losses.js";
import type { SparseTeacher } from "./teacher.js";

/** The surroundings of an objective in the training graph. */
export interface ObjectiveContext {
  readonly g: Graph;
  readonly model: Model;
  /** i32 [batch, sequence]. */
  readonly tokens: Tensor;
  readonly student: ForwardResult;
  /** The first tokens of the model's vocabulary, of which logits are used; further rows are padding. All by default. */
  readonly vocabSize?: number | undefined;
  /** The student's tapped activations by name. */
  readonly taps: ReadonlyMap<string, Tensor>;
  /** Parameters trained along with the student and discarded afterwards, for example projections. */
  readonly auxiliary: (name: string) => Tensor;
}

/** The part of the graph that an objective built. */
export interface BuiltObjective {
  /** What is minimized, [1]. */
  readonly loss: Tensor;
  /** Its terms, for the metrics. */
  readonly terms: Readonly<Record<string, Tensor>>;
  /** Writes the objective's own inputs for a batch. @param numbers of its sequences in the data */
  readonly feed: (batch: Batch, numbers: readonly number[]) => Promise<void>;
  /** [1], finite only if the teacher's last states are: the loss may be finite even if they are not. */
  readonly teacherCheck?: Tensor | undefined;
}

/** A training objective. */
export interface Objective {
  readonly name: string;
  /** Names and shapes of the extra parameters it needs. */
  readonly auxiliary: (student: Model) => readonly { readonly name: string; readonly shape: readonly number[] }[];
  readonly build: (context: ObjectiveContext) => BuiltObjective;
  /** A model that runs beside the student, to examine when outputs stop being finite. */
  readonly teacher?: ModelWeights | undefined;
}

/** A term of the loss that needs logits: one of {@link ops.headLoss}, but averaged over the rows, with its inputs. */
interface LogitTerm {
  readonly name: string;
  readonly weight: number;
  /** The sum over a range of rows of logits, [1]. */
  readonly of: (logits: Tensor, range: ops.RowRange) => Tensor;
  readonly feed?: BuiltObjective["feed"] | undefined;
  readonly teacherCheck?: Tensor | undefined;
}

const vocabularyOf = ({ vocabSize, model }: ObjectiveContext): number => vocabSize ?? model.vocabSize;

const rowCount = ({ tokens }: ObjectiveContext): number => tokens.shape.reduce((a, b) => a * b, 1);

/** Cross-entropy with the next token of the data. */
function nextTokenTerm(context: ObjectiveContext, weight: number): LogitTerm {
  const { g } = context;
  const rows = rowCount(context);
  const indices = g.input("targets", "i32", [rows]);
  return {
    name: "crossEntropy",
    weight,
    of: (logits, range) => ops.crossEntropy(g, logits, ops.rowsOf(g, indices, range)),
    feed: async (batch) => g.write(indices, ops.headIndices(batch.targets, rows, vocabularyOf(context))),
  };
}

/** Adds up terms that share the student's logits, which are computed once, a range of rows at a time. */
function lossOf(context: ObjectiveContext, logitTerms: readonly LogitTerm[]): BuiltObjective {
  const { g, student } = context;
  const rows = rowCount(context);
  const vocabSize = vocabularyOf(context);
  const logits = (hidden: Tensor) => ops.firstColumns(g, student.logits(hidden), vocabSize);
  const summands = logitTerms.map(({ weight, of }) => ({ weight: weight / rows, of }));
  const { loss, terms } = ops.headLoss(g, student.hidden, vocabSize, logits, summands);
  const means = g.withoutGradient(() => terms.map((term) => ops.scale(g, term, { factor: 1 / rows })));
  return {
    loss,
    teacherCheck: logitTerms.find(({ teacherCheck }) => teacherCheck !== undefined)?.teacherCheck,
    terms: Object.fromEntries(logitTerms.map(({ name }, i) => [name, means[i] as Tensor])),
    feed: async (batch, numbers) => {
      for (const { feed } of logitTerms) await feed?.(batch, numbers);
    },
  };
}

/** Ordinary language modelling. */
export const crossEntropyObjective: Objective = {
  name: "cross-entropy",
  auxiliary: () => [],
  build: (context) => lossOf(context, [nextTokenTerm(context, 1)]),
};

export interface DistillationOptions {
  readonly divergence: Divergence;
  readonly temperature: number;
  /** Weight of the cross-entropy with the data; that of the divergence is 1. */
  readonly crossEntropyWeight: number;
  /** Intermediate states to match as well: pairs of tap names, the student's and the teacher's. */
  readonly intermediate: readonly { readonly student: string; readonly teacher: string }[];
  /** Tokens that both models have; further rows of their heads are padding, which the loss ignores. All by default. */
  readonly vocabSize?: number | undefined;
}

export const DISTILLATION_DEFAULTS: DistillationOptions = {
  divergence: "forward-kl",
  temperature: 1,
  crossEntropyWeight: 0,
  intermediate: [],
};

/** The teacher in the training graph: part of it, or only a few numbers of its distributions as inputs. */
export type Teacher =
  | { readonly kind: "online"; readonly weights: ModelWeights }
  | { readonly kind: "sparse"; readonly source: SparseTeacher };

/**
 * Knowledge distillation: the student's distributions towards the teacher's (arXiv 2407.14679, section 3), optionally its
 * states too (eq. 6-8, with the weight set to the ratio of the losses at each step).
 * @throws CoppiceError when the options cannot be combined
 */
export function distillationObjective(teacher: Teacher, options: DistillationOptions): Objective {
  if (teacher.kind === "sparse") checkSparse(teacher.source, options);
  if (teacher.kind === "online" && options.divergence === "top-k")
    throw new CoppiceError("a top-k divergence needs a top-k teacher");
  return {
    name: "distillation",
    teacher: teacher.kind === "online" ? teacher.weights : undefined,
    auxiliary: (student) =>
      options.intermediate.map((_, i) => ({
        name: `projection.${i}`,
        shape: [teacher.kind === "online" ? hiddenSize(teacher.weights.model) : 1, hiddenSize(student)],
      })),
    build: (context) => buildDistillation(context, teacher, options),
  };
}

function checkSparse(
  { options: { targets } }: SparseTeacher,
  { intermediate, divergence, temperature }: DistillationOptions,
): void {
  if (intermediate.length > 0)
    throw new CoppiceError(
      "intermediate-state losses need the whole teacher: they cannot be combined with top-k, sampled or cached logits",
    );
  if (targets.divergence !== divergence)
    throw new CoppiceError(`the teacher's targets are for the divergence ${targets.divergence}, not ${divergence}`);
  if (targets.temperature !== temperature)
    throw new CoppiceError(`the teacher's targets are for the temperature ${targets.temperature}, not ${temperature}`);
}

const hiddenSize = (model: Model): number => sizeOf("hidden", model.sizes);

function buildDistillation(
  objectiveContext: ObjectiveContext,
  teacher: Teacher,
  options: DistillationOptions,
): BuiltObjective {
  const context = { ...objectiveContext, vocabSize: options.vocabSize };
  if (teacher.kind === "sparse" && teacher.source.options.vocabSize !== vocabularyOf(context))
    throw new CoppiceError(
      `the teacher's targets are of ${teacher.source.options.vocabSize} tokens, the student's loss of ${vocabularyOf(context)}: vocabSize must be the same`,
    );
  const { g } = context;
  const states = new Map<string, Tensor>();
  const divergence =
    teacher.kind === "online"
      ? onlineTerm(context, teacher.weights, states, options)
      : sparseTerm(context, teacher.source);
  const terms = [divergence];
  if (options.crossEntropyWeight > 0) terms.push(nextTokenTerm(context, options.crossEntropyWeight));
  const built = lossOf(context, terms);
  if (options.intermediate.length === 0) return built;
  const matched = intermediateLoss(context, states, options);
  // weighted to equal the divergence (arXiv 2407.14679, section 3.3)
  const divergenceNow = stopGradient(built.terms.divergence as Tensor);
  const alpha = g.withoutGradient(() => ops.div(g, divergenceNow, stopGradient(matched)));
  return {
    ...built,
    loss: ops.add(g, built.loss, ops.mul(g, matched, alpha)),
    terms: { ...built.terms, intermediate: matched },
  };
}

/** The divergence from a teacher that runs beside the student; its logits exist only for the same range of rows. */
function onlineTerm(
  context: ObjectiveContext,
  weights: ModelWeights,
  states: Map<string, Tensor>,
  { divergence, temperature, intermediate }: DistillationOptions,
): LogitTerm {
  const { g, tokens } = context;
  const tap: Tap = ({ name, tensor }) => {
    if (intermediate.some((pair) => pair.teacher === name)) states.set(name, tensor);
  };
  const { hidden, logits } = g.withoutGradient(() => weights.model.forward(g, weights.get, tokens, { tap }));
  return {
    name: "divergence",
    weight: 1,
    teacherCheck: g.withoutGradient(() => ops.sum(g, hidden)),
    of: (student, range) => {
      const teacher = g.withoutGradient(() =>
        ops.firstColumns(g, logits(ops.rowsOf(g, hidden, range)), vocabularyOf(context)),
      );
      return ops.divergence(g, student, teacher, { kind: divergence as ops.DivergenceKind, temperature });
    },
  };
}

/** The divergence from targets that are inputs. */
function sparseTerm(context: ObjectiveContext, source: SparseTeacher): LogitTerm {
  const { g } = context;
  const rows = rowCount(context);
  const { targets } = source.options;
  const inputs = source.declareInputs(g, rows);
  return {
    name: targets.lossName,
    weight: 1,
    of: (student, range) => targets.loss(g, student, inputs.rows(g, range)),
    feed: (batch, numbers) => source.feed(g, inputs, rows, batch, numbers),
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
 * The states to match after a depth cut: the embeddings' output and the outputs of the student's last layers, each with that of the
 * teacher's layer it comes from (arXiv 2407.14679, section 3.2: the later layers matter).
 * @param keptLayers for each student layer, the teacher's layer it came from
 */
export function defaultIntermediatePairs(keptLayers: readonly number[]): DistillationOptions["intermediate"] {
  const lastLayers = keptLayers
    .map((from, to) => ({ student: `layers.${to}.output`, teacher: `layers.${from}.output` }))
    .slice(-3, -1);
  return [{ student: "embed_tokens.output", teacher: "embed_tokens.output" }, ...lastLayers];
}
