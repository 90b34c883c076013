import { existsSync, mkdirSync } from "node:fs";
import path from "node:path";
import { readJsonObject } from "../checkpoint/json.js";
import { storedType } from "../checkpoint/stored-type.js";
import type { RunDirectory } from "../distill/index.js";
import type { Backend } from "../ggml/index.js";
import { countParameters, type Model } from "../models/index.js";
import {
  ascending,
  type Candidate,
  keptIndices,
  layerOrder,
  layersOf,
  loadScores,
  type PrunedModel,
  type PrunePlan,
  planFor,
  prune,
  type Scores,
} from "../prune/index.js";
import { required, UsageError } from "../system/errors.js";
import { writeJson } from "../system/files.js";
import { KnownValues } from "../system/known-values.js";
import type { ComputeType } from "../tensor/index.js";
import { dataIdentity, dataInputs, modelIdentity, modelInput, outsideInput, scoresIdentity } from "./inputs.js";
import { onDevice } from "./job.js";
import { weightsFor } from "./model-memory.js";
import { type DataOptions, openData } from "./open-data.js";
import { type OpenModel, openModel } from "./open-model.js";
import { checkCacheFile, claim, inRun, ownIfInside, type RunJob } from "./output.js";
import { checkPerLayer } from "./per-layer.js";
import { type PlanSummary, summarizePlan } from "./plan-summary.js";
import {
  briefDistiller,
  depthOptions,
  RANKING_FILE,
  REFIT_FOLDER,
  SCORES_FILE,
  type SearchMeasurements,
  scoresFor,
  search,
} from "./search.js";
import type { SearchInputs } from "./search-inputs.js";
import { checkStart, noteSelection, refittedStart, startStatistics } from "./start.js";
import { candidatesFor, type TargetOptions } from "./target.js";
import { writeDirectory } from "./write-directory.js";

export interface PruneJob extends RunJob, TargetOptions, Partial<DataOptions> {
  readonly model: string;
  readonly computeType?: ComputeType | undefined;
  readonly shardBytes?: number | undefined;
}

export interface PruneOutcome {
  readonly parameters: { readonly from: number; readonly to: number };
  readonly plan: PlanSummary;
  readonly out: string;
}

/** The recorded result of a finished run, which the same command returns again. */
interface RecordedResult {
  readonly outcome: Omit<PruneOutcome, "out">;
  /** Identity of the file of scores; null without one. */
  readonly scores: string | null;
}

/**
 * Prunes a model to a target and writes it.
 * @example
 * ```ts
 * import { pruneModel } from "coppice";
 *
 * const { parameters, plan } = await pruneModel({
 *   model: "./model",
 *   target: "hidden=3072,ffn=11520", // or a share, a number of parameters or bytes
 *   data: ["corpus.jsonl"],
 *   calibrationSamples: 512,
 *   out: "./pruned",
 * });
 * console.log(parameters.from, parameters.to, plan);
 * ```
 */
export async function pruneModel(job: PruneJob): Promise<PruneOutcome> {
  const opened = await openModel(job.model, job);
  const data = await dataInputs(job);
  const inputs = [
    ...modelInput("the model", opened.checkpoint),
    ...data,
    ...outsideInput(job.out, "the scores", job.scoresFile),
  ];
  const candidates = candidatesFor(opened.model, job);
  checkStart(job, job.start ?? "minitron");
  checkPerLayer(opened.model, job, job.start);
  if (job.start === "refit" || job.scoresFile === undefined) dataOf(job);
  if (job.scoresFile !== undefined) checkCacheFile(job.scoresFile, "--scores");
  return inRun(job, inputs, async (run) => {
    const { target, bitsPerWeight, space, depthMethod, maxCandidates, searchTokens, calibrationSamples } = job;
    const { start, refitSamples, perLayer, computeType, shardBytes, scoresFile } = job;
    claim(run, job, {
      command: "prune",
      inputs: { model: await modelIdentity(opened.checkpoint, job.cacheDir), data: await dataIdentity(job, data) },
      target,
      bitsPerWeight,
      space,
      depthMethod,
      maxCandidates,
      searchTokens,
      calibrationSamples,
      start,
      refitSamples,
      perLayer,
      computeType,
      shardBytes,
    });
    if (run.finished) return { ...(await recordedOutcome(run, job)), out: job.out };
    if (scoresFile !== undefined) ownIfInside(run, scoresFile);
    const outcome = await pruneInto(job, opened, candidates, run);
    run.finish({ outcome, scores: await scoresIn(scoresFile) } satisfies RecordedResult, REFIT_FOLDER);
    return { ...outcome, out: job.out };
  });
}

const scoresIn = async (file: string | undefined): Promise<string | null> =>
  file !== undefined && existsSync(file) ? await scoresIdentity(file) : null;

/** The outcome of a finished run. @throws UsageError when it has none, or used other scores */
async function recordedOutcome(run: RunDirectory, { out, scoresFile }: PruneJob): Promise<RecordedResult["outcome"]> {
  const recorded = run.result as RecordedResult | undefined;
  if (recorded?.outcome === undefined)
    throw new UsageError(`${out} does not contain the result of its pruning: --restart prunes again`);
  if (recorded.scores !== (await scoresIn(scoresFile)))
    throw new UsageError(`${scoresFile} is not what the run in ${out} used: --restart prunes again`);
  return recorded.outcome;
}

async function pruneInto(
  job: PruneJob,
  opened: OpenModel,
  candidates: readonly Candidate[],
  run: RunDirectory,
): Promise<Omit<PruneOutcome, "out">> {
  const { checkpoint, model, parameters } = opened;
  const place = (name: string) => run.own(name);
  const pruned = await onDevice(job, (backend) => choose(backend, opened, candidates, { ...job, run }));
  const dtype = job.start === "refit" ? storedType(checkpoint.source) : undefined; // a refit gives f32
  writeDirectory(pruned, checkpoint.directory, { ...job, dtype, place }, "prune");
  const to = countParameters(pruned.model.parameters, pruned.model.sizes);
  return { parameters: { from: parameters, to }, plan: summarizePlan(model, pruned.model) };
}

interface ChosenPlan {
  readonly plan: PrunePlan;
  readonly scores: Scores;
}

/** @throws UsageError when there is none */
function dataOf({ data, start }: PruneJob): readonly string[] {
  if (data !== undefined && data.length > 0) return data;
  throw new UsageError(
    start === "refit"
      ? "--start refit needs --data to refit on"
      : "pruning needs --data to score what matters, or --scores with explicit sizes",
  );
}

/** Chooses what stays and cuts. With stored scores and explicit sizes a plain cut takes no data and no weights in memory. */
async function choose(
  backend: Backend,
  { checkpoint, model }: OpenModel,
  candidates: readonly Candidate[],
  job: PruneJob & { readonly run: RunDirectory },
): Promise<PrunedModel> {
  const { computeType = "bf16", start = "minitron" } = job;
  const identity = await modelIdentity(checkpoint, job.cacheDir);
  const only = candidates.length === 1 && job.perLayer !== true ? candidates[0] : undefined;
  const stored = start === "minitron" ? only && planFromScores(model, only, job, identity) : undefined;
  if (stored !== undefined) return prune(checkpoint, stored.plan, keptIndices(model, stored.plan, stored.scores));
  const data = dataOf(job);
  const { directory } = checkpoint;
  const { train, validation } = await openData({ directory, model }, { ...job, data }, job);
  const { run } = job;
  const place = (name: string) => run.own(REFIT_FOLDER, name);
  checkSameData(place("data.json"), [train.id, validation?.id ?? null]);
  const weights = weightsFor(backend, checkpoint, computeType, job);
  try {
    const inputs = {
      backend,
      original: checkpoint,
      weights,
      tokens: train,
      validation,
      computeType,
      options: job,
      place,
    };
    // refuses what does not fit, before anything that takes long
    const distill = only === undefined ? briefDistiller(inputs, candidates, run) : undefined;
    const scores = await scoresFor(inputs, { identity, place });
    const statistics = start === "refit" ? await startStatistics(inputs, place) : undefined;
    const known = new KnownValues(place("measured.json"), await scoresIdentity(job.scoresFile ?? place(SCORES_FILE)));
    const searched = { ...inputs, scores, known };
    const plan = await planOf(only, searched, { statistics, distill }, () => run.own(RANKING_FILE));
    if (statistics === undefined) return prune(checkpoint, plan, keptIndices(model, plan, scores));
    noteSelection(inputs, plan);
    return await refittedStart(inputs, {
      plan,
      scores,
      statistics,
      place,
      onProgress: (done, total) => job.onProgress?.({ stage: "refit", done, total, unit: "steps" }),
    });
  } finally {
    weights.free();
  }
}

/** The hub's data may change between a run and its continuation. @throws UsageError where it has */
function checkSameData(file: string, identities: readonly (string | null)[]): void {
  if (!existsSync(file)) {
    mkdirSync(path.dirname(file), { recursive: true });
    writeJson(file, { identities });
  } else if (JSON.stringify(readJsonObject(file).identities) !== JSON.stringify(identities))
    throw new UsageError(
      `the data has changed since the run in ${path.dirname(path.dirname(file))} began: --restart prunes again`,
    );
}

/** The only candidate's plan, or that of the best. */
async function planOf(
  only: Candidate | undefined,
  inputs: SearchInputs & { readonly scores: Scores },
  measurements: SearchMeasurements,
  rankingFile: () => string,
): Promise<PrunePlan> {
  const { original, options, computeType } = inputs;
  const { model } = original;
  if (only === undefined) {
    const [best] = await search(inputs, measurements, rankingFile());
    return required(best, "no candidate was measured").plan;
  }
  const cut = model.layerCount - layersOf(model, only);
  return planFor(model, only.sizes, await layerOrder(inputs, cut, depthOptions(model, options, computeType)));
}

/** A plan from stored scores alone; undefined if there are none, or choosing layers needs measurements. */
function planFromScores(model: Model, candidate: Candidate, job: PruneJob, identity: string): ChosenPlan | undefined {
  const { scoresFile, depthMethod } = job;
  if (scoresFile === undefined || !existsSync(scoresFile)) return undefined;
  const scores = loadScores(scoresFile, model, identity);
  if (layersOf(model, candidate) !== model.layerCount && depthMethod !== "block-influence") return undefined;
  const order = ascending([...(scores.get("layers") ?? [])]);
  return { plan: planFor(model, candidate.sizes, order), scores };
}
