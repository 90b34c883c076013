import { existsSync, readdirSync, rmSync } from "node:fs";
import path from "node:path";
import { isModelFile } from "../checkpoint/directory.js";
import { type DeviceProfile, deviceProfile, predictMemory, predictSpeed, THIS_MACHINE } from "../devices/index.js";
import { formatScore } from "../jobs/evaluation-table.js";
import { evaluate, headlines, type ModelEvaluation, openModel } from "../jobs/index.js";
import { modelFromConfig } from "../models/index.js";
import type { FileKind } from "../quantize/index.js";
import { modelCard } from "./card.js";
import { answersOf, type Compression, type CompressionInputs, pruneAndDistill, quantizeOnly } from "./compression.js";
import type { JobContext } from "./job-context.js";
import { factsOf, licenceOf } from "./materials.js";
import { Results } from "./results.js";
import type { CompressSpec, EvaluateSpec } from "./specification.js";
import type { Artifact } from "./store/jobs.js";
import type { ModelFacts } from "./store/library.js";
import { resolveTarget } from "./target.js";
import { version } from "./version.js";

/** A model that a job has made. */
export interface JobModel {
  /** Where its files are in the store. */
  readonly key: string;
  readonly facts: ModelFacts;
  readonly licence: string | null;
  readonly bytes: number;
  readonly name: string;
}

/** What a job leaves behind. */
export interface JobOutcome {
  readonly result: Readonly<Record<string, unknown>>;
  readonly artifacts: readonly Omit<Artifact, "id">[];
  readonly model?: JobModel | undefined;
}

/** Runs a job, or resumes it: stages finished in its workspace are not repeated. */
export function runJob(context: JobContext): Promise<JobOutcome> {
  const { spec } = context.job;
  return spec.kind === "evaluate" ? runEvaluation(context, spec) : runCompression(context, spec);
}

async function runEvaluation(context: JobContext, spec: EvaluateSpec): Promise<JobOutcome> {
  const { materials, job, workspace, storage, options, model } = context;
  const out = path.join(workspace.path, "results");
  rmSync(out, { recursive: true, force: true }); // of an attempt that did not finish; its answers are kept elsewhere
  const { models } = await evaluate({
    ...options,
    hub: await materials.hub(job.tenant),
    models: [await materials.model(model)],
    names: [model.name],
    answers: answersOf(context),
    tasks: spec.tasks,
    limit: spec.limit,
    out,
  });
  const results = new Results(job, storage, options.onProgress);
  for (const file of readdirSync(out, { recursive: true, withFileTypes: true }))
    if (file.isFile()) await results.add(path.join(file.parentPath, file.name), file.name);
  return { result: { scores: scoresOf(models, [model.name]) }, artifacts: results.files };
}

async function runCompression(context: JobContext, spec: CompressSpec): Promise<JobOutcome> {
  const { materials, job, workspace, storage, options, model, log } = context;
  const reference = await materials.model(model);
  const hub = await materials.hub(job.tenant);
  const { facts, licence } = await factsAndLicence(context, reference);
  const { target, kinds } = await resolveTarget(spec, facts.config, model.bytes || undefined);
  log(`${target === undefined ? "nothing is cut" : `target ${target}`}; types: ${kinds.join(", ")}`);
  const inputs: CompressionInputs = { reference, data: await materials.dataset(context.dataset), hub, kinds };
  const compression =
    target === undefined
      ? await quantizeOnly(context, spec, inputs)
      : await pruneAndDistill(context, spec, { ...inputs, target, config: facts.config });
  const results = new Results(job, storage, options.onProgress);
  await addFiles(results, compression, workspace.path);
  // a target for the service's own machine was settled when the job was created: this may be another machine
  const device = spec.device === undefined || spec.device === THIS_MACHINE ? undefined : deviceProfile(spec.device);
  const scores = compression.evaluation && scoresOf(compression.evaluation, ["teacher", "pruned", "student"]);
  const { models, plan, tokens, directory } = compression;
  const card = modelCard({
    name: job.name,
    base: model.name,
    baseReference: model.source.kind === "hub" ? model.source.id : undefined,
    licence,
    dataset: context.dataset?.name ?? "the built-in stories",
    spec,
    device: device?.name ?? spec.device,
    models,
    plan,
    tokens,
    files: results.files,
    scores,
    version,
  });
  await results.addText("README.md", card);
  const newFacts = directory === undefined ? facts : factsOf(directory);
  return {
    result: {
      models,
      plan: plan ?? null,
      keptLayers: compression.keptLayers ?? null,
      tokens: tokens ?? 0,
      scores: scores ?? null,
      ...predictions(newFacts, kinds[0] ?? "q8_0", device, spec.context_length),
      sentence: compression.sentence,
    },
    artifacts: results.files,
    model: {
      key: results.prefix + (directory === undefined ? "/gguf" : "/model"),
      facts: newFacts,
      licence,
      bytes: results.modelBytes(directory === undefined ? "gguf" : "model"),
      name: job.name,
    },
  };
}

/** Stores the GGUF files, the model's own files and the report. */
async function addFiles(results: Results, { gguf, directory }: Compression, workspace: string): Promise<void> {
  for (const file of gguf) await results.add(file, path.basename(file), "gguf");
  if (directory !== undefined)
    for (const name of readdirSync(directory))
      if (isModelFile(name)) await results.add(path.join(directory, name), name, "model");
  for (const name of ["report.html", "report.json", "metrics.jsonl"]) {
    const file = path.join(workspace, name);
    if (existsSync(file)) await results.add(file, name);
  }
}

/** What memory is predicted for where neither a device nor the job says how long a context is to be. */
const USUAL_CONTEXT = 8192;

/** The memory that a file takes, and its tokens per second on a device, if there is one. */
function predictions(
  facts: ModelFacts,
  kind: FileKind,
  device: DeviceProfile | undefined,
  contextLength = Math.min(device?.contextLength ?? USUAL_CONTEXT, facts.contextLength),
) {
  const model = modelFromConfig(facts.config);
  return {
    memory: predictMemory(model, kind, contextLength),
    speed: device === undefined ? null : predictSpeed(model, kind, device, contextLength).tokensPerSecond,
  };
}

/** A model's facts and licence; those of a hub model are known once it has been downloaded. */
async function factsAndLicence({ job, model, library, materials, options }: JobContext, reference: string) {
  const { facts, licence } = model;
  if (model.source.kind !== "hub" || (facts !== null && licence !== null))
    return { facts: facts as ModelFacts, licence };
  const { checkpoint } = await openModel(reference, { ...options, hub: await materials.hub(job.tenant) });
  const learned = { facts: factsOf(checkpoint.path), licence: licenceOf(checkpoint.directory) };
  await library.addFacts(model.id, learned);
  return learned;
}

/** Formatted scores by benchmark, then by model. */
function scoresOf(
  models: readonly ModelEvaluation[],
  names: readonly string[],
): Record<string, Record<string, string>> {
  const scores: Record<string, Record<string, string>> = {};
  models.forEach((model, i) => {
    for (const line of headlines(model)) {
      const byModel = scores[line.name] ?? {};
      byModel[names[i] ?? model.model] = formatScore(line);
      scores[line.name] = byModel;
    }
  });
  return scores;
}
