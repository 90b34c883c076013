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
import type { JobOptions } from "./job.js";

export interface DevicePlanJob extends Pick<JobOptions, "hub" | "onProgress" | "device" | "threads">, FitOptions {
  readonly model: string;
  /** A profile's id, or `this-machine`, which is measured. */
  readonly forDevice: string;
}

export interface DevicePlan extends DeviceFit {
  readonly parameters: number;
}

/**
 * Weighs pruning against quantization for a device. Of the model, config.json is enough.
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
  const model = await openArchitecture(job.model, job);
  const { device, threads } = job;
  const profile =
    job.forDevice === THIS_MACHINE ? await measureThisMachine({ device, threads }) : deviceProfile(job.forDevice);
  return { parameters: countParameters(model.parameters, model.sizes), ...fitDevice(model, profile, job) };
}

/** The candidate that is expected to lose least on a device. @throws UsageError when none fits */
export function bestFit(model: Model, device: string, options: Pick<FitOptions, "space" | "kinds">): FitCandidate {
  const { best, candidates } = fitDevice(model, deviceProfile(device), options);
  if (best !== undefined) return best;
  const smallest = Math.min(...candidates.map(({ memory }) => memory.totalBytes));
  throw new UsageError(
    `no cut of this model fits ${device}: the smallest candidate takes ${formatBytes(smallest)}; allow larger cuts (--max-width-cut), or start from a smaller model`,
  );
}

/** Opens a model's architecture without its weights, which need not be there. */
export async function openArchitecture(reference: string, { hub }: Pick<JobOptions, "hub">): Promise<Model> {
  const location = await resolveConfig(reference, hub);
  const file = path.join(location, "config.json");
  return existsSync(file) ? modelFromConfig(readJsonObject(file)) : openCheckpoint(location).model;
}
