import type { JobOptions } from "../jobs/index.js";
import type { Quota } from "./store/tenants.js";

/** Options of the service and of its workers. */
export interface FoundryOptions extends Pick<JobOptions, "device" | "threads"> {
  /** Directory of the embedded database, files and secrets; `coppice/foundry` in the user's data directory by default. */
  readonly data?: string | undefined;
  /** `postgres://...`; PGlite in the data directory by default. */
  readonly databaseUrl?: string | undefined;
  /** A directory or `s3://bucket/prefix`; `files` in the data directory by default. */
  readonly storage?: string | undefined;
  readonly host?: string | undefined;
  readonly port?: number | undefined;
  /** Worker processes to start beside the service; 1 by default. */
  readonly workers?: number | undefined;
  readonly logLevel?: "silent" | "error" | "info" | undefined;
  readonly maxUploadBytes?: number | undefined;
  /** Limits of tenants without a quota of their own. */
  readonly quota?: Partial<Quota> | undefined;
  /** Seconds without a heartbeat after which a worker counts as dead. */
  readonly deadAfterSeconds?: number | undefined;
  readonly corsOrigins?: readonly string[] | undefined;
}

export const DEFAULTS = { host: "127.0.0.1", port: 7700, workers: 1, maxUploadBytes: 50e9, deadAfterSeconds: 15 };
/** A tenant's limits by default. */
export const DEFAULT_QUOTA: Quota = { max_bytes: null, max_jobs: 1000, max_tokens: null };
