import { randomUUID } from "node:crypto";
import type { IncomingMessage } from "node:http";
import { createRequire } from "node:module";
import path from "node:path";
import { Readable } from "node:stream";
import { Hono, type Context as HonoContext } from "hono";
import { bodyLimit } from "hono/body-limit";
import { cors } from "hono/cors";
import { streamSSE } from "hono/streaming";
import type { Logger } from "pino";
import type { z } from "zod";
import { parseBody } from "../serve/api/index.js";
import { ApiError } from "../serve/errors.js";
import { addPage, sendFile } from "../serve/pages.js";
import { allowedOrigins } from "../serve/same-site.js";
import { ROUTES, type Route } from "./api/index.js";
import type { Events, FoundryServices, Streamed } from "./api/route.js";
import { foundryDocs, foundryOpenApi } from "./openapi.js";
import type { Role } from "./store/roles.js";
import { storedText } from "./store/storable.js";
import { type Caller, LOCAL_TENANT } from "./store/tenants.js";
import { version } from "./version.js";

export type { FoundryServices } from "./api/route.js";

interface FoundryEnv {
  readonly Bindings: { readonly incoming: IncomingMessage };
  readonly Variables: { requestId: string };
}

type Context = HonoContext<FoundryEnv>;
/** Turns an error into the one the client sees, and logs what the client does not see. */
type ToApiError = (error: unknown, c: Context) => ApiError;

const MAX_JSON_BYTES = 1 << 20;
const RANK: Readonly<Record<Role, number>> = { viewer: 0, user: 1, admin: 2 };
/** The caller where no keys are needed. */
const LOCAL: Caller = { tenant: LOCAL_TENANT, name: "local", role: "admin" };

/** The pages load nothing from elsewhere, may run WebAssembly, and cannot be framed by other pages. */
const PAGE_HEADERS = {
  "content-security-policy":
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval' blob:; worker-src 'self' blob:; style-src 'self' 'unsafe-inline'; connect-src 'self' blob:; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  // threads in WebAssembly need these two
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-embedder-policy": "require-corp",
};

/** The service's HTTP application: its API and its pages. */
export function foundryApp(services: FoundryServices): Hono<FoundryEnv> {
  const app = new Hono<FoundryEnv>();
  addRequestLog(app, services.logger);
  if (services.corsOrigins.length > 0) app.use("/v1/*", cors({ origin: allowedOrigins(services.corsOrigins) }));
  const toApiError = errorConverter(services.logger);
  app.onError((error, c) => {
    const apiError = toApiError(error, c);
    const { retryAfter, contentRange } = apiError.details;
    if (retryAfter !== undefined) c.header("retry-after", `${retryAfter}`);
    if (contentRange !== undefined) c.header("content-range", contentRange);
    if (apiError.status === 413) c.header("connection", "close"); // the rest of the body is not read
    return c.json(apiError.body, apiError.status);
  });
  app.notFound(() => {
    throw new ApiError(404, "there is no such endpoint: see /docs");
  });
  addPages(app);
  const document = foundryOpenApi(version);
  app.get("/openapi.json", (c) => c.json(document));
  app.get("/docs", (c) => c.html(foundryDocs(version), 200, PAGE_HEADERS));
  const identify = authenticator(services);
  for (const route of ROUTES) addRoute(app, route, { services, identify, toApiError });
  return app;
}

/** Gives each request an id, and logs requests to the API. */
function addRequestLog(app: Hono<FoundryEnv>, logger: Logger): void {
  app.use(async (c, next) => {
    const clientId = c.req.header("x-request-id");
    const requestId = clientId !== undefined && /^[\w-]{1,128}$/.test(clientId) ? clientId : randomUUID();
    c.set("requestId", requestId);
    c.header("x-request-id", requestId);
    const began = performance.now();
    await next();
    const milliseconds = Math.round(performance.now() - began);
    if (c.req.path.startsWith("/v1/"))
      logger.info({ requestId, method: c.req.method, path: c.req.path, status: c.res.status, milliseconds });
  });
}

const errorConverter =
  (logger: Logger): ToApiError =>
  (error, c) => {
    if (error instanceof ApiError) return error;
    logger.error({
      requestId: c.get("requestId"),
      error: error instanceof Error ? (error.stack ?? error.message) : String(error),
    });
    return new ApiError(500, "the request failed: see the service's log");
  };

type Identify = (c: Context, needs: Route["needs"]) => Promise<Caller>;

/** Finds out who sends a request. The function throws ApiError 401 without a valid key, 403 when the role is not enough. */
function authenticator({ tenants, isLocal }: FoundryServices): Identify {
  const areKeysNeeded = cachedForASecond(() => tenants.anyKeys());
  return async (c, needs) => {
    if (needs === "anyone") return LOCAL;
    if (!(await areKeysNeeded()) && isLocal) {
      checkSameSite(c);
      return LOCAL;
    }
    const key = /^Bearer (.+)$/.exec(c.req.header("authorization") ?? "")?.[1];
    const caller = key === undefined ? undefined : await tenants.callerOf(key);
    if (caller === undefined)
      throw new ApiError(401, "a valid API key is needed (Authorization: Bearer KEY)", { code: "invalid_api_key" });
    if (RANK[caller.role] < RANK[needs])
      throw new ApiError(403, `this needs the role ${needs}; the key has the role ${caller.role}`);
    return caller;
  };
}

const limitedJson = bodyLimit({
  maxSize: MAX_JSON_BYTES,
  onError: () => {
    throw new ApiError(413, `the body has more than ${MAX_JSON_BYTES} bytes`);
  },
});

interface RouteContext {
  readonly services: FoundryServices;
  readonly identify: Identify;
  readonly toApiError: ToApiError;
}

function addRoute(app: Hono<FoundryEnv>, route: Route, { services, identify, toApiError }: RouteContext): void {
  const isJson = route.body !== undefined && !("upload" in route.body);
  const honoPath = route.path.replace(/\{(\w+)\}/g, ":$1");
  if (isJson) app.use(honoPath, limitedJson);
  app.on(route.method, [honoPath], async (c) => {
    const caller = await identify(c, route.needs);
    const parameters = route.parameters.safeParse(c.req.param());
    if (!parameters.success) throw new ApiError(404, "it does not exist");
    const abort = new AbortController();
    const request = {
      parameters: parameters.data,
      query: parseBody(route.query, c.req.query()),
      body: isJson ? parseBody(route.body as z.ZodType, await jsonOf(c)) : undefined,
      caller,
      signal: abort.signal,
      header: (name: string) => c.req.header(name),
      content: () => Readable.from(wholeBody(c)),
    };
    const answer = await route.answer(request as never, services);
    if (c.req.method === "HEAD") return headersOf(c, answer);
    if (answer !== null && typeof answer === "object" && "events" in answer)
      return sendEvents(c, answer as Events, { abort, ending: services.ending, toApiError });
    if (answer !== null && typeof answer === "object" && "stream" in answer) return sendStream(answer as Streamed);
    return route.status === 204 ? c.body(null, 204) : c.json(answer as object, route.status);
  });
}

/** Refuses other sites' pages where no key is needed: requests say where they come from and which host they mean. */
function checkSameSite(c: Context): void {
  const host = c.req.header("host") ?? "";
  const name = host.replace(/:\d+$/, "").replace(/^\[(.*)\]$/, "$1");
  const origin = c.req.header("origin");
  const isThisMachine = name === "localhost" || name === "::1" || /^127\.\d+\.\d+\.\d+$/.test(name);
  if (!isThisMachine || (origin !== undefined && origin.replace(/^https?:\/\//, "") !== host))
    throw new ApiError(403, "without API keys, only this service's own pages and programs on this machine have access");
}

function cachedForASecond<T>(load: () => Promise<T>): () => Promise<T> {
  let cached: { readonly value: Promise<T>; readonly at: number } | undefined;
  return () => {
    if (cached === undefined || performance.now() - cached.at > 1000) cached = { value: load(), at: performance.now() };
    return cached.value;
  };
}

async function jsonOf(c: Context): Promise<unknown> {
  const bytes = await c.req.arrayBuffer().catch((error: unknown) => {
    throw error instanceof ApiError ? error : new ApiError(408, "the body is incomplete");
  });
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes), refuseUnstorable);
  } catch (error) {
    throw new ApiError(400, `the body is not JSON in UTF-8: ${error instanceof Error ? error.message : error}`);
  }
}

/** Refuses text that PostgreSQL cannot store. */
function refuseUnstorable(key: string, value: unknown): unknown {
  for (const text of [key, value])
    if (typeof text === "string" && storedText(text) !== text)
      throw new Error("it contains the character U+0000, or half of a surrogate pair");
  return value;
}

/** The body as it arrives. @throws ApiError 408 when it breaks off */
async function* wholeBody(c: Context): AsyncGenerator<Uint8Array> {
  if (c.req.raw.body !== null) yield* c.req.raw.body;
  // a body that broke off before it was read ends like a complete one
  if (!c.env.incoming.complete) throw new ApiError(408, "the upload is incomplete");
}

/** What a HEAD request gets: streams are not read. */
async function headersOf(c: Context, answer: unknown): Promise<Response> {
  if (answer === null || typeof answer !== "object") return c.body(null, 204);
  if ("events" in answer) {
    await (answer as Events).events.return(undefined);
    return c.body(null, 200, { "content-type": "text/event-stream" });
  }
  if (!("stream" in answer)) return c.json(answer);
  const { stream, status = 200, headers } = answer as Streamed;
  stream.destroy();
  return new Response(null, { status, headers: { ...headers } });
}

const sendStream = ({ stream, status = 200, headers }: Streamed): Response =>
  new Response(Readable.toWeb(stream) as ReadableStream, { status, headers: { ...headers } });

async function sendEvents(
  c: Context,
  { events }: Events,
  {
    abort,
    ending,
    toApiError,
  }: { readonly abort: AbortController; readonly ending: AbortSignal; readonly toApiError: ToApiError },
): Promise<Response> {
  // listeners are removed at the end: undici keeps the signal of a request with a body, and with it all its listeners
  const onClientLeft = () => abort.abort(new ApiError(408, "the client left"));
  const onEnding = () => abort.abort(ending.reason);
  const { signal } = c.req.raw;
  signal.addEventListener("abort", onClientLeft, { once: true });
  ending.addEventListener("abort", onEnding, { once: true });
  const close = async () => {
    signal.removeEventListener("abort", onClientLeft);
    ending.removeEventListener("abort", onEnding);
    await events.return(undefined);
  };
  let first: Awaited<ReturnType<typeof events.next>>;
  try {
    first = await events.next(); // an error before the first event is answered with its own status
  } catch (error) {
    await close();
    throw error;
  }
  return streamSSE(c, async (sse) => {
    sse.onAbort(onClientLeft);
    try {
      for (let next = first; next.done !== true; next = await events.next()) {
        const { event, id, data } = next.value;
        const text = JSON.stringify(data);
        await sse.writeSSE(id === undefined ? { event, data: text } : { event, id, data: text });
      }
    } catch (error) {
      if (!abort.signal.aborted)
        await sse.writeSSE({ event: "error", data: JSON.stringify(toApiError(error, c).body) });
    } finally {
      await close();
    }
  });
}

/** The pages, and llama.cpp as WebAssembly. */
function addPages(app: Hono<FoundryEnv>): void {
  addPage(app, "foundry", PAGE_HEADERS);
  const wllama = path.dirname(createRequire(import.meta.url).resolve("@wllama/wllama"));
  app.get("/wllama/wllama.wasm", (c) => sendFile(c, path.join(wllama, "wasm/wllama.wasm"), PAGE_HEADERS));
}
