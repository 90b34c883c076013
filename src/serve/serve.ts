import { readFileSync } from "node:fs";
import path from "node:path";
import { packageRoot } from "../ggml/library.js";
import { type JobOptions, runnableGguf } from "../jobs/index.js";
import { UsageError } from "../system/errors.js";
import { ApiKeys } from "./keys.js";
import { type RunningServer, type ServerOptions, startServer } from "./server.js";

export interface ServeJob
  extends Omit<JobOptions, "signal">,
    Partial<Omit<ServerOptions, "file" | "keys" | "tls" | "version" | "device" | "threads">> {
  /** A GGUF file, a directory or a hub id. */
  readonly model: string;
  /** A file of hashed keys, of which every request needs one. */
  readonly keysFile?: string | undefined;
  /** PEM files; both or none. */
  readonly tlsCert?: string | undefined;
  readonly tlsKey?: string | undefined;
}

const DEFAULTS = {
  ...{ host: "127.0.0.1", port: 8000, slots: 4, queueLimit: 64, timeoutSeconds: 600, drainSeconds: 30 },
  ...{ maxBodyBytes: 8 << 20, corsOrigins: [] as readonly string[], logLevel: "info" as const },
};

/** Serves a MODEL until it is closed, exporting it to the cache first where it is no GGUF file. */
export async function serve(job: ServeJob): Promise<RunningServer> {
  const { model, keysFile, tlsCert, tlsKey, hub: _, onProgress: __, ...given } = job;
  if ((tlsCert === undefined) !== (tlsKey === undefined))
    throw new UsageError("TLS needs both a certificate and its key (--tls-cert, --tls-key)");
  const keys = keysFile === undefined ? undefined : ApiKeys.read(keysFile);
  const tls =
    tlsCert === undefined || tlsKey === undefined
      ? undefined
      : { cert: readFileSync(tlsCert), key: readFileSync(tlsKey) };
  const file = await runnableGguf(model, job);
  const { version } = JSON.parse(readFileSync(path.join(packageRoot, "package.json"), "utf8")) as { version: string };
  const options = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
  const name = path.basename(model.replace(/[/\\]+$/, "")).replace(/\.gguf$/, "");
  return startServer({ name, ...DEFAULTS, ...options, file, keys, tls, version });
}
