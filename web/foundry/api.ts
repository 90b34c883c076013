import { eventsOf } from "../shared/events.js";

/** The part of the foundry's API that its pages use. */

export interface Model {
  readonly id: string;
  readonly name: string;
  readonly state: "uploading" | "ready";
  readonly source: string;
  readonly parameters: number | null;
  readonly context_length: number | null;
  readonly bytes: number;
  readonly licence: string | null;
  readonly job_id: string | null;
  readonly shared: boolean;
}

export interface Dataset {
  readonly id: string;
  readonly name: string;
  readonly bytes: number;
}

export interface Device {
  readonly id: string;
  readonly name: string;
  /** Unknown for the service's own machine until the first plan for it. */
  readonly usableBytes?: number;
  readonly contextLength: number;
}

/** One size for all layers, or one for each layer. */
export type AxisSize = number | readonly number[];

export interface Candidate {
  readonly sizes: Readonly<Record<string, AxisSize>>;
  readonly parameters: number;
  readonly share: number;
  readonly kind: string;
  readonly memory: { readonly totalBytes: number; readonly weightBytes: number; readonly cacheBytes: number };
  readonly tokensPerSecond: number;
  readonly expectedLoss: number;
  readonly fits: boolean;
  readonly onFront: boolean;
}

export interface Plan {
  readonly device: Device;
  readonly contextLength: number;
  readonly candidates: readonly Candidate[];
  readonly best: Candidate | null;
}

export interface Me {
  readonly tenant: string;
  readonly name: string;
  readonly role: string;
  readonly used_bytes: number;
  readonly hub_token: boolean;
  readonly quota: { readonly max_bytes: number | null; readonly max_jobs: number | null };
}

/** What was measured of a model or file. */
export interface Measurement {
  readonly parameters: number;
  readonly bytes: number;
  readonly loss: number;
  readonly perplexity: number;
}

export interface JobResult {
  readonly models?: Readonly<Record<string, Measurement>>;
  readonly plan?: Readonly<Record<string, { readonly from: AxisSize; readonly to: AxisSize }>> | null;
  /** Indices of the original's layers that were kept. */
  readonly keptLayers?: readonly number[] | null;
  readonly tokens?: number;
  readonly scores?: Readonly<Record<string, Readonly<Record<string, string>>>> | null;
  readonly sentence?: string;
  /** Predicted memory of the first file on the device. */
  readonly memory?: { readonly totalBytes: number };
  /** Predicted tokens per second on the device. */
  readonly speed?: number | null;
}

export interface JobStatus {
  readonly state: "queued" | "running" | "done" | "failed" | "cancelled";
  readonly stage: string | null;
  readonly progress: {
    readonly stage: string;
    readonly done: number;
    readonly total: number;
    readonly unit: string;
    readonly detail?: string;
    readonly secondsLeft?: number;
  } | null;
  readonly stages: readonly { readonly name: string; readonly seconds: number; readonly peakMemoryBytes: number }[];
}

export interface Job extends JobStatus {
  readonly id: string;
  readonly number: number;
  readonly name: string;
  readonly spec: {
    readonly kind: string;
    readonly model: string;
    readonly dataset?: string;
    readonly device?: string;
    readonly target?: string;
    readonly tokens?: number;
    readonly quantization?: readonly string[];
    /** What a worker must have to take the job. */
    readonly requires?: { readonly device?: string; readonly memory_bytes?: number; readonly ranks?: number };
  };
  readonly error: string | null;
  readonly result: JobResult | null;
  readonly created_at: string;
}

export interface Artifact {
  readonly name: string;
  readonly bytes: number;
  readonly sha256: string;
}

export interface Point {
  readonly step: number;
  readonly tokens: number;
  readonly loss: number;
  readonly validationLoss?: number;
}

const STORAGE_KEY = "coppice-key";
export const storedKey = (): string => sessionStorage.getItem(STORAGE_KEY) ?? "";
export const storeKey = (key: string): void => sessionStorage.setItem(STORAGE_KEY, key);

/** An error that the service answered with. */
export class ServiceError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

async function request(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  const key = storedKey();
  if (key !== "") headers.set("authorization", `Bearer ${key}`);
  const response = await fetch(path, { ...init, headers });
  if (response.ok) return response;
  const body = (await response.json().catch(() => undefined)) as { error?: { message?: string } } | undefined;
  throw new ServiceError(response.status, body?.error?.message ?? `the service answered ${response.status}`);
}

export const get = async <T>(path: string): Promise<T> => (await request(path)).json() as Promise<T>;
export const list = async <T>(path: string): Promise<readonly T[]> => (await get<{ data: readonly T[] }>(path)).data;

export async function send<T>(
  method: "POST" | "PUT" | "DELETE",
  path: string,
  body?: unknown,
  headers: Record<string, string> = {},
): Promise<T> {
  const response = await request(path, {
    method,
    headers: { "content-type": "application/json", ...headers },
    body: body === undefined ? null : JSON.stringify(body),
  });
  return (response.status === 204 ? undefined : await response.json()) as T;
}

/** Uploads a file. */
export async function upload<T>(method: "POST" | "PUT", path: string, file: Blob): Promise<T> {
  const response = await request(path, { method, body: file, headers: { "content-type": "application/octet-stream" } });
  return response.json() as Promise<T>;
}

/** The data of a stream's events, by their names. */
export type ServerEvents = Readonly<Record<string, unknown>>;

export type ServerEvent<Events extends ServerEvents> = {
  readonly [Name in keyof Events & string]: {
    readonly event: Name;
    /** The id to resume the stream from; empty where there is none. */
    readonly id: string;
    readonly data: Events[Name];
  };
}[keyof Events & string];

/** Sends a request whose response is server-sent events. */
export async function* events<Events extends ServerEvents>(
  path: string,
  init: RequestInit,
): AsyncGenerator<ServerEvent<Events>> {
  for await (const { event, id, data } of eventsOf(await request(path, init)))
    yield { event, id, data: JSON.parse(data) } as ServerEvent<Events>;
}

/** Downloads a job's file into memory. */
export async function fetchArtifact(jobId: string, name: string, signal?: AbortSignal): Promise<Blob> {
  const path = `/v1/jobs/${jobId}/artifacts/${encodeURIComponent(name)}`;
  return (await request(path, { signal: signal ?? null })).blob();
}

/** Lets the browser save a job's file. */
export async function saveArtifact(jobId: string, name: string): Promise<void> {
  const url = URL.createObjectURL(await fetchArtifact(jobId, name));
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
