import { countParameters, largestSize, type Model } from "../models/index.js";
import { type AxisSizes, axisSizes, nearestCandidate, planFor, type SearchSpace } from "../prune/index.js";
import { type FileKind, rowMultiple } from "../quantize/index.js";
import { UsageError } from "../system/errors.js";
import {
  type MemoryPrediction,
  predictLoss,
  predictMemory,
  predictSpeed,
  type SpeedPrediction,
  WEIGHED_KINDS,
} from "./predict.js";
import type { DeviceProfile } from "./profiles.js";

/** A way to make a model fit: an architecture in a type. */
export interface FitCandidate extends SpeedPrediction {
  readonly sizes: AxisSizes;
  readonly parameters: number;
  /** Of the original's parameters. */
  readonly share: number;
  readonly kind: FileKind;
  readonly memory: MemoryPrediction;
  readonly fits: boolean;
  /** Nats a token that it is expected to be behind the original; of use to compare candidates. */
  readonly expectedLoss: number;
  /** Whether no other candidate is better in one of memory, speed and loss and worse in none. */
  readonly onFront: boolean;
}

export interface DeviceFit {
  readonly device: DeviceProfile;
  readonly contextLength: number;
  /** Best first among those that fit, then those that do not. */
  readonly candidates: readonly FitCandidate[];
  /** The fastest of those that fit and lose least, as far as can be told; undefined when nothing fits. */
  readonly best: FitCandidate | undefined;
}

export interface FitOptions {
  /** Tokens of prompt and answer; the device's, or the model's where that is less. */
  readonly contextLength?: number | undefined;
  readonly space?: Partial<SearchSpace> | undefined;
  /** Bytes of the model as it is: uncut, a larger file would gain nothing. */
  readonly storedBytes?: number | undefined;
  /** Least speed that is wanted. */
  readonly tokensPerSecond?: number | undefined;
}

/** Shares of the parameters that are weighed: cuts to a third at once cost little (METHOD: up to a third, more in rounds). */
const SHARES = [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4];

/** Weighs pruning against quantization: which architecture in which type is expected to lose least on a device. */
export function fitDevice(model: Model, device: DeviceProfile, options: FitOptions = {}): DeviceFit {
  const limit = Math.min(device.contextLength, model.maxPositions);
  const contextLength = options.contextLength ?? limit;
  if (contextLength > model.maxPositions)
    throw new UsageError(`the model reads ${model.maxPositions} tokens at most, not ${contextLength}`);
  const { storedBytes = Number.POSITIVE_INFINITY } = options;
  const isWorthwhile = ({ share, memory }: Pick<FitCandidate, "share" | "memory">) =>
    share < 1 || memory.weightBytes <= storedBytes;
  const all = architectures(model, options.space ?? {}).flatMap(({ smaller, sizes }) =>
    WEIGHED_KINDS.map((kind): Omit<FitCandidate, "onFront"> => {
      const memory = predictMemory(smaller, kind, contextLength);
      const speed = predictSpeed(smaller, kind, device, contextLength);
      const parameters = countParameters(smaller.parameters, smaller.sizes);
      const share = parameters / countParameters(model.parameters, model.sizes);
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
  const found = all.filter(isWorthwhile);
  const candidates = found
    .map((one): FitCandidate => ({ ...one, onFront: !found.some((other) => dominates(other, one)) }))
    .sort((a, b) => Number(b.fits) - Number(a.fits) || a.expectedLoss - b.expectedLoss);
  return { device, contextLength, candidates, best: bestOf(candidates) };
}

/** Differences of the expected loss that say nothing, in nats. */
const INDIFFERENT = 0.005;

function bestOf(candidates: readonly FitCandidate[]): FitCandidate | undefined {
  const fitting = candidates.filter(({ fits }) => fits);
  const least = Math.min(...fitting.map(({ expectedLoss }) => expectedLoss));
  return fitting
    .filter(({ expectedLoss }) => expectedLoss <= least + INDIFFERENT)
    .sort((a, b) => b.tokensPerSecond - a.tokensPerSecond)[0];
}

/** Widths from which on cuts keep to the large blocks of the k-quants; below, to those of the older types. */
const LARGE_WIDTH = 2048;
const [SMALL_BLOCK, LARGE_BLOCK] = [32, 256];

/**
 * What widths must be multiples of, so that their rows fill quantized blocks: others could not be quantized.
 * @param kinds of files that are wanted; those of large blocks want them filled in small models, too
 */
export function quantizableDivisors(
  model: Model,
  kinds: readonly FileKind[] = [],
): { readonly hidden: number; readonly ffn: number } {
  const least = kinds.some((kind) => rowMultiple(kind) > SMALL_BLOCK) ? LARGE_BLOCK : LARGE_WIDTH;
  const blockOf = (size: number) => (size >= least ? LARGE_BLOCK : SMALL_BLOCK);
  return { hidden: blockOf(largestSize(model, "hidden")), ffn: blockOf(largestSize(model, "ffn")) };
}

/** Architectures to weigh: the original, and for each share the one nearest to it. */
function architectures(model: Model, space: Partial<SearchSpace>): { smaller: Model; sizes: AxisSizes }[] {
  const original = axisSizes(model);
  const parameters = countParameters(model.parameters, model.sizes);
  const layers = Array.from({ length: model.layerCount }, (_, i) => i);
  const cuttable = model.axes.map(({ name }) => name);
  const axes = ["hidden", "ffn"].filter((axis) => cuttable.includes(axis));
  const divisors = { ...only(quantizableDivisors(model), axes), ...space.divisors };
  const found = SHARES.map((share) => {
    if (share === 1) return original;
    return nearestCandidate(model, share * parameters, { axes, ...space, divisors })?.sizes;
  }).filter((sizes) => sizes !== undefined);
  return [...new Map(found.map((sizes) => [JSON.stringify(sizes), sizes])).values()].map((sizes) => {
    const plan = planFor(model, sizes, layers);
    return { sizes, smaller: model.resized(plan.sizes, plan.keptLayers) };
  });
}

const only = (sizes: Readonly<Record<string, number>>, axes: readonly string[]): Record<string, number> =>
  Object.fromEntries(Object.entries(sizes).filter(([axis]) => axes.includes(axis)));

type Weighed = Pick<FitCandidate, "memory" | "tokensPerSecond" | "expectedLoss">;

function dominates(a: Weighed, b: Weighed): boolean {
  const differences = [
    b.memory.totalBytes - a.memory.totalBytes,
    a.tokensPerSecond - b.tokensPerSecond,
    b.expectedLoss - a.expectedLoss,
  ];
  return differences.every((difference) => difference >= 0) && differences.some((difference) => difference > 0);
}
