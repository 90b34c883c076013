import { randomUUID } from "node:crypto";
import { Hono } from "hono";
import { cors } from "hono/cors";
import { stream } from "hono/streaming";
import type { Logger } from "pino";
import type { ServerEvent } from "./api/endpoint.js";
import {
  ENDPOINTS,
  type Endpoint,
  parseBody,
  type Service,
  type ServiceInfo,
  UNREADABLE,
  VIEWS,
  withoutNulls,
} from "./api/index.js";
import { anthropicCardOf, modelCardOf } from "./api/management.js";
import { docsPage, openApi } from "./api/openapi.js";
import { ApiError } from "./errors.js";
import type { Metrics } from "./metrics.js";
import { addPage } from "./pages.js";
import { canonicalPath } from "./paths.js";
import { readBody } from "./request-body.js";
import {
  type AppContext,
  type Bindings,
  failure,
  type HttpOptions,
  identify,
  isAnthropic,
  openContext,
  protocolFor,
} from "./request-context.js";
import { allowedOrigins, siteCheck } from "./same-site.js";

export type { HttpOptions } from "./request-context.js";

/** The service's pages load nothing from elsewhere, and no other page may frame them. */
const PAGE_HEADERS = {
  "content-security-policy":
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
};

/** Characters of a client's user name that are logged. */
const MAX_USER_NAME = 512;

/** Headers of answers that pages of other origins may read. */
const EXPOSED_HEADERS = ["x-request-id", "request-id", "retry-after", "warning"];

/** Paths that need no key. They may be called by any name: probes and collectors have addresses and names of their own. */
const OPEN_PATHS = new Set(["/v1/metrics", ...VIEWS.filter(({ open }) => open).map(({ path: at }) => at)]);

/** The service's endpoints over HTTP. */
export function httpApp(info: ServiceInfo, options: HttpOptions): Hono<Bindings> {
  const methods = methodsByPath();
  const methodsOf = (at: string) => methods.get(at) ?? (at.startsWith("/v1/models/") ? ["GET"] : undefined);
  const isKnown = (at: string) => methodsOf(at) !== undefined;
  const app = new Hono<Bindings>({ getPath: (request) => canonicalPath(new URL(request.url).pathname, isKnown) });
  app.use((c, next) => logged(c, next, options.logger));
  addSiteRules(app, options);
  app.onError((error, c) => {
    const { known, body } = failure(error, c, options);
    if (known.details.retryAfter !== undefined) c.header("retry-after", `${known.details.retryAfter}`);
    if (known.status === 413) c.header("connection", "close"); // the rest of the body is not read
    return c.json(body, known.status);
  });
  app.notFound((c) => {
    const allowed = methodsOf(c.req.path);
    if (allowed === undefined) throw new ApiError(404, "there is no such endpoint: /docs lists them");
    c.header("allow", allowed.map((method) => (method === "GET" ? "GET, HEAD" : method)).join(", "));
    if (c.req.method === "OPTIONS") return c.body(null, 204);
    const message = `${c.req.path} takes ${allowed.join(" or ")}, not ${c.req.method}`;
    throw new ApiError(405, message, { code: "method_not_allowed" });
  });
  addPages(app, info, options.metrics);
  addManagement(app, info, options.keys);
  const service: Service = { pool: info.pool, maxTokens: options.maxTokens };
  for (const endpoint of ENDPOINTS) addEndpoint(app, endpoint, { service, info, options });
  return app;
}

function methodsByPath(): Map<string, string[]> {
  const methods = new Map<string, string[]>();
  const add = (at: string, method: string) => methods.set(at, [...(methods.get(at) ?? []), method]);
  for (const { path: at } of VIEWS) add(at, "GET");
  for (const at of ["/", "/docs", "/openapi.json", "/v1/metrics"]) add(at, "GET");
  for (const { path: at } of ENDPOINTS) add(at, "POST");
  return methods;
}

/** Says which sites' pages may call the service; a service with keys checks these instead. */
function addSiteRules(app: Hono<Bindings>, options: HttpOptions): void {
  const { keys, corsOrigins } = options;
  if (corsOrigins.length > 0) app.use(cors({ origin: allowedOrigins(corsOrigins), exposeHeaders: EXPOSED_HEADERS }));
  const checkSite = siteCheck(options);
  app.use(async (c, next) => {
    if (keys === undefined && !OPEN_PATHS.has(c.req.path)) {
      const [host, origin, site] = ["host", "origin", "sec-fetch-site"].map((name) => c.req.header(name));
      checkSite({ method: c.req.method, host, origin, site });
    }
    await next();
  });
}

/** Gives a request its id, and logs it when it has been answered. */
async function logged(c: AppContext, next: () => Promise<void>, logger: Logger): Promise<void> {
  const header = c.req.header("x-request-id");
  const requestId = header !== undefined && /^[\w-]{1,128}$/.test(header) ? header : randomUUID();
  c.set("requestId", requestId);
  c.set("note", {});
  for (const name of ["x-request-id", "request-id"]) c.header(name, requestId);
  const started = performance.now();
  await next();
  if (c.get("note").streamed === true) return; // is logged at its end
  logRequest(c, c.res.status, started, logger);
}

function logRequest(c: AppContext, status: number, started: number, logger: Logger): void {
  const milliseconds = Math.round(performance.now() - started);
  const { method, path: at } = c.req;
  logger.info({ requestId: c.get("requestId"), method, path: at, status, milliseconds, ...c.get("note") });
}

function addPages(app: Hono<Bindings>, info: ServiceInfo, metrics: Metrics): void {
  addPage(app, "chat", PAGE_HEADERS);
  app.get("/docs", (c) => c.html(docsPage(info.version), 200, PAGE_HEADERS));
  const document = openApi(info.version);
  app.get("/openapi.json", (c) => c.json(document));
  app.get("/v1/metrics", async (c) =>
    c.body(await metrics.registry.metrics(), 200, { "content-type": metrics.registry.contentType }),
  );
}

function addManagement(app: Hono<Bindings>, info: ServiceInfo, keys: HttpOptions["keys"]): void {
  for (const { path: at, open, answer, anthropicAnswer } of VIEWS)
    app.get(at, (c) => {
      if (!open) identify(c, keys);
      const view = isAnthropic(c) && anthropicAnswer ? anthropicAnswer(info, c.req.query()) : answer(info);
      return c.json(view as object);
    });
  app.get("/v1/models/:name{.+}", (c) => {
    identify(c, keys);
    return c.json((isAnthropic(c) ? anthropicCardOf : modelCardOf)(info, c.req.param("name")));
  });
}

interface EndpointOptions {
  readonly service: Service;
  readonly info: ServiceInfo;
  readonly options: HttpOptions;
}

function addEndpoint(app: Hono<Bindings>, endpoint: Endpoint, { service, info, options }: EndpointOptions): void {
  app.post(endpoint.path, async (c) => {
    const started = performance.now();
    c.set("client", identify(c, options.keys)); // before its body is read
    if (!info.taking()) throw new ApiError(503, "the service is shutting down", { retryAfter: 5 });
    const body = parseBody(endpoint.body, withoutNulls(await readJson(c, options.maxBodyBytes)), UNREADABLE);
    const note = c.get("note");
    const { user, model } = body as { readonly user?: unknown; readonly model?: unknown | undefined };
    note.model = info.pool.resolve(model as string | undefined);
    if (typeof user === "string") note.user = user.slice(0, MAX_USER_NAME);
    c.get("client")?.take();
    const { context, end } = openContext(c, options);
    try {
      const reply = await endpoint.answer(body, service, context);
      if ("json" in reply) {
        end();
        return c.json(reply.json as object);
      }
      const first = await reply.events.next(); // an error until then is answered with its status
      note.streamed = true;
      const onEnd = (status: number) => {
        end();
        delete note.streamed;
        logRequest(c, status, started, options.logger);
      };
      return streamReply(c, { first, events: reply.events, signal: context.signal, onEnd }, options);
    } catch (error) {
      end();
      throw error;
    }
  });
}

interface StreamedReply {
  readonly first: IteratorResult<ServerEvent>;
  readonly events: AsyncGenerator<ServerEvent>;
  /** Aborted when the time is up. */
  readonly signal: AbortSignal;
  /** Called with the status when all are sent. */
  readonly onEnd: (status: number) => void;
}

/** Sends events as they come. A client that does not read them loses its connection when the time is up. */
function streamReply(c: AppContext, { first, events, signal, onEnd }: StreamedReply, options: HttpOptions): Response {
  const protocol = protocolFor(c);
  c.header("content-type", protocol.streamType);
  c.header("cache-control", "no-cache");
  c.header("x-accel-buffering", "no"); // nginx would hold it back
  return stream(c, async (output) => {
    output.onAbort(() => void events.return(undefined));
    let status = 200;
    let isStalled = false;
    const write = async (event: ServerEvent) => {
      isStalled = true;
      await unlessAborted(output.write(protocol.encode(event)), signal);
      isStalled = false;
    };
    try {
      for (let next = first; next.done !== true; next = await events.next()) await write(next.value);
    } catch (error) {
      const { known, body } = failure(error, c, options);
      status = known.status;
      await events.return(undefined); // frees its slot, whether the client reads on or not
      if (isStalled) c.env.incoming.socket.destroy();
      else await output.write(protocol.encode(protocol.errorEvent(body)));
    } finally {
      await events.return(undefined);
      onEnd(status);
    }
  });
}

/** Waits for something, but no longer than a signal lets it. @throws the signal's reason when it is aborted first */
function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const stop = () => reject(signal.reason);
    if (signal.aborted) stop();
    signal.addEventListener("abort", stop, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", stop));
  });
}

/** @throws ApiError 400 for a body that is not JSON, and as {@link readBody} does */
async function readJson(c: AppContext, limit: number): Promise<unknown> {
  const headers = { encoding: c.req.header("content-encoding"), length: c.req.header("content-length") };
  const bytes = await readBody(c.req.raw.body, headers, limit);
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new ApiError(400, `the body is not JSON in UTF-8: ${error instanceof Error ? error.message : error}`);
  }
}
