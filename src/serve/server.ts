import { createServer as createHttpServer } from "node:http";
import { createServer as createHttpsServer } from "node:https";
import type { AddressInfo } from "node:net";
import { setTimeout as wait } from "node:timers/promises";
import { serve as serveHono } from "@hono/node-server";
import { pino } from "pino";
import { HostedModel, type HostOptions } from "./hosted-model.js";
import { type HttpOptions, httpApp, type Readiness } from "./http.js";
import { InferenceService } from "./service.js";

export interface ServerOptions extends HostOptions, Omit<HttpOptions, "logger"> {
  /** A GGUF file. */
  readonly file: string;
  /** What the API calls the model. */
  readonly name: string;
  readonly host: string;
  /** 0 for any that is free. */
  readonly port: number;
  readonly queueLimit: number;
  /** Seconds that running requests may take when the service ends. */
  readonly drainSeconds: number;
  readonly tls?: { readonly cert: Buffer; readonly key: Buffer } | undefined;
  readonly logLevel: "silent" | "error" | "info";
}

/** A service that takes requests. */
export interface RunningServer {
  readonly url: string;
  /** Takes no more requests, answers those that are under way, and ends. */
  close(): Promise<void>;
}

/** Serves a model until it is closed. */
export async function startServer(options: ServerOptions): Promise<RunningServer> {
  const logger = pino({ level: options.logLevel, base: null }, pino.destination(2));
  const model = await HostedModel.open(options.file, options);
  const service = new InferenceService(model, options);
  const readiness: Readiness = { ready: true };
  const app = httpApp(service, readiness, { ...options, logger });
  const server = serveHono({
    ...{ fetch: app.fetch, hostname: options.host, port: options.port },
    ...(options.tls === undefined
      ? { createServer: createHttpServer }
      : { createServer: createHttpsServer, serverOptions: options.tls }),
  });
  try {
    await new Promise<void>((resolve, reject) => {
      server.once("listening", resolve);
      server.once("error", reject);
    });
  } catch (error) {
    await model.dispose();
    throw error;
  }
  const { port, address, family } = server.address() as AddressInfo;
  const host = family === "IPv6" ? `[${address}]` : address;
  return {
    url: `${options.tls === undefined ? "http" : "https"}://${host}:${port}`,
    close: async () => {
      readiness.ready = false;
      const ended = new Promise((resolve) => server.close(resolve));
      const deadline = performance.now() + 1000 * options.drainSeconds;
      while (service.busy > 0 && performance.now() < deadline) await wait(20);
      if ("closeIdleConnections" in server) server.closeIdleConnections();
      await Promise.race([ended, wait(1000)]);
      if ("closeAllConnections" in server) server.closeAllConnections();
      await ended;
      await model.dispose();
    },
  };
}
