import { createReadStream, existsSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import path from "node:path";
import { Readable } from "node:stream";
import type { HubOptions } from "../checkpoint/index.js";
import {
  type DeviceProfile,
  deviceProfile,
  fitDevice,
  predictMemory,
  predictSpeed,
  profileOf,
  THIS_MACHINE,
} from "../devices/index.js";
import { formatScore } from "../jobs/evaluation-table.js";
import {
  type CompressOutcome,
  compress,
  evaluate,
  headlines,
  inspect,
  type JobOptions,
  type ModelEvaluation,
  openModel,
  quantize,
} from "../jobs/index.js";
import { Stages } from "../jobs/stages.js";
import { trainOptionsFor } from "../jobs/training.js";
import { modelFromConfig } from "../models/index.js";
import { describeSizes } from "../prune/index.js";
import type { FileKind } from "../quantize/index.js";
import { UsageError } from "../system/errors.js";
import { packageRoot } from "../system/package-root.js";
import { modelCard } from "./card.js";
import { factsOf, keys, licenceOf, type Materials } from "./materials.js";
import type { CompressSpec, EvaluateSpec } from "./specification.js";
import type { Storage, StoredFile, Workspace } from "./storage.js";
import type { Artifact, Job } from "./store/jobs.js";
import type { Dataset, Library, ModelFacts, ModelRow } from "./store/library.js";

export const { version } = JSON.parse(readFileSync(path.join(packageRoot, "package.json"), "utf8")) as {
  version: string;
};

/** All that a job needs beside its own row. */
export interface JobContext {
  readonly job: Job;
  readonly model: ModelRow;
  readonly dataset: Dataset | undefined;
  readonly materials: Materials;
  readonly library: Library;
  readonly storage: Storage;
  readonly workspace: Workspace;
  /** Where computing happens, progress, and whether to stop. */
  readonly options: JobOptions;
  readonly log: (text: string) => void;
}

/** What a job leaves. */
export interface JobOutcome {
  readonly result: Readonly<Record<string, unknown>>;
  readonly artifacts: readonly Omit<Artifact, "id">[];
  /** The model that it made. */
  readonly made?:
    | {
        /** Where its files lie. */
        readonly key: string;
        readonly facts: ModelFacts;
        readonly licence: string | null;
        readonly bytes: number;
        readonly name: string;
      }
    | undefined;
}

/** Does a job, or goes on with it: what was finished in its workspace is not done again. */
export function runJob(context: JobContext): Promise<JobOutcome> {
  const { spec } = context.job;
  return spec.kind === "evaluate" ? runEvaluation(context, spec) : runCompression(context, spec);
}

async function runEvaluation(context: JobContext, spec: EvaluateSpec): Promise<JobOutcome> {
  const { materials, job, workspace, options, model } = context;
  const out = path.join(workspace.path, "results");
  rmSync(out, { recursive: true, force: true }); // of an attempt that did not end; its answers are there
  const { models } = await evaluate({
    ...{ ...options, hub: await materials.hub(job.tenant), models: [await materials.model(model)] },
    ...{ names: [model.name], answers: answersOf(context), tasks: spec.tasks, limit: spec.limit, out },
  });
  const results = new Results(context);
  for (const file of readdirSync(out, { recursive: true, withFileTypes: true }))
    if (file.isFile()) await results.add(path.join(file.parentPath, file.name), file.name);
  return { result: { scores: scoresOf(models, [model.name]) }, artifacts: results.all };
}

/** A model's answers to benchmarks go along with the job's work. */
const answersOf = ({ workspace, model }: JobContext) => ({
  directory: path.join(workspace.path, "answers"),
  identities: [model.id],
});

/** What is to be made: sizes where something is cut, and types. */
interface Aim {
  readonly target: string | undefined;
  readonly kinds: readonly FileKind[];
}

/** Said as a target where nothing is to be cut. */
export const UNCUT = "1x";

/** What was asked for, or what suits the device. @throws UsageError when nothing fits */
export async function aimOf(
  spec: CompressSpec,
  config: Readonly<Record<string, unknown>>,
  storedBytes?: number,
): Promise<Aim> {
  const kinds = spec.quantization as readonly FileKind[] | undefined;
  if (spec.target !== undefined)
    return { target: spec.target === UNCUT ? undefined : spec.target, kinds: kinds ?? ["q8_0"] };
  if (spec.device === undefined)
    throw new UsageError("a job needs a device or a target: what should the model become?");
  const profile = await profileOf(spec.device);
  const { best } = fitDevice(modelFromConfig(config), profile, {
    contextLength: spec.context_length,
    storedBytes,
  });
  if (best === undefined)
    throw new UsageError(
      `no cut of this model fits ${profile.name}: begin with a smaller model, or plan for less context`,
    );
  return { target: best.share === 1 ? undefined : describeSizes(best.sizes), kinds: kinds ?? [best.kind] };
}

async function runCompression(context: JobContext, spec: CompressSpec): Promise<JobOutcome> {
  const { materials, job, workspace, model, log } = context;
  const reference = await materials.model(model);
  const data = await materials.dataset(context.dataset);
  const hub = await materials.hub(job.tenant);
  const { facts, licence } = await factsAndLicence(context, reference, hub);
  const aim = await aimOf(spec, facts.config, model.bytes || undefined);
  // what suits the service's machine was settled when the job was made: this may be another one
  const device = spec.device === undefined || spec.device === THIS_MACHINE ? undefined : deviceProfile(spec.device);
  log(
    aim.target === undefined
      ? `nothing is cut; types: ${aim.kinds.join(", ")}`
      : `target ${aim.target}; types: ${aim.kinds.join(", ")}`,
  );
  const results = new Results(context);
  const outcome =
    aim.target === undefined
      ? await quantizeOnly(context, spec, reference, data, aim.kinds, hub)
      : await cutAndDistil(context, spec, {
          reference,
          data,
          hub,
          config: facts.config,
          aim: { ...aim, target: aim.target },
        });
  for (const file of outcome.gguf) await results.add(file, path.basename(file), "gguf");
  if (outcome.directory !== undefined)
    for (const file of readdirSync(outcome.directory))
      if (MODEL_FILES.test(file)) await results.add(path.join(outcome.directory, file), file, "model");
  for (const file of ["report.html", "report.json", "metrics.jsonl"]) {
    const at = path.join(workspace.path, file);
    if (existsSync(at)) await results.add(at, file);
  }
  const scores = outcome.evaluation && scoresOf(outcome.evaluation, ["teacher", "pruned", "student"]);
  const { name } = job;
  const card = modelCard({
    ...{ name, base: model.name, licence, spec, version, scores, models: outcome.models, plan: outcome.plan },
    baseReference: model.source.kind === "hub" ? model.source.id : undefined,
    dataset: context.dataset?.name ?? "the embedded stories",
    device: device?.name ?? spec.device,
    tokens: outcome.tokens,
    files: results.all,
  });
  await results.addText("README.md", card);
  const made = outcome.directory === undefined ? facts : factsOf(outcome.directory);
  return {
    result: {
      ...{
        models: outcome.models,
        plan: outcome.plan ?? null,
        keptLayers: outcome.keptLayers ?? null,
        tokens: outcome.tokens ?? 0,
        scores: scores ?? null,
        ...predictions(made, aim.kinds[0] ?? "q8_0", device, spec.context_length),
      },
      sentence: outcome.sentence,
    },
    artifacts: results.all,
    made: {
      ...{ name, licence, bytes: results.all.reduce((sum, { bytes }) => sum + bytes, 0) },
      facts: made,
      key: results.prefix + (outcome.directory === undefined ? "/gguf" : "/model"),
    },
  };
}

/** What a file takes, and how many tokens a second it writes on a device where one is given. */
function predictions(facts: ModelFacts, kind: FileKind, device: DeviceProfile | undefined, wanted: number | undefined) {
  const length = wanted ?? Math.min(device?.contextLength ?? facts.contextLength, facts.contextLength);
  const model = modelFromConfig(facts.config);
  return {
    memory: predictMemory(model, kind, length),
    speed: device === undefined ? null : predictSpeed(model, kind, device, length).tokensPerSecond,
  };
}

/** Files of a model directory that are kept of a job. */
const MODEL_FILES =
  /^(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|model\.safetensors\.index)\.json$|^model(-\d+-of-\d+)?\.safetensors$|^tokenizer\.model$|^LICENSE(\.md|\.txt)?$/;

interface Compressed {
  readonly models: Readonly<Record<string, { parameters: number; bytes: number; loss: number; perplexity: number }>>;
  readonly plan: CompressOutcome["plan"] | undefined;
  readonly keptLayers: readonly number[] | undefined;
  readonly tokens: number | undefined;
  readonly gguf: readonly string[];
  readonly directory: string | undefined;
  readonly evaluation: readonly ModelEvaluation[] | undefined;
  readonly sentence: string | undefined;
}

/** What a job works on, and towards. */
interface Cutting {
  readonly reference: string;
  readonly data: string;
  readonly hub: HubOptions;
  readonly config: Readonly<Record<string, unknown>>;
  readonly aim: Aim & { readonly target: string };
}

/** Times that the student is measured on validation data while it learns. */
const VALIDATIONS = 10;

async function cutAndDistil(
  { options, workspace, model, job }: JobContext,
  spec: CompressSpec,
  { reference, data, hub, config, aim: { target, kinds } }: Cutting,
): Promise<Compressed> {
  const { tokens, sequence_length: sequenceLength, batch_size: batchSize, learning_rate: learningRate, seed } = spec;
  const wanted = { tokens, sequenceLength, batchSize, learningRate, seed };
  const settings = { tokens, ...Object.fromEntries(Object.entries(wanted).filter(([, value]) => value !== undefined)) };
  const training = trainOptionsFor(modelFromConfig(config), settings);
  const steps = Math.ceil(tokens / (training.sequenceLength * training.batchSize));
  const outcome = await compress({
    ...{ ...options, hub, model: reference, modelName: model.id, target, data: [data] },
    ...{ gguf: kinds, out: workspace.path, name: job.name },
    settings: { ...settings, validateEverySteps: Math.ceil(steps / VALIDATIONS) },
    calibrationSamples: spec.calibration_samples,
    maxCandidates: spec.candidates,
    ...(spec.teacher_correction === true && { teacherCorrection: true }),
    ...(spec.evaluate && { evaluate: spec.evaluate }),
  });
  const { teacher, pruned, student, plan, keptLayers, gguf } = outcome;
  return {
    // the files that are delivered, too, as they were measured
    models: Object.assign(
      { teacher, pruned, student },
      ...(gguf?.files ?? []).map(({ name, measured }) => ({ [name]: measured })),
    ),
    ...{ plan, keptLayers, tokens: outcome.tokens, directory: workspace.path },
    gguf: gguf?.files.flatMap(({ files }) => files) ?? [],
    evaluation: outcome.evaluation?.models,
    sentence: gguf && gguf.prompt + gguf.sentence,
  };
}

/** Where the model fits as it is, in a smaller type. */
async function quantizeOnly(
  context: JobContext,
  spec: CompressSpec,
  reference: string,
  data: string,
  kinds: readonly FileKind[],
  hub: HubOptions,
): Promise<Compressed> {
  const { workspace, log, job } = context;
  const options = { ...context.options, hub };
  const stages = new Stages(path.join(workspace.path, "stages.json"));
  const { parameters } = await inspect(reference, options);
  const out = path.join(workspace.path, "gguf");
  const { original, files } = await stages.once(`gguf ${kinds.join()}`, () =>
    quantize({
      ...options,
      model: reference,
      name: job.name,
      types: kinds,
      out,
      data: [data],
      report: true,
      overwrite: true,
    }),
  );
  const measured = [{ name: "teacher", fileBytes: original?.fileBytes ?? 0, report: original }, ...files];
  const models = Object.fromEntries(
    measured.flatMap(({ name, fileBytes: bytes, report }) =>
      report === undefined ? [] : [[name, { parameters, bytes, loss: report.loss, perplexity: report.perplexity }]],
    ),
  );
  for (const note of files.flatMap(({ notes }) => notes)) log(note);
  const measuring = { models: [reference], names: ["teacher"], answers: answersOf(context) };
  const evaluation = spec.evaluate && (await evaluate({ ...options, ...measuring, ...spec.evaluate })).models;
  return {
    ...{ models, plan: undefined, keptLayers: undefined, tokens: undefined, directory: undefined, sentence: undefined },
    ...{ gguf: files.flatMap((file) => file.files), evaluation },
  };
}

/** A model's facts and licence, which of a hub's model are known when it is here. */
async function factsAndLicence({ model, library, options }: JobContext, reference: string, hub: HubOptions) {
  const { facts, licence } = model;
  if (model.source.kind !== "hub" || (facts !== null && licence !== null))
    return { facts: facts as ModelFacts, licence };
  const { checkpoint } = await openModel(reference, { ...options, hub });
  const found = { facts: factsOf(checkpoint.path), licence: licenceOf(checkpoint.directory) };
  await library.learn(model.id, found);
  return found;
}

/** Scores by benchmark, then by model, as they are shown. */
function scoresOf(
  models: readonly ModelEvaluation[],
  names: readonly string[],
): Record<string, Record<string, string>> {
  const scores: Record<string, Record<string, string>> = {};
  models.forEach((model, i) => {
    for (const line of headlines(model)) {
      const of = scores[line.name] ?? {};
      of[names[i] ?? model.model] = formatScore(line);
      scores[line.name] = of;
    }
  });
  return scores;
}

/** What a job leaves in the store, with checksums. */
class Results {
  readonly all: Omit<Artifact, "id">[] = [];
  readonly prefix: string;

  constructor(private readonly context: JobContext) {
    const { tenant, id, lease } = context.job;
    this.prefix = keys.result(tenant, id, lease ?? "");
  }

  async add(file: string, name: string, folder?: string): Promise<void> {
    const key = folder === undefined ? `${this.prefix}/${name}` : `${this.prefix}/${folder}/${name}`;
    this.note(name, key, await this.context.storage.put(key, createReadStream(file)));
    this.context.options.onProgress?.({
      stage: "package",
      done: this.all.length,
      total: this.all.length + 1,
      unit: "files",
      detail: `${name}, ${statSync(file).size} bytes`,
    });
  }

  async addText(name: string, text: string): Promise<void> {
    const key = `${this.prefix}/${name}`;
    this.note(name, key, await this.context.storage.put(key, Readable.from([Buffer.from(text)])));
  }

  private note(name: string, storageKey: string, stored: StoredFile): void {
    this.all.push({ name, storageKey, mediaType: mediaTypeOf(name), ...stored });
  }
}

const MEDIA_TYPES: Readonly<Record<string, string>> = {
  ".html": "text/html; charset=utf-8",
  ".json": "application/json",
  ".jsonl": "application/x-ndjson",
  ".md": "text/markdown; charset=utf-8",
};
const mediaTypeOf = (name: string): string => MEDIA_TYPES[path.extname(name)] ?? "application/octet-stream";
