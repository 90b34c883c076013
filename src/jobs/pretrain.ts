import { existsSync, readdirSync } from "node:fs";
import path from "node:path";
import { readConfigJson } from "../checkpoint/config-json.js";
import { storedType } from "../checkpoint/stored-type.js";
import { checkVocabulary, Sequences } from "../data/index.js";
import { crossEntropyObjective, type TrainResult } from "../distill/index.js";
import type { FloatDType } from "../ggml/index.js";
import {
  type Checkpoint,
  type ConfigJson,
  countParameters,
  initialize,
  modelFromConfig,
  writeModel,
} from "../models/index.js";
import { UsageError } from "../system/errors.js";
import { dataInputs, modelIdentity, modelInput } from "./inputs.js";
import { onDevice } from "./job.js";
import { checkTrainable, trainableWeights } from "./model-memory.js";
import { openData } from "./open-data.js";
import { openModel } from "./open-model.js";
import { claim, inRun } from "./output.js";
import { noteTraining } from "./sanity.js";
import { checkShared } from "./shared/training.js";
import { Stages } from "./stages.js";
import {
  finish,
  runTraining,
  type TrainingJob,
  type TrainingOutcome,
  type TrainStage,
  trainOptionsFor,
} from "./training.js";

export interface PretrainJob extends TrainingJob {
  /** A model to continue training, or a directory with config.json and a tokenizer to start from scratch. */
  readonly model: string;
  readonly fromScratch?: boolean | undefined;
  readonly dtype?: FloatDType | undefined;
}

/** What training starts from: a checkpoint, or only a configuration and a tokenizer. */
interface Start {
  readonly checkpoint: Checkpoint | undefined;
  readonly directory: string;
  readonly config: ConfigJson;
}

async function startOf(job: PretrainJob): Promise<Start> {
  if (job.fromScratch === true) {
    const file = path.join(job.model, "config.json");
    if (!existsSync(file)) throw new UsageError(`${job.model} has no config.json to start from`);
    return { checkpoint: undefined, directory: job.model, config: readConfigJson(file) };
  }
  if (hasNoWeights(job.model))
    throw new UsageError(`${job.model} has a config.json and no weights: --from-scratch begins with random ones`);
  const { checkpoint } = await openModel(job.model, job);
  return { checkpoint, directory: checkpoint.directory, config: checkpoint.config };
}

/** Whether a directory holds the description of a model only. */
const hasNoWeights = (directory: string): boolean =>
  existsSync(path.join(directory, "config.json")) &&
  !readdirSync(directory).some((name) => /\.(safetensors|bin|pth?)(\.index\.json)?$/.test(name));

/**
 * Trains a model to predict the next token, from scratch or from its weights.
 * @example
 * ```ts
 * import { pretrain } from "coppice";
 *
 * const { student, tokensPerSecond } = await pretrain({
 *   model: "./configuration", // config.json and a tokenizer
 *   fromScratch: true,
 *   data: ["stories.txt"],
 *   settings: { tokens: 6e6, sequenceLength: 128, batchSize: 32, learningRate: 3e-3 },
 *   out: "./model",
 * });
 * console.log(student.perplexity, tokensPerSecond);
 * ```
 */
export async function pretrain(job: PretrainJob): Promise<TrainingOutcome> {
  const start = await startOf(job);
  const { checkpoint, directory } = start;
  const files = checkpoint ?? { path: directory, directory, files: [] };
  return inRun(job, [...modelInput("the model", files), ...(await dataInputs(job))], async (run) => {
    const model = modelFromConfig(start.config);
    const settings = trainOptionsFor(model, job.settings);
    const { train: tokens, validation } = await openData({ directory, model }, job, job);
    checkVocabulary(tokens, model.vocabSize);
    checkShared(settings, job);
    noteTraining(settings, tokens, job);
    const dtype = job.dtype ?? (checkpoint === undefined ? "bf16" : storedType(checkpoint.source));
    claim(run, job, {
      command: "pretrain",
      inputs: { model: await modelIdentity(files, job.cacheDir), data: tokens.id, validation: validation.id },
      fromScratch: job.fromScratch === true,
      settings,
      dtype,
    });
    const stages = new Stages(run.own("stages.json"));
    return onDevice(job, async (backend) => {
      const result = await stages.once("pretrain", () =>
        pretrainStage(start, dtype, {
          backend,
          stage: "pretrain",
          run,
          model,
          sequences: new Sequences(tokens, settings.sequenceLength),
          settings,
          validation,
          options: job,
        }),
      );
      const { sequenceLength } = settings;
      return finish({ backend, run, stages, result, validation, sequenceLength, job });
    });
  });
}

/** Trains and writes the model to the run's directory. */
async function pretrainStage(
  { checkpoint, directory }: Start,
  dtype: FloatDType,
  stage: Omit<TrainStage, "student" | "objective">,
): Promise<TrainResult> {
  const { backend, model, run, settings } = stage;
  checkTrainable(backend, countParameters(model.parameters, model.sizes), settings, stage.options);
  const student =
    checkpoint === undefined
      ? initialize(backend, model, settings.seed)
      : trainableWeights(backend, checkpoint, settings, stage.options);
  try {
    const outcome = await runTraining({ ...stage, student, objective: crossEntropyObjective });
    writeModel(
      run.path,
      { ...(checkpoint ?? { model }), source: student.source() },
      { dtype, carryFrom: directory, place: (name) => run.own(name), onNote: stage.options.onNote },
    );
    return outcome;
  } finally {
    student.free();
  }
}
