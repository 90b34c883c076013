import { setTimeout as wait } from "node:timers/promises";
import { z } from "zod";
import { THIS_MACHINE } from "../../devices/index.js";
import { ApiError } from "../../serve/errors.js";
import { CoppiceError } from "../../system/errors.js";
import { keys } from "../materials.js";
import { aimOf, UNCUT } from "../run-job.js";
import { evaluateSpec, type JobSpec, jobSpec } from "../specification.js";
import { type Artifact, EVENTS_AT_ONCE, JOB_STATES, type Job } from "../store/jobs.js";
import type { Caller } from "../store/tenants.js";
import {
  type Events,
  type FoundryServices,
  found,
  idParameter,
  listOf,
  type Route,
  type RouteRequest,
  route,
  type Streamed,
  time,
} from "./route.js";

const stage = z.object({ name: z.string(), seconds: z.number(), peakMemoryBytes: z.number() });
export const jobSchema = z.object({
  ...{ id: z.uuid(), number: z.number().int(), name: z.string(), state: z.enum(JOB_STATES) },
  spec: z.looseObject({ kind: z.string() }),
  stage: z.string().nullable(),
  progress: z.looseObject({ stage: z.string(), done: z.number(), total: z.number(), unit: z.string() }).nullable(),
  stages: z.array(stage),
  attempts: z.number().int().describe("workers that took it, one after the other"),
  cancel_requested: z.boolean(),
  error: z.string().nullable(),
  result: z.looseObject({}).nullable(),
  ...{ created_at: time, started_at: time, finished_at: time },
});

export const shownJob = (job: Job): object => {
  const { id, number, name, state, spec, stage: at, progress, stages, attempts, cancel_requested, error, result } = job;
  const { created_at, started_at, finished_at } = job;
  return {
    ...{ id, number, name, state, spec, stage: at, progress, stages, attempts, cancel_requested, error, result },
    ...{ created_at, started_at, finished_at },
  };
};

const artifactSchema = z.object({
  ...{ name: z.string(), media_type: z.string(), bytes: z.number().int(), sha256: z.string() },
});
const shownArtifact = ({ name, mediaType, bytes, sha256 }: Artifact) => ({
  name,
  media_type: mediaType,
  bytes,
  sha256,
});

/** @throws ApiError for what the tenant does not have, may not have, or what cannot be done */
export async function createJob(
  asked: JobSpec,
  caller: Caller,
  services: FoundryServices,
  idempotencyKey: string | undefined,
): Promise<{ readonly job: Job; readonly existed: boolean }> {
  const { library, jobs, tenants, materials } = services;
  let spec = asked;
  const model = await library.model(caller.tenant, spec.model);
  if (model === undefined) throw new ApiError(404, "there is no such model", { param: "model" });
  if (model.state !== "ready") throw new ApiError(409, "the model is not complete yet", { param: "model" });
  if (spec.kind === "compress") {
    if (spec.dataset !== undefined && (await library.dataset(caller.tenant, spec.dataset)) === undefined)
      throw new ApiError(404, "there is no such data set", { param: "dataset" });
    try {
      if (spec.device === THIS_MACHINE && spec.target === undefined) {
        // workers may be elsewhere, and begin more than once: what suits this machine is settled here
        const { config } = await materials.facts(caller.tenant, model);
        const { target = UNCUT, kinds } = await aimOf(spec, config, model.bytes || undefined);
        spec = { ...spec, target, quantization: [...kinds] };
      } else if (model.facts !== null) await aimOf(spec, model.facts.config, model.bytes || undefined);
      else if (spec.device === undefined && spec.target === undefined) await aimOf(spec, {});
    } catch (error) {
      if (error instanceof CoppiceError) throw new ApiError(400, error.message, { param: "device" });
      throw error;
    }
    const { max_tokens: most } = await tenants.quota(caller.tenant);
    if (most !== null && spec.tokens > most)
      throw new ApiError(403, `a job may have ${most} tokens at most here`, {
        param: "tokens",
        code: "quota_exceeded",
      });
  }
  const { max_jobs: most } = await tenants.quota(caller.tenant);
  if (most !== null && (await jobs.unfinished(caller.tenant)) >= most)
    throw new ApiError(403, `${most} jobs wait or run already: as many as may`, { code: "quota_exceeded" });
  const name =
    spec.name ?? `${model.name}${spec.kind === "compress" ? ` for ${spec.device ?? spec.target}` : ", measured"}`;
  const made = await jobs.create(caller.tenant, name.slice(0, 120), spec, idempotencyKey);
  if (
    made.existed &&
    JSON.stringify(made.job.spec) !== JSON.stringify(JSON.parse(JSON.stringify(spec))) &&
    !sameSpec(made.job.spec, spec)
  )
    throw new ApiError(409, "another job has this idempotency key", { code: "idempotency_conflict" });
  return made;
}

/** jsonb keeps no order of keys. */
const sameSpec = (a: JobSpec, b: JobSpec): boolean => canonical(a) === canonical(b);
const canonical = (value: unknown): string =>
  JSON.stringify(value, (_, inner: unknown) =>
    inner !== null && typeof inner === "object" && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([x], [y]) => (x < y ? -1 : 1)))
      : inner,
  );

/** The key under which a request that is repeated makes one job. @throws ApiError 400 for one that is too long */
export function idempotencyKeyOf(header: (name: string) => string | undefined): string | undefined {
  const key = header("idempotency-key");
  if (key !== undefined && !/^[\x21-\x7e]{1,200}$/.test(key))
    throw new ApiError(400, "Idempotency-Key has 1 to 200 visible characters", { param: "Idempotency-Key" });
  return key;
}

type ById = RouteRequest<{ readonly id: string }, unknown, unknown>;
const jobOf = async (
  { caller, parameters }: Pick<ById, "caller" | "parameters">,
  { jobs }: FoundryServices,
): Promise<Job> => found(await jobs.get(caller.tenant, parameters.id), "job");

const POLL_MILLISECONDS = 500;

/** What happens to a job, from an event on, until it has ended. */
async function* follow(job: Job, after: number, services: FoundryServices, signal: AbortSignal) {
  let last = after;
  let shown = "";
  for (;;) {
    const now = (await services.jobs.get(job.tenant, job.id)) ?? job;
    const events = await services.jobs.events(job.id, last);
    for (const one of events) {
      last = one.id;
      yield { event: one.kind, id: `${one.id}`, data: { at: one.at, ...one.data } };
    }
    if (events.length === EVENTS_AT_ONCE && !signal.aborted) continue; // there are more
    const { state, stage: at, progress, stages } = now;
    const status = JSON.stringify({ state, stage: at, progress, stages });
    if (status !== shown) {
      shown = status;
      yield { event: "status", data: JSON.parse(status) as object };
    }
    if (state !== "queued" && state !== "running" && (await services.jobs.events(job.id, last, 1)).length === 0) {
      yield { event: "end", data: { state } };
      return;
    }
    await wait(POLL_MILLISECONDS, undefined, { signal });
  }
}

/** The part of a file that is asked for. @throws ApiError 400 for what is no part of it */
export function rangeOf(header: string | undefined, bytes: number): { start: number; end: number } | undefined {
  const match = /^bytes=(\d*)-(\d*)$/.exec(header ?? "");
  if (match === null) return undefined;
  const [, from = "", to = ""] = match;
  const start = from === "" ? Math.max(0, bytes - Number(to)) : Number(from);
  const end = from === "" || to === "" ? bytes - 1 : Math.min(Number(to), bytes - 1);
  if (start > end) throw new ApiError(400, `the file has ${bytes} bytes`, { param: "Range" });
  return { start, end };
}

export async function download(
  file: Artifact,
  range: string | undefined,
  { storage }: FoundryServices,
): Promise<Streamed> {
  const part = rangeOf(range, file.bytes);
  const length = part === undefined ? file.bytes : part.end - part.start + 1;
  return {
    stream: await storage.read(file.storageKey, part),
    status: part === undefined ? 200 : 206,
    headers: {
      ...{
        "content-type": file.mediaType,
        "content-length": `${length}`,
        "accept-ranges": "bytes",
        etag: `"${file.sha256}"`,
      },
      // a report is a page made by a job: it may not act as one of ours
      ...{ "content-disposition": `attachment; filename="${file.name}"`, "content-security-policy": "sandbox" },
      ...(part && { "content-range": `bytes ${part.start}-${part.end}/${file.bytes}` }),
    },
  };
}

export const jobRoutes: readonly Route[] = [
  route("Jobs", "POST /v1/jobs", {
    summary: "Asks for a smaller model, or for a model to be measured. The same Idempotency-Key makes one job",
    ...{ needs: "user", body: jobSpec, status: 201, reply: jobSchema },
    answer: async ({ body, caller, header }, services) =>
      shownJob((await createJob(body, caller, services, idempotencyKeyOf(header))).job),
  }),
  route("Jobs", "GET /v1/jobs", {
    summary: "Jobs, newest first",
    needs: "viewer",
    query: z.strictObject({
      state: z.enum(JOB_STATES).optional(),
      kind: z.enum(["compress", "evaluate"]).optional(),
      before: z.coerce
        .number()
        .int()
        .min(0)
        .max(2 ** 53 - 1)
        .optional()
        .describe("a job's number: those that are older"),
      limit: z.coerce.number().int().min(1).max(200).optional(),
    }),
    reply: listOf(jobSchema),
    answer: async ({ query, caller }, { jobs }) => ({ data: (await jobs.list(caller.tenant, query)).map(shownJob) }),
  }),
  route("Jobs", "GET /v1/jobs/{id}", {
    ...{ summary: "A job", needs: "viewer", parameters: idParameter, reply: jobSchema },
    answer: async (request, services) => shownJob(await jobOf(request, services)),
  }),
  route("Jobs", "POST /v1/jobs/{id}/cancel", {
    ...{ summary: "Stops a job", needs: "user", parameters: idParameter, status: 202, reply: jobSchema },
    answer: async (request, services) => {
      const { tenant, id } = await jobOf(request, services);
      await services.jobs.cancel(tenant, id);
      return shownJob(await jobOf(request, services));
    },
  }),
  route("Jobs", "POST /v1/jobs/{id}/retry", {
    summary: "Lets a job that failed or was stopped go on from where it was",
    ...{ needs: "user", parameters: idParameter, status: 202, reply: jobSchema },
    answer: async (request, services) => {
      const { tenant, id, state } = await jobOf(request, services);
      if (!(await services.jobs.retry(tenant, id)))
        throw new ApiError(409, `the job is ${state}: only one that failed or was cancelled can be tried again`);
      return shownJob(await jobOf(request, services));
    },
  }),
  route("Jobs", "DELETE /v1/jobs/{id}", {
    summary: "Forgets a job that has ended, with its files and the model that it made",
    ...{ needs: "user", parameters: idParameter, status: 204 },
    answer: async (request, services) => {
      const { tenant, id, state } = await jobOf(request, services);
      if (!(await services.jobs.remove(tenant, id))) throw new ApiError(409, `the job is ${state}: stop it first`);
      await services.storage.remove(keys.results(tenant, id));
      await services.storage.remove(keys.workspace(id));
    },
  }),
  route("Jobs", "GET /v1/jobs/{id}/events", {
    summary: "What happens to a job, as server-sent events: state, stage, metrics, log, status, and end at its end",
    ...{ needs: "viewer", parameters: idParameter, reply: { media: "text/event-stream" } },
    query: z.strictObject({
      after: z.coerce
        .number()
        .int()
        .min(0)
        .max(2 ** 53 - 1)
        .optional()
        .describe("the last event that is known"),
    }),
    answer: async (request, services): Promise<Events> => {
      const job = await jobOf(request, services);
      const last = Number(request.header("last-event-id") ?? request.query.after ?? 0);
      return { events: follow(job, Number.isSafeInteger(last) && last >= 0 ? last : 0, services, request.signal) };
    },
  }),
  route("Jobs", "GET /v1/jobs/{id}/metrics", {
    summary: "Losses and learning rates by step, 2000 at most",
    ...{
      needs: "viewer",
      parameters: idParameter,
      reply: listOf(z.looseObject({ step: z.number(), loss: z.number() })),
    },
    answer: async (request, services) => {
      const { id } = await jobOf(request, services);
      return { data: await services.jobs.metrics(id) };
    },
  }),
  route("Jobs", "GET /v1/jobs/{id}/artifacts", {
    ...{ summary: "Files that a job made", needs: "viewer", parameters: idParameter, reply: listOf(artifactSchema) },
    answer: async (request, services) => {
      const { id } = await jobOf(request, services);
      return { data: (await services.jobs.artifacts(id)).map(shownArtifact) };
    },
  }),
  route("Jobs", "GET /v1/jobs/{id}/artifacts/{name}", {
    summary: "A file that a job made, or a part of it (Range)",
    ...{ needs: "viewer", reply: { media: "application/octet-stream" } },
    parameters: z.strictObject({ id: z.uuid(), name: z.string().max(200) }),
    answer: async (request, services) => {
      const { id } = await jobOf(request, services);
      const all = await services.jobs.artifacts(id);
      const file = found(
        all.find(({ name }) => name === request.parameters.name),
        "file",
      );
      return download(file, request.header("range"), services);
    },
  }),
];

export const evaluationRoutes: readonly Route[] = [
  route("Evaluations", "POST /v1/evaluations", {
    summary: "Asks for a model to be measured on benchmarks: a job",
    ...{ needs: "user", body: evaluateSpec.omit({ kind: true }), status: 201, reply: jobSchema },
    answer: async ({ body, caller, header }, services) =>
      shownJob((await createJob({ kind: "evaluate", ...body }, caller, services, idempotencyKeyOf(header))).job),
  }),
  route("Evaluations", "GET /v1/evaluations", {
    ...{ summary: "Jobs that measure, newest first", needs: "viewer", reply: listOf(jobSchema) },
    answer: async ({ caller }, { jobs }) => ({
      data: (await jobs.list(caller.tenant, { kind: "evaluate" })).map(shownJob),
    }),
  }),
];
