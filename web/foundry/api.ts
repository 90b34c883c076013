import { eventsOf } from "../shared/events.js";

/** The foundry's API, as the pages use it. */

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
  /** Of this machine known once it was planned for. */
  readonly usableBytes?: number;
  readonly contextLength: number;
}

/** One size for all layers, or one for each. */
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

export interface Measured {
  readonly parameters: number;
  readonly bytes: number;
  readonly loss: number;
  readonly perplexity: number;
}

export interface JobResult {
  readonly models?: Readonly<Record<string, Measured>>;
  readonly plan?: Readonly<Record<string, { readonly from: AxisSize; readonly to: AxisSize }>> | null;
  /** Layers of the original that stayed. */
  readonly keptLayers?: readonly number[] | null;
  readonly tokens?: number;
  readonly scores?: Readonly<Record<string, Readonly<Record<string, string>>>> | null;
  readonly sentence?: string;
  /** What its first file takes on the device, predicted. */
  readonly memory?: { readonly totalBytes: number };
  /** Tokens per second there, predicted. */
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

const KEY = "coppice-key";
export const storedKey = (): string => sessionStorage.getItem(KEY) ?? "";
export const storeKey = (key: string): void => sessionStorage.setItem(KEY, key);

export class Refused extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

async function ask(path: string, init: RequestInit = {}): Promise<Response> {
  const key = storedKey();
  const headers = {
    ...(key !== "" && { authorization: `Bearer ${key}` }),
    ...(init.headers as Record<string, string>),
  };
  const response = await fetch(path, { ...init, headers });
  if (response.ok) return response;
  const said = (await response.json().catch(() => undefined)) as { error?: { message?: string } } | undefined;
  throw new Refused(response.status, said?.error?.message ?? `the service answered ${response.status}`);
}

export const get = async <T>(path: string): Promise<T> => (await ask(path)).json() as Promise<T>;
export const list = async <T>(path: string): Promise<readonly T[]> => (await get<{ data: readonly T[] }>(path)).data;

export async function send<T>(
  method: "POST" | "PUT" | "DELETE",
  path: string,
  body?: unknown,
  headers: Record<string, string> = {},
): Promise<T> {
  const response = await ask(path, {
    ...{ method, headers: { "content-type": "application/json", ...headers } },
    ...(body !== undefined && { body: JSON.stringify(body) }),
  });
  return (response.status === 204 ? undefined : await response.json()) as T;
}

/** Sends a file as it is. */
export async function upload<T>(method: "POST" | "PUT", path: string, file: Blob): Promise<T> {
  const response = await ask(path, { method, body: file, headers: { "content-type": "application/octet-stream" } });
  return response.json() as Promise<T>;
}

/** What a stream tells, by the event's name. */
export type ServerEvents = Readonly<Record<string, unknown>>;

export type ServerEvent<Events extends ServerEvents> = {
  readonly [Name in keyof Events & string]: {
    readonly event: Name;
    /** Where the stream can be resumed from; empty where it cannot. */
    readonly id: string;
    readonly data: Events[Name];
  };
}[keyof Events & string];

/** Server-sent events of a request, also one with a body and a key, which EventSource cannot make. */
export async function* events<Events extends ServerEvents>(
  path: string,
  init: RequestInit,
): AsyncGenerator<ServerEvent<Events>> {
  for await (const { event, id, data } of eventsOf(await ask(path, init)))
    yield { event, id, data: JSON.parse(data) } as ServerEvent<Events>;
}

/** A file of a job, whole. */
export async function fileOf(jobId: string, name: string, signal?: AbortSignal): Promise<Blob> {
  const init = signal === undefined ? {} : { signal };
  return (await ask(`/v1/jobs/${jobId}/artifacts/${encodeURIComponent(name)}`, init)).blob();
}

/** Lets the browser save a file of a job. */
export async function save(jobId: string, name: string): Promise<void> {
  const url = URL.createObjectURL(await fileOf(jobId, name));
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
