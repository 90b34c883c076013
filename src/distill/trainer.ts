import { type Sequences, TrainingOrder } from "../data/index.js";
import type { Backend } from "../ggml/device.js";
import type { ModelWeights } from "../models/index.js";
import type { Ranks } from "../ranks/index.js";
import { CoppiceError, InterruptedError } from "../system/errors.js";
import { type Graph, learningRateAt } from "../tensor/index.js";
import { leadStep, sharedOptions } from "./follow.js";
import type { Objective } from "./objective.js";
import type { MetricsRecord, RunDirectory } from "./run-directory.js";
import { checkTrainOptions, stepsOf, type TrainOptions } from "./train-options.js";
import { type StepOutcome, TrainingStep } from "./training-step.js";

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
  /** Processes that take each step together; this is their leader, and the others follow this training already. */
  readonly ranks?: Ranks | undefined;
}

export interface TrainResult {
  readonly steps: number;
  readonly tokens: number;
  readonly seconds: number;
  readonly tokensPerSecond: number;
  /** Mean training loss over the last tenth of the steps. */
  readonly finalLoss: number;
}

/** No more than so much is to be lost by a kill, however long a step takes. */
const SAVE_EVERY_SECONDS = 600;

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

/** A training run; {@link train} drives it. */
export class Trainer {
  private readonly options: TrainOptions;
  private readonly steps: number;
  private readonly tokensPerStep: number;
  private readonly order: TrainingOrder;
  private readonly trainingStep: TrainingStep;

  constructor(private readonly job: TrainJob) {
    const { ranks, options } = job;
    this.options = ranks === undefined ? options : sharedOptions(options, ranks.size);
    this.tokensPerStep = options.batchSize * options.sequenceLength;
    this.steps = stepsOf(options);
    this.order = new TrainingOrder(job.sequences.count, options.seed);
    this.trainingStep = new TrainingStep({ ...job, options: this.options });
  }

  async run(): Promise<TrainResult> {
    const { run, options } = this.job;
    const { saved } = this.trainingStep;
    const start = run?.restore(saved, this.job.onNote) ?? { step: 0, seconds: 0 };
    await this.begin();
    run?.truncateMetrics(start.step);
    const started = performance.now();
    const seconds = () => start.seconds + (performance.now() - started) / 1000;
    let savedSeconds = start.seconds;
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
      const isDue = step % options.saveEverySteps === 0 || seconds() - savedSeconds >= SAVE_EVERY_SECONDS;
      const isLast = step === this.steps && Number.isFinite(options.saveEverySteps);
      if (isDue || stop || isLast) {
        run?.save({ step, seconds: seconds() }, saved);
        savedSeconds = seconds();
      }
      if (stop && step < this.steps)
        throw new InterruptedError(
          `stopped at step ${step} of ${this.steps}${run === undefined ? "" : "; the same command goes on from there"}`,
        );
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

  /** Gives the other processes, if there are any, the weights to start from. */
  async begin(): Promise<void> {
    const { ranks } = this.job;
    ranks?.postAll({ kind: "spread" });
    await ranks?.together(() => this.trainingStep.spread());
  }

  /** Takes one optimizer step, counted from 1. */
  async step(step: number): Promise<StepOutcome & { readonly learningRate: number }> {
    const { sequences, firstSequence = 0, ranks } = this.job;
    const { options } = this;
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
    const batches = Array.from({ length: options.batchSize / options.microBatchSize }, (_, i) => {
      const position = firstSequence + (step - 1) * options.batchSize + i * options.microBatchSize;
      const numbers = this.order.range(position, options.microBatchSize);
      return { numbers, ...sequences.batch(numbers) };
    });
    const outcome =
      ranks === undefined
        ? await this.trainingStep.take(batches, learningRate, step)
        : await leadStep(this.trainingStep, ranks, batches, learningRate, step);
    return { ...outcome, learningRate };
  }

  /** The graphs that a step runs. */
  get graphs(): Graph[] {
    return this.trainingStep.graphs;
  }

  free(): void {
    this.trainingStep.free();
  }
}
