import { randomUUID } from "node:crypto";
import type { IncomingMessage } from "node:http";
import { type Context, Hono } from "hono";
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
import type { Overflow } from "./engine/conversation.js";
import type { RequestContext } from "./engine/writer.js";
import { ApiError } from "./errors.js";
import type { ApiKeys, Client } from "./keys.js";
import type { Metrics } from "./metrics.js";
import { addPage } from "./pages.js";
import { canonicalPath } from "./paths.js";
import { type Protocol, protocolOf } from "./protocols.js";
import { readBody } from "./request-body.js";
import { type SiteOptions, siteCheck } from "./same-site.js";

export interface HttpOptions extends SiteOptions {
  /** Bytes of a request's body. */
  readonly maxBodyBytes: number;
  /** A request that takes longer is ended. */
  readonly timeoutSeconds: number;
  /** Keys of which every request needs one; none are asked for where there are none. */
  readonly keys?: Pick<ApiKeys, "clientOf"> | undefined;
  /** Most tokens of an answer. */
  readonly maxTokens?: number | undefined;
  /** What is done with a prompt that does not fit. */
  readonly overflow: Overflow;
  /** Whether the log has what was asked and answered. */
  readonly logPrompts: boolean;
  readonly logger: Logger;
  readonly metrics: Metrics;
}

interface Bindings {
  readonly Bindings: { readonly incoming: IncomingMessage };
  readonly Variables: { requestId: string; client: Client | undefined; note: Record<string, unknown> };
}

/** Own pages load nothing from elsewhere, and no other page may frame them. */
const PAGE_HEADERS = {
  "content-security-policy":
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
};

/** Of a name that a client gives, what the log has. */
const MOST_USER_NAME = 512;

const MOST_WARNINGS = 8;

type AppContext = Context<Bindings>;

/** Headers of answers that pages of other origins may read. */
const EXPOSED_HEADERS = ["x-request-id", "request-id", "retry-after", "warning"];

/** The endpoints over HTTP. */
export function httpApp(info: ServiceInfo, options: HttpOptions): Hono<Bindings> {
  const methods = methodsByPath();
  const methodsOf = (at: string) => methods.get(at) ?? (at.startsWith("/v1/models/") ? ["GET"] : undefined);
  const isKnown = (at: string) => methodsOf(at) !== undefined;
  const app = new Hono<Bindings>({ getPath: (request) => canonicalPath(new URL(request.url).pathname, isKnown) });
  const { keys, corsOrigins } = options;

  app.use((c, next) => inLog(c, next, options.logger));
  if (corsOrigins.length > 0) app.use(cors({ origin: [...corsOrigins], exposeHeaders: EXPOSED_HEADERS }));
  const checkSite = siteCheck(options);
  app.use(async (c, next) => {
    if (keys === undefined && !OPEN_PATHS.has(c.req.path)) {
      const header = (name: string) => c.req.header(name);
      const [host, origin, site] = ["host", "origin", "sec-fetch-site"].map(header);
      checkSite({ method: c.req.method, host, origin, site });
    }
    await next();
  });
  app.onError((error, c) => {
    const { known, body } = failure(error, c, options);
    if (known.details.retryAfter !== undefined) c.header("retry-after", `${known.details.retryAfter}`);
    if (known.status === 413) c.header("connection", "close"); // what is left of the body is not read
    return c.json(body, known.status);
  });
  app.notFound((c) => {
    const allowed = methodsOf(c.req.path);
    if (allowed === undefined) throw new ApiError(404, "there is no such endpoint: /docs lists those that there are");
    c.header("allow", allowed.map((method) => (method === "GET" ? "GET, HEAD" : method)).join(", "));
    if (c.req.method === "OPTIONS") return c.body(null, 204);
    throw new ApiError(405, `${c.req.path} is asked for by ${allowed.join(" or ")}`, { code: "method_not_allowed" });
  });

  addPages(app, info, options.metrics);
  addManagement(app, info, keys);
  const service: Service = { pool: info.pool, maxTokens: options.maxTokens };
  for (const endpoint of ENDPOINTS) addEndpoint(app, endpoint, service, info, options);
  return app;
}

/** What needs no key may be asked by any name: probes and collectors use addresses and names of their own. */
const OPEN_PATHS = new Set(["/v1/metrics", ...VIEWS.filter(({ open }) => open).map(({ path: at }) => at)]);

function methodsByPath(): Map<string, string[]> {
  const methods = new Map<string, string[]>();
  const add = (at: string, method: string) => methods.set(at, [...(methods.get(at) ?? []), method]);
  for (const { path: at } of VIEWS) add(at, "GET");
  for (const at of ["/", "/docs", "/openapi.json", "/v1/metrics"]) add(at, "GET");
  for (const { path: at } of ENDPOINTS) add(at, "POST");
  return methods;
}

/** Gives a request its id, and puts a line into the log when it is answered. */
async function inLog(c: AppContext, next: () => Promise<void>, logger: Logger): Promise<void> {
  const given = c.req.header("x-request-id");
  const requestId = given !== undefined && /^[\w-]{1,128}$/.test(given) ? given : randomUUID();
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

const protocolFor = (c: AppContext): Protocol =>
  protocolOf(c.req.path, c.req.header("anthropic-version") !== undefined);

/** What is answered where something went wrong; what the client is not to know stands in the log. */
function failure(error: unknown, c: AppContext, { logger, metrics }: Pick<HttpOptions, "logger" | "metrics">) {
  const known = error instanceof ApiError ? error : new ApiError(500, "the request failed; the log has more");
  const cause = known === error ? known.details.cause : error;
  if (cause !== undefined) logger.error({ requestId: c.get("requestId"), error: String(cause) });
  metrics.failures.inc({ status: known.status });
  return { known, body: protocolFor(c).errorBody(known, c.get("requestId")) };
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

/** @throws ApiError 401 for one who has no key where one is needed */
function identify(c: AppContext, keys: HttpOptions["keys"]): Client | undefined {
  if (keys === undefined) return undefined;
  const key = /^Bearer +(.+)$/i.exec(c.req.header("authorization") ?? "")?.[1] ?? c.req.header("x-api-key") ?? "";
  const client = keys.clientOf(key);
  if (client === undefined)
    throw new ApiError(401, "a valid API key is needed (Authorization: Bearer KEY)", { code: "invalid_api_key" });
  return client;
}

function addManagement(app: Hono<Bindings>, info: ServiceInfo, keys: HttpOptions["keys"]): void {
  const isAnthropic = (c: AppContext) => c.req.header("anthropic-version") !== undefined;
  for (const { path: at, open, answer, anthropicAnswer } of VIEWS)
    app.get(at, (c) => {
      if (!open) identify(c, keys);
      return c.json(
        (isAnthropic(c) && anthropicAnswer ? anthropicAnswer(info, c.req.query()) : answer(info)) as object,
      );
    });
  app.get("/v1/models/:name{.+}", (c) => {
    identify(c, keys);
    return c.json((isAnthropic(c) ? anthropicCardOf : modelCardOf)(info, c.req.param("name")));
  });
}

/** Whose request it is, and when it must end. */
function contextOf(
  c: AppContext,
  options: HttpOptions,
): { readonly context: RequestContext; readonly end: () => void } {
  const client = c.get("client");
  const abort = new AbortController();
  const late = new ApiError(408, `the request took longer than ${options.timeoutSeconds} seconds`, {
    code: "timeout",
  });
  const timer = setTimeout(() => abort.abort(late), 1000 * options.timeoutSeconds);
  const left = () => abort.abort(new ApiError(408, "the client left"));
  const { signal } = c.req.raw;
  if (signal.aborted) left();
  signal.addEventListener("abort", left, { once: true });
  const note = c.get("note");
  const texts: Record<string, string> = {};
  const warnings = new Set<string>();
  const context: RequestContext = {
    client: client?.name ?? c.env.incoming.socket.remoteAddress ?? "",
    signal: abort.signal,
    overflow: options.overflow,
    metrics: options.metrics,
    warn: (text) => {
      if (warnings.size < MOST_WARNINGS) warnings.add(`299 - ${JSON.stringify(text.replace(/[^ -~]/g, "?"))}`);
      c.header("warning", [...warnings].join(", "));
    },
    onTokens: (count) => {
      note.tokens = Number(note.tokens ?? 0) + count;
      client?.spend(count);
    },
    onText: options.logPrompts
      ? (kind, text) => {
          texts[kind] = (texts[kind] ?? "") + text;
          Object.assign(note, texts);
        }
      : undefined,
  };
  const end = () => {
    clearTimeout(timer);
    signal.removeEventListener("abort", left);
  };
  return { context, end };
}

function addEndpoint(
  app: Hono<Bindings>,
  endpoint: Endpoint,
  service: Service,
  info: ServiceInfo,
  options: HttpOptions,
): void {
  app.post(endpoint.path, async (c) => {
    const started = performance.now();
    c.set("client", identify(c, options.keys)); // before its body is read
    if (!info.taking()) throw new ApiError(503, "the service is ending", { retryAfter: 5 });
    const body = parseBody(endpoint.body, withoutNulls(await jsonOf(c, options.maxBodyBytes)), UNREADABLE);
    const note = c.get("note");
    const { user, model } = body as { readonly user?: unknown; readonly model?: unknown | undefined };
    note.model = info.pool.resolve(model as string | undefined);
    if (typeof user === "string") note.user = user.slice(0, MOST_USER_NAME);
    c.get("client")?.take();
    const { context, end } = contextOf(c, options);
    try {
      const reply = await endpoint.answer(body, service, context);
      if ("json" in reply) {
        end();
        return c.json(reply.json as object);
      }
      const first = await reply.events.next(); // what is wrong from the start is answered with its status
      note.streamed = true;
      return streamReply(c, first, reply.events, options, (status) => {
        end();
        delete note.streamed;
        logRequest(c, status, started, options.logger);
      });
    } catch (error) {
      end();
      throw error;
    }
  });
}

/** Sends what is said as it is said. @param ended told of the status when all is sent */
function streamReply(
  c: AppContext,
  first: IteratorResult<ServerEvent>,
  events: AsyncGenerator<ServerEvent>,
  options: HttpOptions,
  ended: (status: number) => void,
): Response {
  const protocol = protocolFor(c);
  c.header("content-type", protocol.streamType);
  c.header("cache-control", "no-cache");
  c.header("x-accel-buffering", "no"); // nginx would hold it back
  return stream(c, async (sent) => {
    sent.onAbort(() => void events.return(undefined));
    let status = 200;
    try {
      for (let next = first; next.done !== true; next = await events.next())
        await sent.write(protocol.written(next.value));
    } catch (error) {
      const { known, body } = failure(error, c, options);
      status = known.status;
      await sent.write(protocol.written(protocol.errorEvent(body)));
    } finally {
      await events.return(undefined);
      ended(status);
    }
  });
}

/** @throws ApiError 400 for what is no JSON, and as {@link readBody} does */
async function jsonOf(c: AppContext, most: number): Promise<unknown> {
  const headers = { encoding: c.req.header("content-encoding"), length: c.req.header("content-length") };
  const bytes = await readBody(c.req.raw.body, headers, most);
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new ApiError(400, `the body is no JSON in UTF-8: ${error instanceof Error ? error.message : error}`);
  }
}
