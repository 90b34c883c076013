import { countParameters } from "../models/index.js";
import { type AxisSizes, axisSizes, type Candidate, describeSizes, type RankedCandidate } from "../prune/index.js";
import { UsageError } from "../system/errors.js";
import type { ComputeType } from "../tensor/index.js";
import { openArchitecture } from "./device-plan.js";
import { modelIdentity } from "./inputs.js";
import { type JobOptions, onDevice } from "./job.js";
import { weightsFor } from "./model-memory.js";
import { type DataOptions, openData } from "./open-data.js";
import { openModel } from "./open-model.js";
import { checkCacheFile } from "./output.js";
import { checkPerLayer } from "./per-layer.js";
import { briefDistiller, scoresFor, search } from "./search.js";
import { checkStart, startStatistics } from "./start.js";
import { candidatesFor, type TargetOptions } from "./target.js";

export interface PlanJob extends JobOptions, TargetOptions, Partial<DataOptions> {
  readonly model: string;
  readonly computeType?: ComputeType | undefined;
}

export interface PlanOutcome {
  readonly parameters: number;
  readonly original: AxisSizes;
  /** First those that were measured, best first; then the others, nearest to the target first. */
  readonly candidates: readonly (Candidate &
    Partial<Pick<RankedCandidate, "loss" | "refittedLoss" | "distilledLoss">>)[];
}

/** Options of measurements. */
const NEED_DATA: readonly (readonly [flag: string, value: (job: PlanJob) => unknown])[] = [
  ["--validation", ({ validation }) => validation],
  ["--scores", ({ scoresFile }) => scoresFile],
  ["--samples", ({ calibrationSamples }) => calibrationSamples],
  ["--search-tokens", ({ searchTokens }) => searchTokens],
  ["--candidates", ({ maxCandidates }) => maxCandidates],
  ["--depth", ({ depthMethod }) => depthMethod],
  ["--refit-samples", ({ refitSamples }) => refitSamples],
];

/**
 * Lists the architectures that meet a target. With data they are measured; without, config.json is all that is needed of the model.
 * @example
 * ```ts
 * import { plan } from "coppice";
 *
 * const { parameters, candidates } = await plan({ model: "./model", target: "0.5x" });
 * console.log(parameters);
 * for (const { sizes, parameters: smaller } of candidates.slice(0, 5)) console.log(sizes, smaller);
 * ```
 */
export async function plan(job: PlanJob): Promise<PlanOutcome> {
  if (job.data === undefined || job.data.length === 0) {
    if (job.perLayer === true)
      throw new UsageError("--per-layer needs --data: it measures what each layer's cut costs");
    if (job.start === "refit")
      throw new UsageError("--start refit needs --data: candidates are ranked after a refit on it");
    const unused = NEED_DATA.find(([, value]) => value(job) !== undefined);
    if (unused !== undefined) throw new UsageError(`${unused[0]} would change nothing without --data`);
    const model = await openArchitecture(job.model, job);
    return {
      parameters: countParameters(model.parameters, model.sizes),
      original: axisSizes(model),
      candidates: candidatesFor(model, job),
    };
  }
  const { checkpoint, model, parameters } = await openModel(job.model, job);
  const candidates = candidatesFor(model, job); // report a target that cannot be met before anything that takes long
  checkStart(job, job.start ?? "minitron");
  checkPerLayer(model, job, job.start);
  const { train, validation } = await openData(
    { directory: checkpoint.directory, model },
    { ...job, data: job.data },
    job,
  );
  const computeType = job.computeType ?? "bf16";
  if (job.scoresFile !== undefined) checkCacheFile(job.scoresFile, "--scores");
  const identity = await modelIdentity(checkpoint, job.cacheDir);
  return onDevice(job, async (backend) => {
    const weights = weightsFor(backend, checkpoint, computeType, job);
    try {
      const inputs = { backend, original: checkpoint, weights, tokens: train, validation, computeType, options: job };
      const distill = briefDistiller(inputs, candidates); // refuses what does not fit, before anything that takes long
      const scores = await scoresFor(inputs, { identity });
      const statistics = job.start === "refit" ? await startStatistics(inputs) : undefined;
      const ranked = await search({ ...inputs, scores }, { statistics, distill });
      const measured = new Set(ranked.map(({ sizes }) => describeSizes(sizes)));
      const others = candidates.filter(({ sizes }) => !measured.has(describeSizes(sizes)));
      return {
        parameters,
        original: axisSizes(model),
        candidates: [...ranked.map(({ plan: _, ...rest }) => rest), ...others],
      };
    } finally {
      weights.free();
    }
  });
}
