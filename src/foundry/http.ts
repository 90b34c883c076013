import { randomUUID } from "node:crypto";
import type { IncomingMessage } from "node:http";
import { createRequire } from "node:module";
import path from "node:path";
import { Readable } from "node:stream";
import { type Context, Hono } from "hono";
import { bodyLimit } from "hono/body-limit";
import { cors } from "hono/cors";
import { streamSSE } from "hono/streaming";
import type { z } from "zod";
import { parseBody } from "../serve/api/index.js";
import { ApiError } from "../serve/errors.js";
import { addPage, sendFile } from "../serve/pages.js";
import { ROUTES, type Route } from "./api/index.js";
import type { Events, FoundryServices, Streamed } from "./api/route.js";
import { foundryDocs, foundryOpenApi } from "./openapi.js";
import { version } from "./run-job.js";
import type { Role } from "./store/roles.js";
import { type Caller, LOCAL_TENANT } from "./store/tenants.js";

export type { FoundryServices } from "./api/route.js";

interface Bindings {
  readonly Bindings: { readonly incoming: IncomingMessage };
  readonly Variables: { requestId: string };
}

const MOST_JSON_BYTES = 1 << 20;
const RANK: Readonly<Record<Role, number>> = { viewer: 0, user: 1, admin: 2 };
/** Who asks where no keys are needed. */
const LOCAL: Caller = { tenant: LOCAL_TENANT, name: "local", role: "admin" };

/** Pages load nothing from elsewhere, run WebAssembly for models, and no other page may frame them. */
const PAGE_HEADERS = {
  "content-security-policy":
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval' blob:; worker-src 'self' blob:; style-src 'self' 'unsafe-inline'; connect-src 'self' blob:; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  // lets WebAssembly use threads
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-embedder-policy": "require-corp",
};

/** The API and the pages over HTTP. */
export function foundryApp(services: FoundryServices): Hono<Bindings> {
  const app = new Hono<Bindings>();
  const { logger, tenants } = services;

  app.use(async (c, next) => {
    const given = c.req.header("x-request-id");
    const requestId = given !== undefined && /^[\w-]{1,128}$/.test(given) ? given : randomUUID();
    c.set("requestId", requestId);
    c.header("x-request-id", requestId);
    const began = performance.now();
    await next();
    const milliseconds = Math.round(performance.now() - began);
    if (c.req.path.startsWith("/v1/"))
      logger.info({ requestId, method: c.req.method, path: c.req.path, status: c.res.status, milliseconds });
  });
  if (services.corsOrigins.length > 0) app.use("/v1/*", cors({ origin: [...services.corsOrigins] }));
  const failure = (error: unknown, c: Context<Bindings>): ApiError => {
    if (error instanceof ApiError) return error;
    logger.error({
      requestId: c.get("requestId"),
      error: error instanceof Error ? (error.stack ?? error.message) : String(error),
    });
    return new ApiError(500, "the request failed; the log has more");
  };
  app.onError((error, c) => {
    const known = failure(error, c);
    if (known.details.retryAfter !== undefined) c.header("retry-after", `${known.details.retryAfter}`);
    if (known.status === 413) c.header("connection", "close"); // what is left of the body is not read
    return c.json(known.body, known.status);
  });
  app.notFound(() => {
    throw new ApiError(404, "there is no such endpoint: /docs lists those that there are");
  });

  addPages(app);
  const document = foundryOpenApi(version);
  app.get("/openapi.json", (c) => c.json(document));
  app.get("/docs", (c) => c.html(foundryDocs(version), 200, PAGE_HEADERS));

  const keysNeeded = remembered(() => tenants.anyKeys());
  /** @throws ApiError 401, 403 */
  const identify = async (c: Context<Bindings>, needs: Route["needs"]): Promise<Caller> => {
    if (needs === "anyone") return LOCAL;
    if (!(await keysNeeded()) && services.isLocal) {
      checkSameSite(c);
      return LOCAL;
    }
    const key = /^Bearer (.+)$/.exec(c.req.header("authorization") ?? "")?.[1];
    const caller = key === undefined ? undefined : await tenants.callerOf(key);
    if (caller === undefined)
      throw new ApiError(401, "a valid API key is needed (Authorization: Bearer KEY)", { code: "invalid_api_key" });
    if (RANK[caller.role] < RANK[needs])
      throw new ApiError(403, `this needs the role ${needs}, the key has ${caller.role}`);
    return caller;
  };

  const limited = bodyLimit({
    maxSize: MOST_JSON_BYTES,
    onError: () => {
      throw new ApiError(413, `the body has more than ${MOST_JSON_BYTES} bytes`);
    },
  });
  for (const route of ROUTES) {
    const isJson = route.body !== undefined && !("upload" in route.body);
    const at = route.path.replace(/\{(\w+)\}/g, ":$1");
    if (isJson) app.use(at, limited);
    app.on(route.method, [at], async (c) => {
      const caller = await identify(c, route.needs);
      const parameters = route.parameters.safeParse(c.req.param());
      if (!parameters.success) throw new ApiError(404, "there is no such thing");
      const abort = new AbortController();
      const request = {
        parameters: parameters.data,
        query: parseBody(route.query, c.req.query()),
        body: isJson ? parseBody(route.body as z.ZodType, await jsonOf(c)) : undefined,
        ...{ caller, signal: abort.signal, header: (name: string) => c.req.header(name) },
        content: () => Readable.from(wholeBody(c)),
      };
      const answer = await route.answer(request as never, services);
      if (answer !== null && typeof answer === "object" && "events" in answer)
        return sendEvents(c, answer as Events, { abort, ending: services.ending }, failure);
      if (answer !== null && typeof answer === "object" && "stream" in answer) return sendStream(answer as Streamed);
      return route.status === 204 ? c.body(null, 204) : c.json(answer as object, route.status);
    });
  }
  return app;
}

/** A page of another site must not use what needs no key: its requests tell where they come from, or whom they mean. */
function checkSameSite(c: Context<Bindings>): void {
  const host = c.req.header("host") ?? "";
  const name = host.replace(/:\d+$/, "").replace(/^\[(.*)\]$/, "$1");
  const origin = c.req.header("origin");
  const isHere = name === "localhost" || name === "::1" || /^127\.\d+\.\d+\.\d+$/.test(name);
  if (!isHere || (origin !== undefined && origin.replace(/^https?:\/\//, "") !== host))
    throw new ApiError(403, "without keys only pages and programs of this machine may ask");
}

/** What is looked up at most once a second. */
function remembered<T>(look: () => Promise<T>): () => Promise<T> {
  let [value, at]: [Promise<T> | undefined, number] = [undefined, 0];
  return () => {
    if (value === undefined || performance.now() - at > 1000) [value, at] = [look(), performance.now()];
    return value;
  };
}

async function jsonOf(c: Context<Bindings>): Promise<unknown> {
  const bytes = await c.req.arrayBuffer().catch((error: unknown) => {
    throw error instanceof ApiError ? error : new ApiError(408, "the body did not come whole");
  });
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes), withoutZeros);
  } catch (error) {
    throw new ApiError(400, `the body is no JSON in UTF-8: ${error instanceof Error ? error.message : error}`);
  }
}

/** PostgreSQL's texts have no character 0. */
function withoutZeros(key: string, value: unknown): unknown {
  if (key.includes("\0") || (typeof value === "string" && value.includes("\0")))
    throw new Error("a text has the character 0");
  return value;
}

/** A body as it comes. @throws ApiError 408 when it breaks off */
async function* wholeBody(c: Context<Bindings>): AsyncGenerator<Uint8Array> {
  if (c.req.raw.body !== null) yield* c.req.raw.body;
  // one that broke off before it was read ends like a whole one
  if (!c.env.incoming.complete) throw new ApiError(408, "the upload did not come whole");
}

const sendStream = ({ stream, status = 200, headers }: Streamed): Response =>
  new Response(Readable.toWeb(stream) as ReadableStream, { status, headers: { ...headers } });

async function sendEvents(
  c: Context<Bindings>,
  { events }: Events,
  { abort, ending }: { readonly abort: AbortController; readonly ending: AbortSignal },
  failure: (error: unknown, c: Context<Bindings>) => ApiError,
): Promise<Response> {
  // listeners are taken off again: one that stays keeps its request in memory (undici holds on to the signal of a request with a body)
  const left = () => abort.abort(new ApiError(408, "the client left"));
  const end = () => abort.abort(ending.reason);
  const { signal } = c.req.raw;
  signal.addEventListener("abort", left, { once: true });
  ending.addEventListener("abort", end, { once: true });
  const forget = async () => {
    signal.removeEventListener("abort", left);
    ending.removeEventListener("abort", end);
    await events.return(undefined);
  };
  let first: Awaited<ReturnType<typeof events.next>>;
  try {
    first = await events.next(); // what is wrong from the start is answered with its status
  } catch (error) {
    await forget();
    throw error;
  }
  return streamSSE(c, async (sse) => {
    sse.onAbort(left);
    try {
      for (let next = first; next.done !== true; next = await events.next()) {
        const { event, id, data } = next.value;
        await sse.writeSSE({ event, ...(id !== undefined && { id }), data: JSON.stringify(data) });
      }
    } catch (error) {
      if (!abort.signal.aborted) await sse.writeSSE({ event: "error", data: JSON.stringify(failure(error, c).body) });
    } finally {
      await forget();
    }
  });
}

/** The pages, and WebAssembly's llama.cpp. */
function addPages(app: Hono<Bindings>): void {
  addPage(app, "foundry", PAGE_HEADERS);
  const wllama = path.dirname(createRequire(import.meta.url).resolve("@wllama/wllama"));
  app.get("/wllama/wllama.wasm", (c) => sendFile(c, path.join(wllama, "wasm/wllama.wasm"), PAGE_HEADERS));
}
