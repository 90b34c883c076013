import path from "node:path";
import type { HubOptions } from "../checkpoint/index.js";
import { type CompressOutcome, compress, evaluate, inspect, type ModelEvaluation, quantize } from "../jobs/index.js";
import { Stages } from "../jobs/stages.js";
import { trainOptionsFor } from "../jobs/training.js";
import { modelFromConfig } from "../models/index.js";
import type { FileKind } from "../quantize/index.js";
import type { JobContext } from "./job-context.js";
import type { CompressSpec } from "./specification.js";
import { trainSettings } from "./training.js";

export interface CompressionInputs {
  /** The model: a directory, a .gguf file or a hub id. */
  readonly reference: string;
  /** A file of documents. */
  readonly data: string;
  readonly hub: HubOptions;
  /** Kinds of GGUF files to make. */
  readonly kinds: readonly FileKind[];
}

export interface PruningInputs extends CompressionInputs {
  readonly target: string;
  readonly config: Readonly<Record<string, unknown>>;
}

/** A smaller model, as it was made and measured. */
export interface Compression {
  readonly models: Readonly<Record<string, { parameters: number; bytes: number; loss: number; perplexity: number }>>;
  readonly plan?: CompressOutcome["plan"] | undefined;
  readonly keptLayers?: readonly number[] | undefined;
  /** Tokens the student was distilled on. */
  readonly tokens?: number | undefined;
  /** Paths of the GGUF files. */
  readonly gguf: readonly string[];
  /** The model's directory, where there are files beside the GGUF files. */
  readonly directory?: string | undefined;
  readonly evaluation: readonly ModelEvaluation[] | undefined;
  readonly sentence?: string | undefined;
}

/** Where a model's answers to benchmarks are kept: with the job's work. */
export const answersOf = ({ workspace, model }: JobContext) => ({
  directory: path.join(workspace.path, "answers"),
  identities: [model.id],
});

/** How often the student is measured on validation data during training. */
const VALIDATIONS = 10;

/** Cuts the model to the target, and distills the original into it. */
export async function pruneAndDistill(
  { options, workspace, model, job }: JobContext,
  spec: CompressSpec,
  { reference, data, hub, kinds, target, config }: PruningInputs,
): Promise<Compression> {
  const settings = trainSettings(spec);
  const training = trainOptionsFor(modelFromConfig(config), settings);
  const steps = Math.ceil(spec.tokens / (training.sequenceLength * training.batchSize));
  const outcome = await compress({
    ...options,
    hub,
    model: reference,
    modelName: model.id,
    name: job.name,
    target,
    data: [data],
    gguf: kinds,
    out: workspace.path,
    settings: { ...settings, validateEverySteps: Math.ceil(steps / VALIDATIONS) },
    calibrationSamples: spec.calibration_samples,
    refitSamples: spec.refit_samples,
    maxCandidates: spec.candidates,
    teacherCorrection: spec.teacher_correction || undefined,
    evaluate: spec.evaluate,
  });
  const { teacher, pruned, student, plan, keptLayers, gguf } = outcome;
  const files = gguf?.files ?? [];
  return {
    models: { teacher, pruned, student, ...Object.fromEntries(files.map(({ name, measured }) => [name, measured])) },
    plan,
    keptLayers,
    tokens: outcome.tokens,
    gguf: files.flatMap((file) => file.files),
    directory: workspace.path,
    evaluation: outcome.evaluation?.models,
    sentence: gguf && gguf.prompt + gguf.sentence,
  };
}

/** Quantizes a model that fits without a cut. */
export async function quantizeOnly(
  context: JobContext,
  spec: CompressSpec,
  { reference, data, hub, kinds }: CompressionInputs,
): Promise<Compression> {
  const { workspace, log, job } = context;
  const options = { ...context.options, hub };
  const stages = new Stages(path.join(workspace.path, "stages.json"));
  const { parameters } = await inspect(reference, options);
  const { original, files } = await stages.once(`gguf ${kinds.join()}`, () =>
    quantize({
      ...options,
      model: reference,
      name: job.name,
      types: kinds,
      out: path.join(workspace.path, "gguf"),
      data: [data],
      report: true,
      overwrite: true,
    }),
  );
  for (const note of files.flatMap(({ notes }) => notes)) log(note);
  const measured = [{ name: "teacher", fileBytes: original?.fileBytes ?? 0, report: original }, ...files];
  const models = Object.fromEntries(
    measured.flatMap(({ name, fileBytes: bytes, report }) =>
      report === undefined ? [] : [[name, { parameters, bytes, loss: report.loss, perplexity: report.perplexity }]],
    ),
  );
  const measuring = { models: [reference], names: ["teacher"], answers: answersOf(context) };
  const evaluation = spec.evaluate && (await evaluate({ ...options, ...measuring, ...spec.evaluate })).models;
  return { models, gguf: files.flatMap((file) => file.files), evaluation };
}
