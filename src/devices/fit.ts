import { countParameters, largestSize, type Model } from "../models/index.js";
import { type AxisSizes, axisSizes, nearestCandidate, planFor, type SearchSpace } from "../prune/index.js";
import { type FileKind, rowMultiple } from "../quantize/index.js";
import { UsageError } from "../system/errors.js";
import {
  CANDIDATE_KINDS,
  type MemoryPrediction,
  predictLoss,
  predictMemory,
  predictSpeed,
  type SpeedPrediction,
} from "./predict.js";
import type { DeviceProfile } from "./profiles.js";

/** A way to make a model fit: a cut of it, in a kind of file. */
export interface FitCandidate extends SpeedPrediction {
  readonly sizes: AxisSizes;
  readonly parameters: number;
  /** The share of the original's parameters that it keeps. */
  readonly share: number;
  readonly kind: FileKind;
  readonly memory: MemoryPrediction;
  readonly fits: boolean;
  /** Expected increase of the loss over the original's, in nats per token; meant for comparing candidates. */
  readonly expectedLoss: number;
  /** Whether it is Pareto-optimal: no other candidate is better in one of memory, speed and loss and worse in none. */
  readonly onFront: boolean;
}

export interface DeviceFit {
  readonly device: DeviceProfile;
  readonly contextLength: number;
  /** Those that fit, best first, then those that do not. */
  readonly candidates: readonly FitCandidate[];
  /** The fastest of those that fit and lose least, within the prediction's accuracy; undefined when nothing fits. */
  readonly best: FitCandidate | undefined;
}

export interface FitOptions {
  /** Tokens of prompt and answer; by default the device's, or the model's limit if that is lower. */
  readonly contextLength?: number | undefined;
  readonly space?: Partial<SearchSpace> | undefined;
  /** Size of the model as it is stored: larger files of the uncut model would gain nothing and are left out. */
  readonly storedBytes?: number | undefined;
  /** The lowest acceptable speed. */
  readonly tokensPerSecond?: number | undefined;
  /** The kinds of files to consider; all by default. */
  readonly kinds?: readonly FileKind[] | undefined;
}

/** The shares of the parameters to consider. Cuts by up to a third cost little; larger ones are better made in rounds. */
const SHARES = [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4];

/**
 * Weighs pruning against quantization: which cut in which kind of file is expected to lose least on a device.
 * @throws UsageError for a context that is longer than the model's
 */
export function fitDevice(model: Model, device: DeviceProfile, options: FitOptions = {}): DeviceFit {
  const limit = Math.min(device.contextLength, model.maxPositions);
  const contextLength = options.contextLength ?? limit;
  if (contextLength > model.maxPositions)
    throw new UsageError(`the model reads ${model.maxPositions} tokens at most, not ${contextLength}`);
  const { storedBytes = Number.POSITIVE_INFINITY } = options;
  const isWorthwhile = ({ share, memory }: Pick<FitCandidate, "share" | "memory">) =>
    share < 1 || memory.weightBytes <= storedBytes;
  const originalParameters = countParameters(model.parameters, model.sizes);
  const all = architectures(model, options.space ?? {}).flatMap(({ smaller, sizes }) =>
    (options.kinds ?? CANDIDATE_KINDS).map((kind): Omit<FitCandidate, "onFront"> => {
      const memory = predictMemory(smaller, kind, contextLength);
      const speed = predictSpeed(smaller, kind, device, contextLength);
      const parameters = countParameters(smaller.parameters, smaller.sizes);
      const share = parameters / originalParameters;
      const fits = memory.totalBytes <= device.usableBytes && speed.tokensPerSecond >= (options.tokensPerSecond ?? 0);
      return {
        sizes,
        parameters,
        share,
        kind,
        memory,
        ...speed,
        fits,
        expectedLoss: predictLoss(model, smaller, kind),
      };
    }),
  );
  const worthwhile = all.filter(isWorthwhile);
  const candidates = worthwhile
    .map((one): FitCandidate => ({ ...one, onFront: !worthwhile.some((other) => dominates(other, one)) }))
    .sort((a, b) => Number(b.fits) - Number(a.fits) || a.expectedLoss - b.expectedLoss);
  return { device, contextLength, candidates, best: bestOf(candidates) };
}

/** Differences of the expected loss below this many nats are within the prediction's error. */
const LOSS_TOLERANCE = 0.005;

function bestOf(candidates: readonly FitCandidate[]): FitCandidate | undefined {
  const fitting = candidates.filter(({ fits }) => fits);
  const least = Math.min(...fitting.map(({ expectedLoss }) => expectedLoss));
  return fitting
    .filter(({ expectedLoss }) => expectedLoss <= least + LOSS_TOLERANCE)
    .sort((a, b) => b.tokensPerSecond - a.tokensPerSecond)[0];
}

/** Cuts of widths of at least this keep to the large blocks of the k-quants, those of others to the blocks of the older types. */
const LARGE_WIDTH = 2048;
const [SMALL_BLOCK, LARGE_BLOCK] = [32, 256];

/**
 * What widths must be multiples of so that their rows fill quantized blocks; other rows could not be quantized.
 * @param kinds the files that are wanted: kinds with large blocks need them filled in small models, too
 */
export function quantizableDivisors(model: Model, kinds: readonly FileKind[] = []): Record<string, number> {
  const least = kinds.some((kind) => rowMultiple(kind) > SMALL_BLOCK) ? LARGE_BLOCK : LARGE_WIDTH;
  const blockOf = (size: number) => (size >= least ? LARGE_BLOCK : SMALL_BLOCK);
  return Object.fromEntries(rowAxes(model).map((axis) => [axis, blockOf(largestSize(model, axis))]));
}

/** The axes along which rows are quantized, of those that the model can be cut on. */
const rowAxes = (model: Model): string[] =>
  ["hidden", "ffn"].filter((axis) => model.axes.some(({ name }) => name === axis));

/** The architectures to consider: the original, and for each share the cut nearest to it. */
function architectures(model: Model, space: Partial<SearchSpace>): { smaller: Model; sizes: AxisSizes }[] {
  const original = axisSizes(model);
  const parameters = countParameters(model.parameters, model.sizes);
  const layers = Array.from({ length: model.layerCount }, (_, i) => i);
  const axes = rowAxes(model);
  const divisors = { ...quantizableDivisors(model), ...space.divisors };
  const sizesByShare = SHARES.map((share) => {
    if (share === 1) return original;
    return nearestCandidate(model, share * parameters, { axes, ...space, divisors, forLlamaCpp: true })?.sizes;
  }).filter((sizes) => sizes !== undefined);
  const distinct = new Map(sizesByShare.map((sizes) => [JSON.stringify(sizes), sizes]));
  return [...distinct.values()].map((sizes) => {
    const plan = planFor(model, sizes, layers);
    return { sizes, smaller: model.resized(plan.sizes, plan.keptLayers) };
  });
}

type Objectives = Pick<FitCandidate, "memory" | "tokensPerSecond" | "expectedLoss">;

/** Whether `a` is better than `b` in one objective and worse in none. */
function dominates(a: Objectives, b: Objectives): boolean {
  const differences = [
    b.memory.totalBytes - a.memory.totalBytes,
    a.tokensPerSecond - b.tokensPerSecond,
    b.expectedLoss - a.expectedLoss,
  ];
  return differences.every((difference) => difference >= 0) && differences.some((difference) => difference > 0);
}
