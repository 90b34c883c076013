import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import type { IncomingMessage } from "node:http";
import path from "node:path";
import { type Context, Hono } from "hono";
import { bodyLimit } from "hono/body-limit";
import { cors } from "hono/cors";
import { streamSSE } from "hono/streaming";
import type { Logger } from "pino";
import { packageRoot } from "../ggml/library.js";
import { ENDPOINTS, type Endpoint, parseBody, type Service, withoutNulls } from "./api/index.js";
import { MANAGEMENT, modelCardOf, type ServiceInfo } from "./api/management.js";
import { docsPage, openApi } from "./api/openapi.js";
import type { Overflow } from "./engine/conversation.js";
import type { RequestContext } from "./engine/writer.js";
import { ApiError } from "./errors.js";
import type { ApiKeys, Client } from "./keys.js";
import type { Metrics } from "./metrics.js";

export interface HttpOptions {
  /** Bytes of a request's body. */
  readonly maxBodyBytes: number;
  /** A request that takes longer is ended. */
  readonly timeoutSeconds: number;
  /** Keys of which every request needs one; none are asked for where there are none. */
  readonly keys?: Pick<ApiKeys, "clientOf"> | undefined;
  /** Web pages of these origins may ask. */
  readonly corsOrigins: readonly string[];
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

const PAGES = [
  { path: "/", file: "web/chat/index.html", type: "text/html; charset=utf-8" },
  { path: "/chat.css", file: "web/chat/chat.css", type: "text/css; charset=utf-8" },
  { path: "/chat.js", file: "dist/web/chat.js", type: "text/javascript; charset=utf-8" },
];

/** The endpoints over HTTP. */
export function httpApp(info: ServiceInfo, options: HttpOptions): Hono<Bindings> {
  const app = new Hono<Bindings>();
  const { logger, keys, metrics } = options;
  const service: Service = { pool: info.pool, maxTokens: options.maxTokens };

  /** What is answered where something went wrong; what the client is not to know stands in the log. */
  const failure = (error: unknown, c: Context<Bindings>) => {
    const known = error instanceof ApiError ? error : new ApiError(500, "the request failed; the log has more");
    const cause = known === error ? known.details.cause : error;
    if (cause !== undefined) logger.error({ requestId: c.get("requestId"), error: String(cause) });
    metrics.failures.inc({ status: known.status });
    const body = c.req.path.startsWith("/v1/messages")
      ? { ...known.anthropicBody, request_id: c.get("requestId") }
      : known.body;
    return { known, body };
  };

  app.use(async (c, next) => {
    const given = c.req.header("x-request-id");
    const requestId = given !== undefined && /^[\w-]{1,128}$/.test(given) ? given : randomUUID();
    c.set("requestId", requestId);
    c.set("note", {});
    for (const name of ["x-request-id", "request-id"]) c.header(name, requestId);
    const started = performance.now();
    await next();
    if (c.get("note").streamed === true) return; // is logged at its end
    logRequest(c, c.res.status, started);
  });
  const logRequest = (c: Context<Bindings>, status: number, started: number) => {
    const milliseconds = Math.round(performance.now() - started);
    logger.info({
      requestId: c.get("requestId"),
      method: c.req.method,
      path: c.req.path,
      status,
      milliseconds,
      ...c.get("note"),
    });
  };
  if (options.corsOrigins.length > 0) app.use(cors({ origin: [...options.corsOrigins] }));
  app.onError((error, c) => {
    const { known, body } = failure(error, c);
    if (known.details.retryAfter !== undefined) c.header("retry-after", `${known.details.retryAfter}`);
    if (known.status === 413) c.header("connection", "close"); // what is left of the body is not read
    return c.json(body, known.status);
  });
  app.notFound(() => {
    throw new ApiError(404, "there is no such endpoint: /docs lists those that there are");
  });

  for (const { path: at, file, type } of PAGES)
    app.get(at, (c) =>
      c.body(readFileSync(path.join(packageRoot, file)), 200, { ...PAGE_HEADERS, "content-type": type }),
    );
  app.get("/docs", (c) => c.html(docsPage(info.version), 200, PAGE_HEADERS));
  const document = openApi(info.version);
  app.get("/openapi.json", (c) => c.json(document));
  app.get("/v1/metrics", async (c) =>
    c.body(await metrics.registry.metrics(), 200, { "content-type": metrics.registry.contentType }),
  );

  /** @throws ApiError 401 for one who has no key where one is needed */
  const identify = (c: Context<Bindings>): Client | undefined => {
    if (keys === undefined) return undefined;
    const key = /^Bearer (.+)$/.exec(c.req.header("authorization") ?? "")?.[1] ?? c.req.header("x-api-key") ?? "";
    const client = keys.clientOf(key);
    if (client === undefined)
      throw new ApiError(401, "a valid API key is needed (Authorization: Bearer KEY)", { code: "invalid_api_key" });
    return client;
  };

  for (const { path: at, open, answer } of MANAGEMENT)
    app.get(at, (c) => {
      if (!open) identify(c);
      return c.json(answer(info) as object);
    });
  app.get("/v1/models/:name{.+}", (c) => {
    identify(c);
    return c.json(modelCardOf(info, c.req.param("name")));
  });

  /** Whose request it is, and when it must end. */
  const contextOf = (c: Context<Bindings>, client: Client | undefined) => {
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
      ...{ signal: abort.signal, overflow: options.overflow, metrics },
      warn: (text) => {
        if (warnings.size < MOST_WARNINGS) warnings.add(`299 - ${JSON.stringify(text.replace(/[^ -~]/g, "?"))}`);
        c.header("warning", [...warnings].join(", "));
      },
      onTokens: (count) => {
        note.tokens = Number(note.tokens ?? 0) + count;
        client?.spend(count);
      },
      ...(options.logPrompts && {
        onText: (kind, text) => {
          texts[kind] = (texts[kind] ?? "") + text;
          Object.assign(note, texts);
        },
      }),
    };
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", left);
    };
    return { context, end };
  };

  const limited = bodyLimit({
    maxSize: options.maxBodyBytes,
    onError: () => {
      throw new ApiError(413, `the body has more than ${options.maxBodyBytes} bytes`);
    },
  });
  const post = (endpoint: Endpoint) =>
    app.post(
      endpoint.path,
      async (c, next) => {
        c.set("client", identify(c)); // before its body is read
        if (!info.taking()) throw new ApiError(503, "the service is ending", { retryAfter: 5 });
        await next();
      },
      limited,
      async (c) => {
        const started = performance.now();
        const body = parseBody(endpoint.body, withoutNulls(await jsonOf(c)));
        const note = c.get("note");
        const { user, model } = body as { readonly user?: unknown; readonly model?: unknown };
        Object.assign(
          note,
          { model: info.pool.resolve(model as string | undefined) },
          typeof user === "string" && { user: user.slice(0, MOST_USER_NAME) },
        );
        c.get("client")?.take();
        const { context, end } = contextOf(c, c.get("client"));
        try {
          const reply = await endpoint.answer(body, service, context);
          if ("json" in reply) {
            end();
            return c.json(reply.json as object);
          }
          const { events } = reply;
          const first = await events.next(); // what is wrong from the start is answered with its status
          note.streamed = true;
          return streamSSE(c, async (sse) => {
            sse.onAbort(() => void events.return(undefined));
            let status = 200;
            try {
              for (let next = first; next.done !== true; next = await events.next()) {
                const { event, data } = next.value;
                await sse.writeSSE({
                  ...(event && { event }),
                  data: typeof data === "string" ? data : JSON.stringify(data),
                });
              }
            } catch (error) {
              const { known, body: said } = failure(error, c);
              status = known.status;
              const named =
                endpoint.path === "/v1/chat/completions" || endpoint.path === "/v1/completions"
                  ? {}
                  : { event: "error" };
              await sse.writeSSE({
                ...named,
                data: JSON.stringify({ ...(named.event && { type: "error" }), ...said }),
              });
            } finally {
              end();
              await events.return(undefined);
              delete note.streamed;
              logRequest(c, status, started);
            }
          });
        } catch (error) {
          end();
          throw error;
        }
      },
    );
  for (const endpoint of ENDPOINTS) post(endpoint);
  return app;
}

/** @throws ApiError 400 for what is no JSON, 408 when the client leaves before all of it is there, 413 for too much of it */
async function jsonOf(c: Context<Bindings>): Promise<unknown> {
  const bytes = await c.req.arrayBuffer().catch((error: unknown) => {
    throw error instanceof ApiError ? error : new ApiError(408, "the body did not come whole");
  });
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new ApiError(400, `the body is no JSON in UTF-8: ${error instanceof Error ? error.message : error}`);
  }
}
