import {
  DEVICES,
  deviceProfile,
  type FitCandidate,
  isDevice,
  predictMemory,
  quantizableDivisors,
} from "../devices/index.js";
import { type Checkpoint, countParameters, type Model } from "../models/index.js";
import {
  type AxisSizes,
  type Candidate,
  type DepthMethod,
  enumerateCandidates,
  parametersAt,
  parseTarget,
  planFor,
  type SearchSpace,
} from "../prune/index.js";
import type { FileKind } from "../quantize/index.js";
import type { StartMethod } from "../refit/start-methods.js";
import { UsageError } from "../system/errors.js";
import { parseByteCount } from "../system/units.js";
import { holdsQuantized } from "./bytes-by-kind.js";
import { bestFit } from "./device-plan.js";

/** Options for the smaller model, and for the search for it. */
export interface TargetOptions {
  /** Kinds of GGUF files that are wanted: a device's target is met in one of these. */
  readonly gguf?: readonly FileKind[] | undefined;
  /** `8.4B`, `0.67x`, `4GiB`, `hidden=4096,ffn=11520` or a device's id. */
  readonly target: string;
  /** Converts a target in bytes to parameters; 16 by default. */
  readonly bitsPerWeight?: number | undefined;
  /** Whether llama.cpp must be able to compute the smaller model; it must on a device. */
  readonly forLlamaCpp?: boolean | undefined;
  /** Which sizes may change; by default the widths `hidden` and `ffn`, which cost less quality than depth. */
  readonly space?: Partial<SearchSpace> | undefined;
  /** How the layers to cut are chosen; `contiguous-loss` by default. */
  readonly depthMethod?: DepthMethod | undefined;
  /** How many candidates are measured at most; 12 by default. */
  readonly maxCandidates?: number | undefined;
  /** How the smaller model starts; by default `refit` to compress, and `minitron`, which is a cut alone, to prune. */
  readonly start?: StartMethod | undefined;
  /** Sequences of 256 tokens to refit on; 192 by default. */
  readonly refitSamples?: number | undefined;
  /** Also weigh a size for each layer, chosen by an integer program, against equal layers; for refitted starts. */
  readonly perLayer?: boolean | undefined;
  /** Rank the best candidates again after distilling each on this many tokens. */
  readonly searchTokens?: number | undefined;
  /** Sequences to calibrate on; 1024 by default. */
  readonly calibrationSamples?: number | undefined;
  /** A file with scores to use instead of calibrating, or to write those of the calibration to. */
  readonly scoresFile?: string | undefined;
}

const DEFAULT_AXES: readonly string[] = ["hidden", "ffn"];

/** The sizes to search: by default, of the widths those that the model allows to cut. */
export const spaceOf = (model: Model, options: TargetOptions): SearchSpace => ({
  axes: DEFAULT_AXES.filter((axis) => model.axes.some(({ name }) => name === axis)),
  ...options.space,
  forLlamaCpp: isForLlamaCpp(options),
});

export const isForLlamaCpp = ({ target, forLlamaCpp, space }: TargetOptions): boolean =>
  isDevice(target) || forLlamaCpp === true || space?.forLlamaCpp === true;

/** Bits per weight for a target in bytes. */
const DEFAULT_BITS = 16;

/**
 * The architectures that meet a target: one if the target names sizes, else all within the tolerance.
 * @throws UsageError when there is none
 */
export function candidatesFor(model: Model, options: TargetOptions): Candidate[] {
  if (options.bitsPerWeight !== undefined && parseByteCount(options.target) === undefined)
    throw new UsageError(`--bits is for targets in bytes (4GiB), and would change nothing of ${options.target}`);
  if (isDevice(options.target)) {
    const best = bestFit(model, options.target, { space: options.space, kinds: options.gguf });
    const { sizes, parameters, share } = best;
    if (share === 1) return [{ sizes, parameters }];
    const own = spaceOf(model, options);
    const space = { ...own, divisors: { ...quantizableDivisors(model), ...own.divisors } };
    const fitting = enumerateCandidates(model, parameters, space).filter(
      (candidate) => candidate.parameters <= parameters && fitsLike(model, candidate.sizes, best, options.target),
    );
    return fitting.length > 0 ? fitting : [{ sizes, parameters }];
  }
  const devices = DEVICES.map(({ id }) => id);
  const target = parseTarget(options.target, model, options.bitsPerWeight ?? DEFAULT_BITS, devices);
  if (target.kind === "sizes") return [{ sizes: target.sizes, parameters: parametersAt(model, target.sizes) }];
  return enumerateCandidates(model, target.parameters, spaceOf(model, options));
}

/** @throws UsageError where nothing would be cut, so that a model would be trained to become itself */
export function checkCuts(
  checkpoint: Pick<Checkpoint, "model" | "source">,
  { target, gguf }: TargetOptions,
  candidates: readonly Candidate[],
): void {
  const { model } = checkpoint;
  const original = countParameters(model.parameters, model.sizes);
  if (candidates.some(({ parameters }) => parameters < original)) return;
  const fits = isDevice(target) ? `fits ${target}` : `has the target ${target}`;
  // another kind of file would only lose more, or be larger
  if (gguf === undefined && holdsQuantized(checkpoint))
    throw new UsageError(`the model ${fits} as it is, quantized already: there is nothing to cut`);
  const kind = isDevice(target) ? (gguf?.[0] ?? bestFit(model, target, {}).kind) : "q4_k_m";
  throw new UsageError(
    `${isDevice(target) ? `the model fits ${target} as it is, in ${kind}` : `the target ${target} is the model as it is`}: there is nothing to cut; \`coppice quantize MODEL --type ${kind} --out FILE.gguf\` makes a file of it`,
  );
}

/** Whether other sizes fit a device in the kind of file in which a candidate does: cuts of other axes leave larger tables or caches. */
function fitsLike(model: Model, sizes: AxisSizes, { kind }: FitCandidate, target: string): boolean {
  const device = deviceProfile(target);
  const layers = Array.from({ length: model.layerCount }, (_, i) => i);
  const { sizes: smaller, keptLayers } = planFor(model, sizes, layers);
  const context = Math.min(device.contextLength, model.maxPositions);
  return predictMemory(model.resized(smaller, keptLayers), kind, context).totalBytes <= device.usableBytes;
}
