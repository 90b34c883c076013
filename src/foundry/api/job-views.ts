import { setTimeout as wait } from "node:timers/promises";
import { z } from "zod";
import { ApiError } from "../../serve/errors.js";
import { type Artifact, JOB_STATES, type Job, MAX_EVENTS } from "../store/jobs.js";
import { type FoundryServices, type Streamed, time } from "./route.js";

/** Jobs, their events and their files, as clients see them. */

const stage = z.object({ name: z.string(), seconds: z.number(), peakMemoryBytes: z.number() });
export const jobSchema = z.object({
  id: z.uuid(),
  number: z.number().int(),
  name: z.string(),
  state: z.enum(JOB_STATES),
  spec: z.looseObject({ kind: z.string() }),
  stage: z.string().nullable(),
  progress: z.looseObject({ stage: z.string(), done: z.number(), total: z.number(), unit: z.string() }).nullable(),
  stages: z.array(stage),
  attempts: z.number().int().describe("how many workers have taken it, one after another"),
  cancel_requested: z.boolean(),
  error: z.string().nullable(),
  result: z.looseObject({}).nullable(),
  created_at: time,
  started_at: time,
  finished_at: time,
});

/** A job without what only workers use: its tenant, lease and deaths. */
export const jobToJson = (job: Job): object => ({
  id: job.id,
  number: job.number,
  name: job.name,
  state: job.state,
  spec: job.spec,
  stage: job.stage,
  progress: job.progress,
  stages: job.stages,
  attempts: job.attempts,
  cancel_requested: job.cancel_requested,
  error: job.error,
  result: job.result,
  created_at: job.created_at,
  started_at: job.started_at,
  finished_at: job.finished_at,
});

export const artifactSchema = z.object({
  name: z.string(),
  media_type: z.string(),
  bytes: z.number().int(),
  sha256: z.string(),
});

export const artifactToJson = ({ name, mediaType, bytes, sha256 }: Artifact) => ({
  name,
  media_type: mediaType,
  bytes,
  sha256,
});

const POLL_MILLISECONDS = 500;

/** A job's events after one of them, and its status whenever that changes, until the job has ended. */
export async function* followJob(job: Job, after: number, services: FoundryServices, signal: AbortSignal) {
  let last = after;
  let lastStatus = "";
  for (;;) {
    const current = await services.jobs.get(job.tenant, job.id);
    if (current === undefined) {
      yield { event: "end", data: { state: "deleted" } };
      return;
    }
    const events = await services.jobs.events(job.id, last);
    for (const { id, kind, at, data } of events) {
      last = id;
      yield { event: kind, id: `${id}`, data: { at, ...data } };
    }
    if (events.length === MAX_EVENTS && !signal.aborted) continue; // there are more
    const { state, stage, progress, stages } = current;
    const status = JSON.stringify({ state, stage, progress, stages });
    if (status !== lastStatus) {
      lastStatus = status;
      yield { event: "status", data: JSON.parse(status) as object };
    }
    if (state !== "queued" && state !== "running" && (await services.jobs.events(job.id, last, 1)).length === 0) {
      yield { event: "end", data: { state } };
      return;
    }
    await wait(POLL_MILLISECONDS, undefined, { signal });
  }
}

/** First and last byte of a `Range` header; undefined without one, or one that RFC 9110 has ignored. @throws ApiError 416 for a range outside the file */
function parseRange(header: string | undefined, bytes: number): { start: number; end: number } | undefined {
  const match = /^bytes=(\d*)-(\d*)$/.exec(header ?? "");
  if (match === null) return undefined;
  const [, from = "", to = ""] = match;
  if (from === "" && to === "") return undefined;
  if (from !== "" && to !== "" && Number(from) > Number(to)) return undefined;
  const start = from === "" ? Math.max(0, bytes - Number(to)) : Number(from);
  const end = from === "" || to === "" ? bytes - 1 : Math.min(Number(to), bytes - 1);
  if (start > end)
    throw new ApiError(416, `the file has ${bytes} bytes`, { param: "Range", contentRange: `bytes */${bytes}` });
  return { start, end };
}

/** Streams a file, or the part of it that a `Range` header names. @throws ApiError 416 for a range outside the file */
export async function downloadArtifact(
  file: Artifact,
  rangeHeader: string | undefined,
  { storage }: FoundryServices,
): Promise<Streamed> {
  const range = parseRange(rangeHeader, file.bytes);
  const headers = {
    "content-type": file.mediaType,
    "content-length": `${file.bytes}`,
    "accept-ranges": "bytes",
    etag: `"${file.sha256}"`,
    "content-disposition": `attachment; filename="${file.name}"`,
    // a report is a page written by a job: it must not act with the rights of our pages
    "content-security-policy": "sandbox",
  };
  const stream = await storage.read(file.storageKey, range);
  if (range === undefined) return { stream, status: 200, headers };
  const { start, end } = range;
  const partial = { "content-length": `${end - start + 1}`, "content-range": `bytes ${start}-${end}/${file.bytes}` };
  return { stream, status: 206, headers: { ...headers, ...partial } };
}
