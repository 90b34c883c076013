import type { IncomingMessage, ServerResponse } from "node:http";
import { setTimeout as wait } from "node:timers/promises";
import { getRequestListener } from "@hono/node-server";
import { serviceLogger } from "../system/log.js";
import type { ServiceInfo } from "./api/index.js";
import { ModelPool, type ModelSource, type PoolOptions } from "./engine/model-pool.js";
import { ApiError } from "./errors.js";
import { type HttpOptions, httpApp } from "./http.js";
import { listen } from "./listen.js";
import { Metrics } from "./metrics.js";

export interface ServerOptions
  extends PoolOptions,
    Omit<HttpOptions, "logger" | "metrics">,
    Omit<ServiceInfo, "pool" | "started" | "taking"> {
  readonly sources: readonly [ModelSource, ...ModelSource[]];
  /** 0 for any free port. */
  readonly port: number;
  /** Seconds for which an idle connection stays open. */
  readonly keepAliveSeconds?: number | undefined;
  /** Seconds that running requests may still take when the service ends. */
  readonly drainSeconds: number;
  readonly tls?: { readonly cert: Buffer; readonly key: Buffer } | undefined;
  readonly logLevel: "silent" | "error" | "info";
}

/** A service that is listening. */
export interface RunningServer {
  readonly url: string;
  /** Answers the same requests in a server of your own: `app.use("/llm", server.handler)` in Express, before bodies are parsed. */
  readonly handler: (request: IncomingMessage, response: ServerResponse) => void;
  /** Resolves when the first model is in memory; rejects with the reason when it cannot be loaded. Requests that come before wait for it. */
  readonly ready: Promise<void>;
  /** Accepts no more requests, answers those that are running, and ends. */
  close(): Promise<void>;
}

/** Serves models until it is closed. */
export async function startServer(options: ServerOptions): Promise<RunningServer> {
  const logger = serviceLogger("serve", options.logLevel);
  const metrics = new Metrics();
  const pool = new ModelPool(options.sources, options);
  addGauges(metrics, pool);
  let taking = true;
  const info: ServiceInfo = { ...options, pool, started: Math.floor(Date.now() / 1000), taking: () => taking };
  const app = httpApp(info, { ...options, logger, metrics });
  const listening = await listen(app, options);
  const { url } = listening;
  logger.info({ url }, "listening");
  const never = new AbortController().signal;
  const ready = pool
    .use(undefined, never, async () => {})
    .catch((error) => {
      // who started the server is told why; clients are told only that it is so
      throw error instanceof ApiError && error.details.cause !== undefined ? error.details.cause : error;
    });
  ready.catch(() => {}); // whoever awaits it gets the error
  return {
    url,
    handler: getRequestListener(app.fetch),
    ready,
    close: async () => {
      taking = false;
      const ended = listening.refuseMore();
      const deadline = performance.now() + 1000 * options.drainSeconds;
      while (pool.busy > 0 && performance.now() < deadline) await wait(20);
      await listening.close();
      await ended;
      await pool.close();
    },
  };
}

/** Adds the metrics that are looked up at each collection. */
function addGauges(metrics: Metrics, pool: ModelPool): void {
  const sum = (value: (loaded: ModelPool["loaded"][number]) => number) => () =>
    pool.loaded.reduce((total, loaded) => total + value(loaded), 0);
  metrics.gauge(
    "vllm:num_requests_running",
    "Requests that are being computed",
    sum(({ queue }) => queue.running),
  );
  const waiting = sum(({ queue }) => queue.waiting);
  metrics.gauge("vllm:num_requests_waiting", "Requests that are waiting", () => waiting() + pool.waiting);
  const used = sum(({ model }) => model.cacheUse);
  metrics.gauge(
    "vllm:kv_cache_usage_perc",
    "Share of the cache that is in use",
    () => used() / Math.max(1, pool.loaded.length),
  );
  metrics.gauge("coppice:models_loaded", "Models in memory", () => pool.loaded.length);
  metrics.gauge(
    "coppice:model_memory_bytes",
    "Bytes that they take",
    sum(({ model }) => model.memoryBytes),
  );
  metrics.gauge("process_resident_memory_bytes", "Resident memory of the process", () => process.memoryUsage.rss());
}
