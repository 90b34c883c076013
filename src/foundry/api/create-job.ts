import { isDeepStrictEqual } from "node:util";
import { THIS_MACHINE } from "../../devices/index.js";
import { ApiError } from "../../serve/errors.js";
import { CoppiceError } from "../../system/errors.js";
import type { CompressSpec, JobSpec } from "../specification.js";
import { type Job, TooManyJobs } from "../store/jobs.js";
import { type ModelRow, TooManyBytes } from "../store/library.js";
import type { Caller } from "../store/tenants.js";
import { resolveTarget, UNCUT } from "../target.js";
import { trainedTokens } from "../training.js";
import type { FoundryServices } from "./route.js";

/**
 * Checks a job against the tenant's models, data and quotas, and queues it. The same idempotency key creates one job.
 * @throws ApiError 400 when nothing fits the device, 403 beyond a quota, 404 for an unknown model or data set, 409 for a model that is
 * not complete or a key that another job has
 */
export async function createJob(
  requested: JobSpec,
  { tenant }: Caller,
  services: FoundryServices,
  idempotencyKey: string | undefined,
): Promise<Job> {
  const { library, jobs, tenants } = services;
  const known = idempotencyKey === undefined ? undefined : await jobs.byIdempotencyKey(tenant, idempotencyKey);
  if (known !== undefined) return checkSame(known, requested);
  const model = await library.model(tenant, requested.model);
  if (model === undefined) throw new ApiError(404, "there is no such model", { param: "model" });
  if (model.state !== "ready") throw new ApiError(409, "the model is not complete yet", { param: "model" });
  const quota = await tenants.quota(tenant);
  if (quota.max_bytes !== null && (await library.bytesOf(tenant)) >= quota.max_bytes)
    throw new ApiError(403, new TooManyBytes(quota.max_bytes).message, { code: "quota_exceeded" });
  let spec = requested;
  if (spec.kind === "compress") {
    if (spec.dataset !== undefined && (await library.dataset(tenant, spec.dataset)) === undefined)
      throw new ApiError(404, "there is no such data set", { param: "dataset" });
    const checked = await withCheckedTarget(spec, model, tenant, services);
    spec = checked.spec;
    if (quota.max_tokens !== null && checked.tokens > quota.max_tokens)
      throw new ApiError(403, `the quota allows at most ${quota.max_tokens} tokens per job`, {
        param: "tokens",
        code: "quota_exceeded",
      });
  }
  const name = (spec.name ?? defaultName(spec, model)).slice(0, 120);
  const newJob = { tenant, name, spec, idempotencyKey, maxUnfinished: quota.max_jobs ?? undefined };
  const { job, existed } = await withinQuota(jobs.create(newJob));
  return existed ? checkSame(job, requested) : job;
}

/** What queues a job. @throws ApiError 403 where the tenant has as many as it may */
export async function withinQuota<T>(queued: Promise<T>): Promise<T> {
  return queued.catch((error: unknown) => {
    if (error instanceof TooManyJobs) throw new ApiError(403, error.message, { code: "quota_exceeded" });
    throw error;
  });
}

/** @throws ApiError 409 when a job was made for another request than the one that repeats its idempotency key */
function checkSame(job: Job, requested: JobSpec): Job {
  const { spec } = job;
  const isSettled = requested.kind === "compress" && spec.kind === "compress" && isForThisMachine(requested);
  const expected = isSettled
    ? { ...requested, target: spec.target, quantization: requested.quantization ?? spec.quantization }
    : requested;
  // a stored specification has been through JSON
  if (!isDeepStrictEqual(spec, JSON.parse(JSON.stringify(expected))))
    throw new ApiError(409, "another job has this idempotency key", { code: "idempotency_conflict" });
  return job;
}

/** Whether its target is settled when the job is made. */
const isForThisMachine = ({ device, target }: CompressSpec): boolean => device === THIS_MACHINE && target === undefined;

const defaultName = (spec: JobSpec, model: ModelRow): string =>
  spec.kind === "compress" ? `${model.name} for ${spec.device ?? spec.target}` : `${model.name}, measured`;

/**
 * A specification whose target can be met, as far as that is known before the job runs, and the tokens that it trains on. A target for the service's own machine is
 * settled here: workers may run elsewhere, and may start more than once.
 * @throws ApiError 400 when nothing fits the device, or the target is none
 */
async function withCheckedTarget(
  spec: CompressSpec,
  model: ModelRow,
  tenant: string,
  { materials }: FoundryServices,
): Promise<{ readonly spec: CompressSpec; readonly tokens: number }> {
  const storedBytes = model.bytes || undefined;
  const tokensOf = (isCut: boolean) => (isCut ? checkedTokens(spec, model) : 0);
  try {
    if (isForThisMachine(spec)) {
      const { config } = await materials.facts(tenant, model);
      const { target = UNCUT, kinds } = await resolveTarget(spec, config, storedBytes);
      return { spec: { ...spec, target, quantization: [...kinds] }, tokens: tokensOf(target !== UNCUT) };
    }
    // of a hub model that is new, only that there is a target is known
    if (model.facts === null && (spec.device !== undefined || spec.target !== undefined))
      return { spec, tokens: tokensOf(spec.target !== UNCUT) };
    const { target } = await resolveTarget(spec, model.facts?.config ?? {}, storedBytes);
    return { spec, tokens: tokensOf(target !== undefined) };
  } catch (error) {
    const param = spec.target === undefined ? "device" : "target";
    if (error instanceof CoppiceError) throw new ApiError(400, error.message, { param });
    throw error;
  }
}

/** The tokens that a job trains on. @throws ApiError 400 for settings that do not suit the model, as far as it is known */
function checkedTokens(spec: CompressSpec, model: ModelRow): number {
  try {
    return trainedTokens(spec, model.facts?.config);
  } catch (error) {
    if (error instanceof CoppiceError) throw new ApiError(400, error.message);
    throw error;
  }
}
