import { DEVICES, isDevice } from "../devices/index.js";
import type { Model } from "../models/index.js";
import {
  type Candidate,
  type DepthMethod,
  enumerateCandidates,
  parametersAt,
  parseTarget,
  type SearchSpace,
} from "../prune/index.js";
import { fitFor } from "./device-plan.js";

/** What the smaller model should be, and how it is looked for. */
export interface TargetOptions {
  /** `8.4B`, `0.67x`, `4GiB`, `hidden=4096,ffn=11520` or a device's id. */
  readonly target: string;
  /** For a target in bytes; 16 by default. */
  readonly bitsPerWeight?: number | undefined;
  /** Which sizes may change; the widths `hidden` and `ffn` by default, which keep more quality than depth. */
  readonly space?: Partial<SearchSpace> | undefined;
  /** How layers to cut are chosen; the contiguous run that costs least loss by default. */
  readonly depthMethod?: DepthMethod | undefined;
  /** Candidates that are measured at most. */
  readonly maxCandidates?: number | undefined;
  /** Rank the best candidates again after distilling each on so many tokens. */
  readonly searchTokens?: number | undefined;
  /** Sequences of calibration data. */
  readonly calibrationSamples?: number | undefined;
  /** Scores to use instead of a calibration, or where to keep those of this one. */
  readonly scoresFile?: string | undefined;
}

const DEFAULT_AXES: readonly string[] = ["hidden", "ffn"];

/** Where sizes are looked for: the widths that the model lets be cut, where nothing else is said. */
const spaceOf = (model: Model, { space }: TargetOptions): SearchSpace => ({
  axes: DEFAULT_AXES.filter((axis) => model.axes.some(({ name }) => name === axis)),
  ...space,
});

/** Bits per weight of a target in bytes. */
const DEFAULT_BITS = 16;

/** The architectures that meet a target: one when it names sizes, else all within the tolerance. */
export function candidatesFor(model: Model, options: TargetOptions): Candidate[] {
  if (isDevice(options.target)) {
    const { sizes, parameters, share } = fitFor(model, options.target, options.space);
    return share === 1 ? [{ sizes, parameters }] : enumerateCandidates(model, parameters, spaceOf(model, options));
  }
  const devices = DEVICES.map(({ id }) => id);
  const target = parseTarget(options.target, model, options.bitsPerWeight ?? DEFAULT_BITS, devices);
  if (target.kind === "sizes") return [{ sizes: target.sizes, parameters: parametersAt(model, target.sizes) }];
  return enumerateCandidates(model, target.parameters, spaceOf(model, options));
}
