import { z } from "zod";
import { ApiError } from "../../serve/errors.js";
import { keys } from "../materials.js";
import { evaluateSpec, jobSpec } from "../specification.js";
import { JOB_STATES, type Job } from "../store/jobs.js";
import type { Caller } from "../store/tenants.js";
import { createJob, withinQuota } from "./create-job.js";
import { artifactSchema, artifactToJson, downloadArtifact, followJob, jobSchema, jobToJson } from "./job-views.js";
import { type Events, type FoundryServices, idParameter, listOf, orNotFound, type Route, route } from "./route.js";

/** The key that makes a repeated request create one job. @throws ApiError 400 for a malformed one */
function idempotencyKeyOf(header: (name: string) => string | undefined): string | undefined {
  const key = header("idempotency-key");
  if (key !== undefined && !/^[\x21-\x7e]{1,200}$/.test(key))
    throw new ApiError(400, "Idempotency-Key must have 1 to 200 visible ASCII characters", {
      param: "Idempotency-Key",
    });
  return key;
}

interface JobRequest {
  readonly caller: Caller;
  readonly parameters: { readonly id: string };
}

const requestedJob = async ({ caller, parameters }: JobRequest, { jobs }: FoundryServices): Promise<Job> =>
  orNotFound(await jobs.get(caller.tenant, parameters.id), "job");

const rowNumber = z.coerce
  .number()
  .int()
  .min(0)
  .max(2 ** 53 - 1);

export const jobRoutes: readonly Route[] = [
  route("Jobs", "POST /v1/jobs", {
    summary: "Create a job that makes a model smaller or measures it. The same Idempotency-Key creates one job",
    needs: "user",
    status: 201,
    body: jobSpec,
    reply: jobSchema,
    answer: async ({ body, caller, header }, services) =>
      jobToJson(await createJob(body, caller, services, idempotencyKeyOf(header))),
  }),
  route("Jobs", "GET /v1/jobs", {
    summary: "List jobs, newest first",
    needs: "viewer",
    query: z.strictObject({
      state: z.enum(JOB_STATES).optional(),
      kind: z.enum(["compress", "evaluate"]).optional(),
      before: rowNumber.optional().describe("a job's number: list only older jobs"),
      limit: z.coerce.number().int().min(1).max(200).optional(),
    }),
    reply: listOf(jobSchema),
    answer: async ({ query, caller }, { jobs }) => ({ data: (await jobs.list(caller.tenant, query)).map(jobToJson) }),
  }),
  route("Jobs", "GET /v1/jobs/{id}", {
    summary: "Get a job",
    needs: "viewer",
    parameters: idParameter,
    reply: jobSchema,
    answer: async (request, services) => jobToJson(await requestedJob(request, services)),
  }),
  route("Jobs", "POST /v1/jobs/{id}/cancel", {
    summary: "Cancel a job",
    needs: "user",
    parameters: idParameter,
    status: 202,
    reply: jobSchema,
    answer: async (request, services) => {
      const { tenant, id } = await requestedJob(request, services);
      await services.jobs.cancel(tenant, id);
      return jobToJson(await requestedJob(request, services));
    },
  }),
  route("Jobs", "POST /v1/jobs/{id}/retry", {
    summary: "Resume a job that failed or was cancelled",
    needs: "user",
    parameters: idParameter,
    status: 202,
    reply: jobSchema,
    answer: async (request, services) => {
      const { tenant, id, state } = await requestedJob(request, services);
      const { max_jobs: maxUnfinished } = await services.tenants.quota(tenant);
      if (!(await withinQuota(services.jobs.retry(tenant, id, maxUnfinished ?? undefined))))
        throw new ApiError(409, `the job is ${state}: only a failed or cancelled job can be retried`);
      return jobToJson(await requestedJob(request, services));
    },
  }),
  route("Jobs", "DELETE /v1/jobs/{id}", {
    summary: "Delete a job that has ended, with its files and its model",
    needs: "user",
    parameters: idParameter,
    status: 204,
    answer: async (request, services) => {
      const { tenant, id, state } = await requestedJob(request, services);
      if (!(await services.jobs.remove(tenant, id))) throw new ApiError(409, `the job is ${state}: cancel it first`);
      await services.storage.remove(keys.results(tenant, id));
      await services.storage.remove(keys.workspace(id));
    },
  }),
  route("Jobs", "GET /v1/jobs/{id}/events", {
    summary: "Follow a job by server-sent events: state, stage, metrics, log, status, and end when it has ended",
    needs: "viewer",
    parameters: idParameter,
    query: z.strictObject({ after: rowNumber.optional().describe("id of the last event received") }),
    reply: { media: "text/event-stream" },
    answer: async (request, services): Promise<Events> => {
      const job = await requestedJob(request, services);
      const last = Number(request.header("last-event-id") ?? request.query.after ?? 0);
      return { events: followJob(job, Number.isSafeInteger(last) && last >= 0 ? last : 0, services, request.signal) };
    },
  }),
  route("Jobs", "GET /v1/jobs/{id}/metrics", {
    summary: "Get losses and learning rates by step, 2000 points at most",
    needs: "viewer",
    parameters: idParameter,
    reply: listOf(z.looseObject({ step: z.number(), loss: z.number() })),
    answer: async (request, services) => {
      const { id } = await requestedJob(request, services);
      return { data: await services.jobs.metrics(id) };
    },
  }),
  route("Jobs", "GET /v1/jobs/{id}/artifacts", {
    summary: "List a job's files",
    needs: "viewer",
    parameters: idParameter,
    reply: listOf(artifactSchema),
    answer: async (request, services) => {
      const { id } = await requestedJob(request, services);
      return { data: (await services.jobs.artifacts(id)).map(artifactToJson) };
    },
  }),
  route("Jobs", "GET /v1/jobs/{id}/artifacts/{name}", {
    summary: "Download a file of a job, or a part of it (Range)",
    needs: "viewer",
    parameters: z.strictObject({ id: z.uuid(), name: z.string().max(200) }),
    reply: { media: "application/octet-stream" },
    answer: async (request, services) => {
      const { id } = await requestedJob(request, services);
      const artifacts = await services.jobs.artifacts(id);
      const file = orNotFound(
        artifacts.find(({ name }) => name === request.parameters.name),
        "file",
      );
      return downloadArtifact(file, request.header("range"), services);
    },
  }),
];

export const evaluationRoutes: readonly Route[] = [
  route("Evaluations", "POST /v1/evaluations", {
    summary: "Create a job that measures a model on benchmarks",
    needs: "user",
    status: 201,
    body: evaluateSpec.omit({ kind: true }),
    reply: jobSchema,
    answer: async ({ body, caller, header }, services) =>
      jobToJson(await createJob({ kind: "evaluate", ...body }, caller, services, idempotencyKeyOf(header))),
  }),
  route("Evaluations", "GET /v1/evaluations", {
    summary: "List evaluation jobs, newest first",
    needs: "viewer",
    reply: listOf(jobSchema),
    answer: async ({ caller }, { jobs }) => ({
      data: (await jobs.list(caller.tenant, { kind: "evaluate" })).map(jobToJson),
    }),
  }),
];
