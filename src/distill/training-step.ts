import type { Batch } from "../data/index.js";
import { overflowError } from "../evaluate/finite.js";
import type { Backend } from "../ggml/device.js";
import type { ModelWeights, Tap } from "../models/index.js";
import type { Ranks } from "../ranks/index.js";
import type { CoppiceError } from "../system/errors.js";
import { Random } from "../system/random.js";
import { elementCount, Graph, gradients, ops, type Tensor, TensorStore } from "../tensor/index.js";
import type { BuiltObjective, Objective } from "./objective.js";
import { type SavedTensor, savedTensors } from "./saved-tensor.js";
import { SharedUpdate } from "./shared-update.js";
import type { TrainOptions } from "./train-options.js";
import { accumulatedUpdate, freedUpdate, type Update, type UpdateInputs, wholeUpdate } from "./update.js";

/** What a training step is built from. */
export interface TrainingStepInputs {
  readonly backend: Backend;
  /** f32 and trainable; updated in place. */
  readonly student: ModelWeights;
  readonly objective: Objective;
  readonly options: TrainOptions;
  /** Processes that compute the step together, each some of its micro-batches. */
  readonly ranks?: Ranks | undefined;
}

/** Sequences that are computed at once. */
export interface MicroBatch extends Batch {
  /** Of its sequences in the data. */
  readonly numbers: readonly number[];
}

/** What a step found. Means over the batch. */
export interface StepOutcome {
  readonly loss: number;
  /** The loss's terms. */
  readonly terms: Readonly<Record<string, number>>;
  /** Global norm of the gradient before clipping. */
  readonly gradientNorm: number;
}

function updateFor({ batchSize, microBatchSize, freeGradients }: TrainOptions): (inputs: UpdateInputs) => Update {
  if (batchSize !== microBatchSize) return accumulatedUpdate;
  return freeGradients === true ? freedUpdate : wholeUpdate;
}

/** The parameters that an objective trains along, not allocated yet. */
function declareAuxiliary({ backend, student, objective }: TrainingStepInputs): TensorStore {
  const specs = objective.auxiliary(student.model);
  const store = new TensorStore(backend, specs.length);
  for (const { name, shape } of specs) store.add(name, shape, "f32", { trainable: true });
  return store;
}

/** Adds a micro-batch's loss to a new graph. */
function buildLoss({ backend, student, objective, options }: TrainingStepInputs, auxiliary: TensorStore) {
  const { computeType, recompute, microBatchSize, sequenceLength } = options;
  const { model } = student;
  const g = new Graph(backend, { computeType, recompute });
  const tokens = g.input("tokens", "i32", [microBatchSize, sequenceLength]);
  const taps = new Map<string, Tensor>();
  const tap: Tap = ({ name, tensor }) => void taps.set(name, tensor);
  const result = model.forward(g, student.get, tokens, { tap });
  const auxiliaryOf = (name: string) => auxiliary.get(name);
  const built = objective.build({ g, model, tokens, student: result, taps, auxiliary: auxiliaryOf });
  return { g, tokens, objective: built };
}

/** Bytes of a micro-batch's activations and of the gradients that flow through them, beside those of weights. */
export function activationBytes(inputs: TrainingStepInputs): number {
  const auxiliary = declareAuxiliary(inputs);
  const { g, objective } = buildLoss(inputs, auxiliary);
  try {
    gradients(g, objective.loss, [...inputs.student.trained, ...auxiliary], (_weight, gradient) =>
      g.effect(g.withoutGradient(() => ops.sum(g, gradient))),
    );
    return g.planBytes();
  } finally {
    g.free();
    auxiliary.free();
  }
}

/** The graphs and state of an optimizer step. */
export class TrainingStep {
  private readonly auxiliary: TensorStore;
  private readonly forward: Graph;
  private readonly tokens: Tensor;
  private readonly objective: BuiltObjective;
  private readonly update: Update;
  /** The same, where several ranks share it. */
  readonly shared: SharedUpdate | undefined;

  constructor(private readonly inputs: TrainingStepInputs) {
    const { backend, student, options, ranks } = inputs;
    this.auxiliary = this.initializeAuxiliary();
    const { g, tokens, objective } = buildLoss(inputs, this.auxiliary);
    this.forward = g;
    this.tokens = tokens;
    this.objective = objective;
    const { loss, teacherCheck, terms } = objective;
    for (const tensor of [loss, ...(teacherCheck === undefined ? [] : [teacherCheck]), ...Object.values(terms)])
      g.output(tensor);
    const updated = { backend, g, loss, weights: [...student.trained, ...this.auxiliary], options };
    let update: Update | undefined;
    try {
      this.shared = ranks === undefined ? undefined : new SharedUpdate(updated, ranks);
      update = this.shared ?? updateFor(options)(updated);
      this.update = update;
      g.compile();
    } catch (error) {
      update?.free();
      g.free();
      this.auxiliary.free();
      throw error;
    }
  }

  private initializeAuxiliary(): TensorStore {
    const { options } = this.inputs;
    const store = declareAuxiliary(this.inputs).allocate();
    [...store].forEach((tensor, i) => {
      const random = new Random(options.seed, 1000 + i);
      const deviation = 1 / Math.sqrt(tensor.shape.at(-1) ?? 1);
      store.write(
        tensor,
        Float32Array.from({ length: elementCount(tensor.shape) }, () => deviation * random.normal()),
      );
    });
    return store;
  }

  /** Everything that the next steps depend on, for a checkpoint. */
  get saved(): SavedTensor[] {
    return [...savedTensors(this.inputs.student.store), ...savedTensors(this.auxiliary), ...this.update.saved()];
  }

  /** Copies the leader's weights to all ranks, which all must call it. */
  async spread(): Promise<void> {
    await this.shared?.spread([this.inputs.student.store, this.auxiliary]);
  }

  /**
   * Takes a step. With ranks, all take it, each with its own micro-batches.
   * @param stepNumber counts from 1
   */
  async take(batches: readonly MicroBatch[], learningRate: number, stepNumber: number): Promise<StepOutcome> {
    const { ranks, options } = this.inputs;
    const { forward: g, update, objective } = this;
    const micro = options.batchSize / options.microBatchSize;
    const names = Object.keys(objective.terms);
    const sums = new Float64Array(1 + names.length);
    update.begin(learningRate, stepNumber);
    for (const [i, batch] of batches.entries()) {
      g.write(this.tokens, batch.tokens);
      await objective.feed(batch, batch.numbers);
      await update.compute(i === batches.length - 1);
      const value = (tensor: Tensor) => (g.read(tensor)[0] ?? Number.NaN) / micro;
      const { teacherCheck } = objective;
      if (teacherCheck !== undefined && !Number.isFinite(value(teacherCheck)))
        throw await this.teacherError(batch.tokens);
      [objective.loss, ...Object.values(objective.terms)].forEach((tensor, k) => {
        sums[k] = (sums[k] ?? 0) + value(tensor);
      });
    }
    const gradientNorm = await update.finish();
    const all = ranks === undefined ? [sums] : await ranks.gather(sums);
    const total = (k: number) => all.reduce((sum, one) => sum + (one[k] ?? Number.NaN), 0);
    return { loss: total(0), terms: Object.fromEntries(names.map((name, k) => [name, total(k + 1)])), gradientNorm };
  }

  private teacherError(tokens: Int32Array): Promise<CoppiceError> {
    const { backend, objective, options, student } = this.inputs;
    const { microBatchSize: batch, computeType } = options;
    return overflowError("the teacher", { backend, weights: objective.teacher ?? student, tokens, batch, computeType });
  }

  /** The graphs that a step runs. */
  get graphs(): Graph[] {
    return [this.forward, ...this.update.graphs];
  }

  free(): void {
    this.forward.free();
    this.update.free();
    this.auxiliary.free();
  }
}
