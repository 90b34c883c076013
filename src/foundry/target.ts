import { fitDevice, profileOf } from "../devices/index.js";
import { modelFromConfig } from "../models/index.js";
import { describeSizes } from "../prune/index.js";
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

/**
 * What a specification asks for, or what suits its device.
 * @param config the model's configuration, which only a device needs @param storedBytes the model's size as stored
 * @throws UsageError when there is neither a device nor a target, or nothing fits the device
 */
export async function resolveTarget(
  spec: CompressSpec,
  config: Readonly<Record<string, unknown>>,
  storedBytes?: number,
): Promise<ResolvedTarget> {
  const kinds = spec.quantization as readonly FileKind[] | undefined;
  if (spec.target !== undefined)
    return { target: spec.target === UNCUT ? undefined : spec.target, kinds: kinds ?? ["q8_0"] };
  if (spec.device === undefined) throw new UsageError("a job needs a device or a target");
  const profile = await profileOf(spec.device);
  const { best } = fitDevice(modelFromConfig(config), profile, {
    contextLength: spec.context_length,
    storedBytes,
    kinds,
  });
  if (best === undefined)
    throw new UsageError(
      `no cut of this model fits ${profile.name}: start from a smaller model, or plan for a shorter context`,
    );
  return { target: best.share === 1 ? undefined : describeSizes(best.sizes), kinds: kinds ?? [best.kind] };
}
