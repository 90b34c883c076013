import { existsSync } from "node:fs";
import { defaultSequenceLength } from "../evaluate/index.js";
import type { Backend } from "../ggml/index.js";
import { type Checkpoint, countParameters, loadWeights, type Model } from "../models/index.js";
import {
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
import { type DataOptions, type OpenModel, onDevice, openData, openModel, writeDirectory } from "./environment.js";
import {
  checkKept,
  claim,
  dataIdentity,
  dataInputs,
  inRun,
  modelIdentity,
  modelInput,
  outside,
  ownInside,
  type RunJob,
  scoresIdentity,
} from "./output.js";
import { type PlanSummary, summarisePlan } from "./plan-summary.js";
import { briefDistiller, RANKING_FILE, SEARCH_SEQUENCES, scoresFor, search } from "./search.js";
import { candidatesFor, type TargetOptions } from "./target.js";

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

/** What a pruning that came to its end leaves for the same command. */
interface Pruned {
  readonly outcome: Omit<PruneOutcome, "out">;
  /** What the file of scores contained. */
  readonly scores: string | null;
}

/** Prunes a model to a target and writes it. */
export async function pruneModel(job: PruneJob): Promise<PruneOutcome> {
  const opened = await openModel(job.model, job);
  const data = await dataInputs(job);
  const inputs = [
    ...modelInput("the model", opened.checkpoint),
    ...data,
    ...outside(job.out, "the scores", job.scoresFile),
  ];
  const candidates = candidatesFor(opened.model, job);
  if (job.scoresFile !== undefined) checkKept(job.scoresFile, "--scores");
  return inRun(job, inputs, async (run) => {
    const { target, bitsPerWeight, space, depthMethod, maxCandidates, searchTokens, calibrationSamples } = job;
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
      computeType: job.computeType,
      shardBytes: job.shardBytes,
    });
    const { scoresFile } = job;
    const scores = async () =>
      scoresFile !== undefined && existsSync(scoresFile) ? await scoresIdentity(scoresFile) : null;
    if (run.finished) {
      const before = run.result as Pruned | undefined;
      if (before?.outcome === undefined)
        throw new UsageError(`${job.out} does not say what its pruning came to: --restart prunes again`);
      if (before.scores !== (await scores()))
        throw new UsageError(`${scoresFile} is not what the run in ${job.out} used: --restart prunes again`);
      return { ...before.outcome, out: job.out };
    }
    if (scoresFile !== undefined) ownInside(run, scoresFile);
    const outcome = await pruneInto(job, opened, candidates, (name) => run.own(name));
    run.finish({ outcome, scores: await scores() } satisfies Pruned);
    return { ...outcome, out: job.out };
  });
}

async function pruneInto(
  job: PruneJob,
  { checkpoint, model, parameters }: OpenModel,
  candidates: readonly Candidate[],
  place: (name: string) => string,
): Promise<Omit<PruneOutcome, "out">> {
  const { chosen, scores } = await onDevice(job, (backend) =>
    choose(backend, checkpoint, model, candidates, job, job.computeType ?? "bf16", place),
  );
  const pruned = prune(checkpoint, chosen, keptIndices(model, chosen, scores));
  writeDirectory(pruned, checkpoint.directory, { ...job, place }, "prune");
  const to = countParameters(pruned.model.parameters, pruned.model.sizes);
  return { parameters: { from: parameters, to }, plan: summarisePlan(model, pruned.model) };
}

/** Decides what stays. Scores that are at hand and sizes that are named need no data and no weights in memory. */
async function choose(
  backend: Backend,
  checkpoint: Checkpoint,
  model: Model,
  candidates: readonly Candidate[],
  job: PruneJob,
  computeType: ComputeType,
  place: (name: string) => string,
): Promise<{ readonly chosen: PrunePlan; readonly scores: Scores }> {
  const { directory, source } = checkpoint;
  const identity = await modelIdentity(checkpoint, job.cacheDir);
  const only = candidates.length === 1 ? candidates[0] : undefined;
  const layers = only?.sizes.layers === undefined ? model.layerCount : largestOf(only.sizes.layers);
  const stored =
    job.scoresFile !== undefined && existsSync(job.scoresFile)
      ? loadScores(backend, job.scoresFile, model, identity)
      : undefined;
  const byInfluence = only !== undefined && (layers === model.layerCount || job.depthMethod === "block-influence");
  if (stored !== undefined && only !== undefined && byInfluence) {
    const order = [...(stored.get("layers") ?? [])]
      .map((score, layer) => ({ score, layer }))
      .sort((a, b) => a.score - b.score);
    return {
      chosen: planFor(
        model,
        only.sizes,
        order.map(({ layer }) => layer),
      ),
      scores: stored,
    };
  }
  if (job.data === undefined || job.data.length === 0)
    throw new UsageError("pruning needs --data to score what matters, or --scores with explicit sizes");
  const { train, validation } = await openData({ directory, model }, { ...job, data: job.data }, job);
  const weights = loadWeights(backend, model, source, { dtype: computeType, trainable: false });
  try {
    const scores = await scoresFor(backend, weights, train, job, computeType, identity);
    if (only === undefined) {
      const [best] = await search({
        ...{ backend, original: checkpoint, weights, scores, validation, options: job, computeType },
        ...briefDistiller(backend, weights, train, validation, job, computeType),
        rankingFile: place(RANKING_FILE),
      });
      if (best === undefined) throw new CoppiceError("no candidate was measured");
      return { chosen: best.plan, scores };
    }
    const order = await layerOrder(backend, weights, validation, scores, model.layerCount - layers, {
      method: job.depthMethod ?? "contiguous-loss",
      computeType,
      sequenceLength: Math.min(256, defaultSequenceLength(model)),
      maxSequences: SEARCH_SEQUENCES,
    });
    return { chosen: planFor(model, only.sizes, order), scores };
  } finally {
    weights.free();
  }
}
