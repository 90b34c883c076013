import { createServer as createHttpServer } from "node:http";
import { createServer as createHttpsServer } from "node:https";
import type { AddressInfo } from "node:net";
import { serve as serveHono } from "@hono/node-server";

export interface ListenOptions {
  readonly host: string;
  /** 0 for any free port. */
  readonly port: number;
  readonly tls?: { readonly cert: Buffer; readonly key: Buffer } | undefined;
  /** Seconds in which a request must arrive, so that slow senders do not hold connections. */
  readonly receiveSeconds?: number | undefined;
  /** Seconds for which an idle connection stays open. */
  readonly keepAliveSeconds?: number | undefined;
}

export interface Listening {
  readonly url: string;
  /** Accepts no more connections. Resolves when the last one has ended. */
  refuseMore(): Promise<void>;
  /** Ends connections: idle ones at once, others when they are answered, or after the given seconds (1 by default). */
  close(seconds?: number): Promise<void>;
}

const RECEIVE_SECONDS = 60;
const HEADERS_SECONDS = 60;
/** Longer than proxies keep connections (nginx and AWS: 60), so that the proxy closes them: otherwise a request on its way could be lost. */
const KEEP_ALIVE_SECONDS = 65;
/** How often to look for connections that have become idle. */
const IDLE_MILLISECONDS = 50;

/** Serves an application at an address. @throws when it cannot listen there */
export async function listen(
  app: { readonly fetch: Parameters<typeof serveHono>[0]["fetch"] },
  options: ListenOptions,
): Promise<Listening> {
  const { host: hostname, tls, receiveSeconds = RECEIVE_SECONDS } = options;
  const limits = {
    requestTimeout: 1000 * receiveSeconds,
    headersTimeout: 1000 * HEADERS_SECONDS,
    keepAliveTimeout: 1000 * (options.keepAliveSeconds ?? KEEP_ALIVE_SECONDS),
  };
  const security =
    tls === undefined
      ? { createServer: createHttpServer, serverOptions: limits }
      : { createServer: createHttpsServer, serverOptions: { ...tls, ...limits } };
  const server = serveHono({
    fetch: app.fetch,
    hostname,
    port: options.port,
    ...security,
  });
  await new Promise<void>((resolve, reject) => {
    server.once("listening", resolve);
    server.once("error", reject);
  });
  const { port, address, family } = server.address() as AddressInfo;
  const host = family === "IPv6" ? `[${address}]` : address;
  let ended: Promise<void> | undefined;
  const refuseMore = () => {
    ended ??= new Promise<void>((resolve) => server.close(() => resolve()));
    return ended;
  };
  return {
    url: `${tls === undefined ? "http" : "https"}://${host}:${port}`,
    refuseMore,
    close: async (seconds = 1) => {
      const last = refuseMore();
      const endIdle = () => "closeIdleConnections" in server && server.closeIdleConnections();
      endIdle();
      const timer = setInterval(endIdle, IDLE_MILLISECONDS);
      const late = new Promise((resolve) => setTimeout(resolve, 1000 * seconds).unref());
      await Promise.race([last, late]);
      clearInterval(timer);
      if ("closeAllConnections" in server) server.closeAllConnections();
      await last;
    },
  };
}
