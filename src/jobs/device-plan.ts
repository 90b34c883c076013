import { existsSync } from "node:fs";
import path from "node:path";
import { resolveConfig } from "../checkpoint/index.js";
import { readJsonObject } from "../checkpoint/json.js";
import {
  type DeviceFit,
  deviceProfile,
  type FitCandidate,
  type FitOptions,
  fitDevice,
  measureThisMachine,
  THIS_MACHINE,
} from "../devices/index.js";
import { countParameters, type Model, modelFromConfig, openCheckpoint } from "../models/index.js";
import { UsageError } from "../system/errors.js";
import { formatBytes } from "../system/format.js";
import type { JobOptions } from "./environment.js";

export interface DevicePlanJob extends Pick<JobOptions, "hub" | "onProgress" | "device" | "threads">, FitOptions {
  readonly model: string;
  /** A profile's id, or `this-machine`, which is measured. */
  readonly forDevice: string;
}

export interface DevicePlan extends DeviceFit {
  readonly parameters: number;
}

/**
 * Weighs pruning against quantization for a device. A config.json is enough.
 * @example
 * ```ts
 * import { planForDevice } from "coppice";
 *
 * const { best } = await planForDevice({ model: "./model", forDevice: "phone-8gb" });
 * if (best === undefined) console.log("no cut of this model fits");
 * else console.log(best.sizes, best.kind, best.tokensPerSecond);
 * ```
 */
export async function planForDevice(job: DevicePlanJob): Promise<DevicePlan> {
  const model = await modelOnly(job.model, job);
  const { device, threads } = job;
  const profile =
    job.forDevice === THIS_MACHINE
      ? await measureThisMachine({ ...(device && { device }), ...(threads && { threads }) })
      : deviceProfile(job.forDevice);
  return { parameters: countParameters(model.parameters, model.sizes), ...fitDevice(model, profile, job) };
}

/** What is expected to lose least of those that a device holds. @throws UsageError when it holds none */
export function fitFor(model: Model, device: string, space?: FitOptions["space"]): FitCandidate {
  const { best, candidates } = fitDevice(model, deviceProfile(device), { space });
  if (best !== undefined) return best;
  const least = Math.min(...candidates.map(({ memory }) => memory.totalBytes));
  throw new UsageError(
    `no cut of this model fits ${device}: the smallest that was weighed takes ${formatBytes(least)}; allow larger cuts (--max-width-cut), or begin with a smaller model`,
  );
}

/** A model's architecture, of which neither a directory nor this machine need have the weights. */
export async function modelOnly(reference: string, { hub }: Pick<JobOptions, "hub">): Promise<Model> {
  const at = await resolveConfig(reference, hub);
  const file = path.join(at, "config.json");
  return existsSync(file) ? modelFromConfig(readJsonObject(file)) : openCheckpoint(at).model;
}
