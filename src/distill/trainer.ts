import { type Sequences, TrainingOrder } from "../data/index.js";
import { overflowError } from "../evaluate/finite.js";
import type { Backend } from "../ggml/device.js";
import type { ModelWeights } from "../models/index.js";
import { CoppiceError, InterruptedError, UsageError } from "../system/errors.js";
import { Random } from "../system/random.js";
import {
  ADAMW_DEFAULTS,
  AdamW,
  type AdamWOptions,
  type ComputeType,
  elementCount,
  Graph,
  gradients,
  learningRateAt,
  ops,
  type Schedule,
  type Tensor,
  TensorStore,
} from "../tensor/index.js";
import type { BuiltObjective, Objective } from "./objective.js";
import type { MetricsRecord, RunDirectory } from "./run-directory.js";

export interface TrainOptions extends AdamWOptions {
  /** How many tokens to train on; rounded up to whole steps. */
  readonly tokens: number;
  /** Tokens per sequence. */
  readonly sequenceLength: number;
  /** Sequences per optimizer step. */
  readonly batchSize: number;
  /** Sequences computed at once; a step accumulates the gradients of several such. Divides the batch size. */
  readonly microBatchSize: number;
  readonly learningRate: number;
  readonly minimumLearningRate: number;
  readonly schedule: Schedule["kind"];
  readonly warmupSteps: number;
  readonly seed: number;
  readonly computeType: ComputeType;
  /** Recompute each layer's activations for its gradient instead of keeping them: less memory, about a third more time. */
  readonly recompute: boolean;
  /** Steps between checkpoints. */
  readonly saveEverySteps: number;
  /** Steps between measurements on the validation data; 0 for none. */
  readonly validateEverySteps: number;
}

/**
 * Default settings for a model of a width. The peak learning rate is arXiv 2408.11796's 1e-4 at width 4096 and falls with the width
 * to the power of 0.85; it decays to a tenth. The first tenth of the steps, at most 40, warm up.
 */
export function defaultTrainOptions(
  hidden: number,
  tokens: number,
  sequenceLength: number,
  batchSize: number,
): TrainOptions {
  const steps = Math.ceil(tokens / (batchSize * sequenceLength));
  const learningRate = Number((1e-4 * (4096 / hidden) ** 0.85).toPrecision(2));
  return {
    ...ADAMW_DEFAULTS,
    tokens,
    sequenceLength,
    batchSize,
    microBatchSize: batchSize,
    learningRate,
    minimumLearningRate: learningRate / 10,
    schedule: "cosine",
    warmupSteps: warmupFor(steps),
    seed: 0,
    computeType: "bf16",
    recompute: false,
    saveEverySteps: Math.max(10, Math.ceil(steps / 20)),
    validateEverySteps: 0,
  };
}

export interface TrainProgress {
  readonly record: MetricsRecord;
  readonly totalTokens: number;
}

export interface TrainJob {
  readonly backend: Backend;
  /** f32 and trainable; updated in place. */
  readonly student: ModelWeights;
  readonly objective: Objective;
  readonly sequences: Sequences;
  readonly options: TrainOptions;
  /** Where in the order of training the run begins; 0 by default. */
  readonly firstSequence?: number | undefined;
  /** Where metrics and checkpoints go. Without it nothing is saved or resumed. */
  readonly run?: RunDirectory | undefined;
  readonly onProgress?: ((progress: TrainProgress) => void) | undefined;
  /** Called with notes that need no action. */
  readonly onNote?: ((text: string) => void) | undefined;
  /** Measures the validation loss of the current student. */
  readonly validate?: (() => Promise<number>) | undefined;
  /** When aborted, training stops after the current step, with a checkpoint. */
  readonly signal?: AbortSignal | undefined;
}

export interface TrainResult {
  readonly steps: number;
  readonly tokens: number;
  readonly seconds: number;
  readonly tokensPerSecond: number;
  /** Mean training loss over the last tenth of the steps. */
  readonly finalLoss: number;
}

/** Optimizer steps of a run. */
export const stepsOf = ({ tokens, batchSize, sequenceLength }: TrainOptions): number =>
  Math.ceil(tokens / (batchSize * sequenceLength));

/** The default number of warm-up steps of a run. */
const warmupFor = (steps: number): number => Math.min(40, Math.ceil(steps / 10));

/** Settings for another number of tokens, with at most the default warm-up of such a run. */
export function forTokens(options: TrainOptions, tokens: number): TrainOptions {
  const warmupSteps = Math.min(options.warmupSteps, warmupFor(stepsOf({ ...options, tokens })));
  return { ...options, tokens, warmupSteps };
}

/** Checks settings. @throws UsageError naming one that is invalid */
export function checkTrainOptions(options: TrainOptions): void {
  const positive = [
    "tokens",
    "sequenceLength",
    "batchSize",
    "microBatchSize",
    "learningRate",
    "saveEverySteps",
  ] as const;
  for (const name of positive)
    if (!(options[name] > 0)) throw new UsageError(`${name} must be positive, not ${options[name]}`);
  if (options.batchSize % options.microBatchSize !== 0)
    throw new UsageError(
      `the batch of ${options.batchSize} sequences cannot be computed ${options.microBatchSize} at a time`,
    );
  const steps = stepsOf(options);
  if (options.warmupSteps > steps)
    throw new UsageError(
      `a warm-up of ${options.warmupSteps} steps is longer than the run of ${steps}: the learning rate would never reach ${options.learningRate}`,
    );
  if (options.schedule !== "constant" && options.minimumLearningRate > options.learningRate)
    throw new UsageError(
      `the learning rate would rise: it ends at ${options.minimumLearningRate}, above its peak of ${options.learningRate}`,
    );
  for (const name of ["weightDecay", "minimumLearningRate", "warmupSteps", "validateEverySteps", "clipNorm"] as const)
    if (!(options[name] >= 0)) throw new UsageError(`${name} must be 0 or more, not ${options[name]}`);
}

/**
 * Trains a model towards an objective. Results depend only on the weights, the optimizer's state and the step number, so a run that
 * was killed and resumed ends bit-equal to one that was not.
 * @throws InterruptedError when the signal aborts, CoppiceError when the loss stops being finite
 */
export async function train(job: TrainJob): Promise<TrainResult> {
  checkTrainOptions(job.options);
  const trainer = new Trainer(job);
  try {
    return await trainer.run();
  } finally {
    trainer.free();
  }
}

/** The graphs and state of a training run; {@link train} drives it. */
export class Trainer {
  private readonly auxiliary: TensorStore;
  private readonly state: TensorStore;
  private readonly optimizer: AdamW;
  private readonly steps: number;
  private readonly tokensPerStep: number;
  private readonly order: TrainingOrder;
  private readonly weights: readonly Tensor[];
  private readonly forward: Graph;
  /** Gradient sums and the graph that updates weights by them, when gradients are accumulated. */
  private readonly accumulated: { readonly sums: TensorStore; readonly update: Graph } | undefined;
  private readonly tokens: Tensor;
  private readonly objective: BuiltObjective;
  private readonly norm: Tensor;

  constructor(private readonly job: TrainJob) {
    const { backend, student, options } = job;
    this.tokensPerStep = options.batchSize * options.sequenceLength;
    this.steps = stepsOf(options);
    this.order = new TrainingOrder(job.sequences.count, options.seed);
    this.auxiliary = this.initializeAuxiliary();
    this.weights = [...student.trained, ...this.auxiliary];
    this.state = new TensorStore(backend, AdamW.stateTensors(this.weights.length));
    this.optimizer = new AdamW(this.state, this.weights, options);
    this.state.allocate();

    const g = new Graph(backend, { computeType: options.computeType, recompute: options.recompute });
    this.forward = g;
    this.tokens = g.input("tokens", "i32", [options.microBatchSize, options.sequenceLength]);
    const taps = new Map<string, Tensor>();
    const result = student.model.forward(g, student.get, this.tokens, {
      tap: ({ name, tensor }) => void taps.set(name, tensor),
    });
    this.objective = job.objective.build({
      g,
      model: student.model,
      tokens: this.tokens,
      student: result,
      taps,
      auxiliary: (name) => this.auxiliary.get(name),
    });
    g.output(this.objective.loss);
    if (this.objective.teacherCheck !== undefined) g.output(this.objective.teacherCheck);
    for (const term of Object.values(this.objective.terms)) g.output(term);
    const derived = gradients(g, this.objective.loss, this.weights);
    if (options.batchSize === options.microBatchSize) {
      // Every update waits for the norm and so for all gradients: no weight changes before its last use.
      this.norm = this.optimizer.apply(g, derived);
      g.output(this.norm);
    } else {
      this.accumulated = this.accumulate(derived);
      this.norm = this.optimizer.apply(this.accumulated.update, [...this.accumulated.sums]);
      this.accumulated.update.output(this.norm);
      this.accumulated.update.compile();
    }
    g.compile();
  }

  /** Adds the mean gradient of a micro-batch to sums that last until the update. */
  private accumulate(derived: readonly Tensor[]) {
    const { backend, options } = this.job;
    const factor = options.microBatchSize / options.batchSize;
    const sums = new TensorStore(backend, derived.length);
    for (const weight of this.weights) sums.add(`${weight.name}.gradient`, weight.shape, "f32");
    sums.allocate();
    const g = this.forward;
    g.withoutGradient(() => {
      [...sums].forEach((sum, i) => {
        const gradient = derived[i] as Tensor;
        g.effect(ops.assign(g, ops.add(g, ops.scale(g, gradient, { factor }), sum), sum));
      });
    });
    return { sums, update: new Graph(backend) };
  }

  private initializeAuxiliary(): TensorStore {
    const { backend, student, objective, options } = this.job;
    const specs = objective.auxiliary(student.model);
    const store = new TensorStore(backend, specs.length);
    for (const { name, shape } of specs) store.add(name, shape, "f32", { trainable: true });
    store.allocate();
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

  async run(): Promise<TrainResult> {
    const { run, options } = this.job;
    const stores = [this.job.student.store, this.auxiliary, this.state];
    const start = run?.restore(stores, this.job.onNote) ?? { step: 0, seconds: 0 };
    run?.truncateMetrics(start.step);
    const started = performance.now();
    const seconds = () => start.seconds + (performance.now() - started) / 1000;
    const losses: number[] = (run?.readMetrics() ?? []).map((record) => record.loss);
    for (let step = start.step + 1; step <= this.steps; step++) {
      const stepStarted = performance.now();
      const outcome = await this.step(step);
      const elapsed = (performance.now() - stepStarted) / 1000;
      if (!Number.isFinite(outcome.loss) || !Number.isFinite(outcome.gradientNorm))
        throw new CoppiceError(
          `the loss became ${outcome.loss} (gradient norm ${outcome.gradientNorm}) at step ${step}: try a lower learning rate than ${options.learningRate}`,
        );
      losses.push(outcome.loss);
      const measure =
        options.validateEverySteps > 0 && (step % options.validateEverySteps === 0 || step === this.steps);
      const validationLoss = measure ? await this.job.validate?.() : undefined;
      const record: MetricsRecord = {
        step,
        tokens: step * this.tokensPerStep,
        ...outcome,
        tokensPerSecond: this.tokensPerStep / elapsed,
        seconds: seconds(),
        validationLoss,
      };
      run?.appendMetrics(record);
      this.job.onProgress?.({ record, totalTokens: this.steps * this.tokensPerStep });
      const stop = this.job.signal?.aborted === true;
      if (step % options.saveEverySteps === 0 || stop || step === this.steps)
        run?.save({ step, seconds: seconds() }, stores);
      if (stop && step < this.steps)
        throw new InterruptedError(`stopped at step ${step} of ${this.steps}; the same command goes on from there`);
    }
    const tokens = this.steps * this.tokensPerStep;
    const tail = losses.slice(-Math.max(1, Math.ceil(losses.length / 10)));
    const total = seconds();
    return {
      steps: this.steps,
      tokens,
      seconds: total,
      tokensPerSecond: tokens / total,
      finalLoss: tail.reduce((a, b) => a + b, 0) / tail.length,
    };
  }

  private teacherError(tokens: Int32Array): Promise<CoppiceError> {
    const { backend, objective, options, student } = this.job;
    const { microBatchSize: batch, computeType } = options;
    return overflowError("the teacher", { backend, weights: objective.teacher ?? student, tokens, batch, computeType });
  }

  /** Takes one optimizer step, counted from 1. */
  async step(step: number) {
    const { options, sequences, firstSequence = 0 } = this.job;
    const learningRate = learningRateAt(
      {
        kind: options.schedule,
        peak: options.learningRate,
        minimum: options.minimumLearningRate,
        warmupSteps: options.warmupSteps,
        totalSteps: this.steps,
      },
      step,
    );
    this.optimizer.prepare(learningRate, step);
    this.accumulated?.sums.clear();
    const microBatches = options.batchSize / options.microBatchSize;
    let loss = 0;
    const terms: Record<string, number> = {};
    for (let i = 0; i < microBatches; i++) {
      const position = firstSequence + (step - 1) * options.batchSize + i * options.microBatchSize;
      const numbers = this.order.range(position, options.microBatchSize);
      const batch = sequences.batch(numbers);
      this.forward.write(this.tokens, batch.tokens);
      await this.objective.feed(batch, numbers);
      await this.forward.run();
      const value = (tensor: Tensor) => (this.forward.read(tensor)[0] ?? Number.NaN) / microBatches;
      const { teacherCheck } = this.objective;
      if (teacherCheck !== undefined && !Number.isFinite(value(teacherCheck)))
        throw await this.teacherError(batch.tokens);
      loss += value(this.objective.loss);
      for (const [name, term] of Object.entries(this.objective.terms)) terms[name] = (terms[name] ?? 0) + value(term);
    }
    await this.accumulated?.update.run();
    const gradientNorm = (this.accumulated?.update ?? this.forward).read(this.norm)[0] ?? Number.NaN;
    return { loss, terms, learningRate, gradientNorm };
  }

  /** The graphs that a step runs. */
  get graphs(): Graph[] {
    return [this.forward, ...(this.accumulated === undefined ? [] : [this.accumulated.update])];
  }

  free(): void {
    this.forward.free();
    this.accumulated?.update.free();
    this.accumulated?.sums.free();
    this.state.free();
    this.auxiliary.free();
  }
}
