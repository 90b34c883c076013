import {
  type DeviceProfile,
  type FitCandidate,
  type FitOptions,
  fitDevice,
  isDevice,
  profileOf,
} from "../devices/index.js";
import { type Model, modelFromConfig } from "../models/index.js";
import { describeSizes, parseTarget } from "../prune/index.js";
import type { FileKind } from "../quantize/index.js";
import { UsageError } from "../system/errors.js";
import type { CompressSpec } from "./specification.js";

/** What a job is to make. */
export interface ResolvedTarget {
  /** Sizes to cut to; undefined where nothing is cut. */
  readonly target: string | undefined;
  /** Kinds of GGUF files. */
  readonly kinds: readonly FileKind[];
}

/** The target that cuts nothing. */
export const UNCUT = "1x";

/** Targets in bytes are of weights with so many bits. */
const TARGET_BITS = 16;

/**
 * What a specification asks for, or what suits its device.
 * @param storedBytes the model's size as stored
 * @throws UsageError when there is neither a device nor a target, the target is none, or nothing fits the device
 */
export async function resolveTarget(
  spec: CompressSpec,
  config: Readonly<Record<string, unknown>>,
  storedBytes?: number,
): Promise<ResolvedTarget> {
  const kinds = spec.quantization as readonly FileKind[] | undefined;
  if (spec.target !== undefined) {
    if (spec.target !== UNCUT && !isDevice(spec.target)) parseTarget(spec.target, modelFromConfig(config), TARGET_BITS);
    return { target: spec.target === UNCUT ? undefined : spec.target, kinds: kinds ?? ["q8_0"] };
  }
  if (spec.device === undefined) throw new UsageError("a job needs a device or a target");
  const profile = await profileOf(spec.device);
  const model = modelFromConfig(config);
  const options = { contextLength: spec.context_length, storedBytes };
  const best =
    kinds === undefined ? fitDevice(model, profile, options).best : fitsInAll(model, profile, kinds, options);
  if (best === undefined)
    throw new UsageError(
      `no cut of this model fits ${profile.name}: start from a smaller model, or plan for a shorter context`,
    );
  return { target: best.share === 1 ? undefined : describeSizes(best.sizes), kinds: kinds ?? [best.kind] };
}

/** The cut that fits a device in each of several kinds of files: the smallest of those that are best in one. */
function fitsInAll(
  model: Model,
  profile: DeviceProfile,
  kinds: readonly FileKind[],
  options: FitOptions,
): FitCandidate | undefined {
  const each = kinds.map((kind) => fitDevice(model, profile, { ...options, kinds: [kind] }).best);
  if (each.includes(undefined)) return undefined;
  return each.sort((a, b) => (a?.parameters ?? 0) - (b?.parameters ?? 0))[0];
}
