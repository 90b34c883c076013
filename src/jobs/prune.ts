import { existsSync } from "node:fs";
import type { RunDirectory } from "../distill/index.js";
import type { Backend } from "../ggml/index.js";
import { countParameters, loadWeights, type Model } from "../models/index.js";
import {
  ascending,
  type Candidate,
  keptIndices,
  largestOf,
  layerOrder,
  loadScores,
  type PrunePlan,
  planFor,
  prune,
  type Scores,
} from "../prune/index.js";
import { CoppiceError, UsageError } from "../system/errors.js";
import type { ComputeType } from "../tensor/index.js";
import { dataIdentity, dataInputs, modelIdentity, modelInput, outsideInput, scoresIdentity } from "./inputs.js";
import { onDevice } from "./job.js";
import { type DataOptions, openData } from "./open-data.js";
import { type OpenModel, openModel } from "./open-model.js";
import { checkCacheFile, claim, inRun, ownIfInside, type RunJob } from "./output.js";
import { type PlanSummary, summarizePlan } from "./plan-summary.js";
import { briefDistiller, depthOptions, RANKING_FILE, scoresFor, search } from "./search.js";
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
  if (job.scoresFile !== undefined) checkCacheFile(job.scoresFile, "--scores");
  return inRun(job, inputs, async (run) => {
    const { target, bitsPerWeight, space, depthMethod, maxCandidates, searchTokens, calibrationSamples } = job;
    const { computeType, shardBytes, scoresFile } = job;
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
      computeType,
      shardBytes,
    });
    if (run.finished) return { ...(await recordedOutcome(run, job)), out: job.out };
    if (scoresFile !== undefined) ownIfInside(run, scoresFile);
    const outcome = await pruneInto(job, opened, candidates, (name) => run.own(name));
    run.finish({ outcome, scores: await scoresIn(scoresFile) } satisfies RecordedResult);
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
  place: (name: string) => string,
): Promise<Omit<PruneOutcome, "out">> {
  const { checkpoint, model, parameters } = opened;
  const { plan, scores } = await onDevice(job, (backend) => choosePlan(backend, opened, candidates, { ...job, place }));
  const pruned = prune(checkpoint, plan, keptIndices(model, plan, scores));
  writeDirectory(pruned, checkpoint.directory, { ...job, place }, "prune");
  const to = countParameters(pruned.model.parameters, pruned.model.sizes);
  return { parameters: { from: parameters, to }, plan: summarizePlan(model, pruned.model) };
}

interface ChosenPlan {
  readonly plan: PrunePlan;
  readonly scores: Scores;
}

/** Chooses what stays. With stored scores and explicit sizes that takes no data and no weights in memory. */
async function choosePlan(
  backend: Backend,
  { checkpoint, model }: OpenModel,
  candidates: readonly Candidate[],
  job: PruneJob & { readonly place: (name: string) => string },
): Promise<ChosenPlan> {
  const { computeType = "bf16" } = job;
  const identity = await modelIdentity(checkpoint, job.cacheDir);
  const only = candidates.length === 1 ? candidates[0] : undefined;
  const stored = only && planFromScores(model, only, job, identity);
  if (stored !== undefined) return stored;
  if (job.data === undefined || job.data.length === 0)
    throw new UsageError("pruning needs --data to score what matters, or --scores with explicit sizes");
  const { directory, source } = checkpoint;
  const { train, validation } = await openData({ directory, model }, { ...job, data: job.data }, job);
  const weights = loadWeights(backend, model, source, { dtype: computeType, trainable: false });
  try {
    const inputs = { backend, original: checkpoint, weights, tokens: train, validation, computeType, options: job };
    const scores = await scoresFor(inputs, identity);
    if (only === undefined) {
      const [best] = await search({ ...inputs, scores }, briefDistiller(inputs), job.place(RANKING_FILE));
      if (best === undefined) throw new CoppiceError("no candidate was measured");
      return { plan: best.plan, scores };
    }
    const cut = model.layerCount - layersOf(model, only);
    const order = await layerOrder({ ...inputs, scores }, cut, depthOptions(model, job, computeType));
    return { plan: planFor(model, only.sizes, order), scores };
  } finally {
    weights.free();
  }
}

const layersOf = (model: Model, { sizes }: Candidate): number =>
  sizes.layers === undefined ? model.layerCount : largestOf(sizes.layers);

/** A plan from stored scores alone; undefined if there are none, or choosing layers needs measurements. */
function planFromScores(model: Model, candidate: Candidate, job: PruneJob, identity: string): ChosenPlan | undefined {
  const { scoresFile, depthMethod } = job;
  if (scoresFile === undefined || !existsSync(scoresFile)) return undefined;
  const scores = loadScores(scoresFile, model, identity);
  if (layersOf(model, candidate) !== model.layerCount && depthMethod !== "block-influence") return undefined;
  const order = ascending([...(scores.get("layers") ?? [])]);
  return { plan: planFor(model, candidate.sizes, order), scores };
}
