import type { Model } from "../models/index.js";
import {
  type Candidate,
  cheapestSizes,
  keptColumns,
  layerSizes,
  leastParameters,
  parametersAt,
  type Scores,
} from "../prune/index.js";
import { removalCosts } from "../refit/index.js";
import { required, UsageError } from "../system/errors.js";
import type { SearchInputs } from "./search-inputs.js";
import { passageFor, type StartStatistics } from "./start.js";
import { candidatesFor, spaceOf, type TargetOptions } from "./target.js";

/** Sequences for the second moments, and those that divergences are measured on. */
const [MOMENT_SAMPLES, MEASURED_SAMPLES] = [64, 16];

/**
 * Checks that sizes can be chosen for each layer, before anything that takes long.
 * @param start how the smaller model starts, the command's default filled in
 * @throws UsageError saying what to do instead
 */
export function checkPerLayer(model: Model, options: TargetOptions, start: TargetOptions["start"]): void {
  if (options.perLayer !== true) return;
  if (start !== "refit")
    throw new UsageError("--per-layer weighs what a refit leaves of each cut: it needs --start refit");
  if (options.target.includes("="))
    throw new UsageError(
      `--per-layer chooses sizes, but the target ${options.target} names them: give parameters (8.4B), a share (0.67x), memory (4GiB) or a device`,
    );
  const least = leastParameters(model, layerSizes(model, spaceOf(model, options)));
  const most = Math.max(...candidatesFor(model, options).map(({ parameters }) => parameters));
  if (least > most)
    throw new UsageError(
      `the target ${options.target} is ${most} parameters at most, but layers of the smallest sizes still make ${least}: raise --max-width-cut, or do without --per-layer`,
    );
}

/**
 * Chooses a size for each layer, so that together they cost least: the costs of each layer's sizes are measured alone, and an
 * integer program adds them up. Speed and memory on a device depend on these sizes by the parameters alone.
 * @param parameters how many the result has at most
 * @returns undefined when even the smallest sizes make more parameters
 */
export async function perLayerCandidate(
  inputs: SearchInputs & { readonly scores: Scores },
  statistics: StartStatistics,
  parameters: number,
): Promise<Candidate | undefined> {
  const { original, options } = inputs;
  const { model } = original;
  const steps = layerSizes(model, spaceOf(model, options));
  const scores = new Map([...inputs.scores, ...statistics.scores]);
  const measure = async () => {
    const costs = await removalCosts({
      passage: passageFor(inputs, MOMENT_SAMPLES),
      measured: passageFor(inputs, MEASURED_SAMPLES),
      original,
      keptOf: (step) => {
        const own = steps.find((each) => each.step === step);
        return own && keptColumns(model, own, scores);
      },
      onProgress: (done, total) => options.onProgress?.({ stage: "cost of each layer", done, total, unit: "steps" }),
    });
    return steps.map(({ step, dimension }) => required(costs.get(step), `${dimension} has no costs`));
  };
  const costOf = await (inputs.known?.once(["cost of each layer"], measure) ?? measure());
  const sizes = await cheapestSizes(model, steps, costOf, parameters);
  return sizes && { sizes, parameters: parametersAt(model, sizes) };
}
