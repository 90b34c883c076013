import { randomUUID } from "node:crypto";
import type { IncomingMessage } from "node:http";
import { type Context, Hono } from "hono";
import { bodyLimit } from "hono/body-limit";
import { cors } from "hono/cors";
import { streamSSE } from "hono/streaming";
import type { Logger } from "pino";
import { ApiError } from "./errors.js";
import { chatSchema, completionSchema, detokenizeSchema, parseBody, tokenizeSchema } from "./schemas.js";
import type { InferenceService, RequestContext, StreamPart } from "./service.js";

export interface HttpOptions {
  /** Bytes of a request's body. */
  readonly maxBodyBytes: number;
  /** A request that takes longer is ended. */
  readonly timeoutSeconds: number;
  /** Keys of which every request needs one; none are asked for where there are none. */
  readonly keys?: { readonly allows: (key: string) => boolean } | undefined;
  /** Web pages of these origins may ask. */
  readonly corsOrigins: readonly string[];
  readonly version: string;
  readonly logger: Logger;
}

/** How far the process is. */
export interface Readiness {
  /** Whether requests are taken. */
  ready: boolean;
}

interface Bindings {
  readonly Bindings: { readonly incoming: IncomingMessage };
  readonly Variables: { readonly requestId: string };
}

/** The endpoints over HTTP. */
export function httpApp(service: InferenceService, readiness: Readiness, options: HttpOptions): Hono<Bindings> {
  const app = new Hono<Bindings>();
  const { logger, keys } = options;

  app.use(async (c, next) => {
    const given = c.req.header("x-request-id");
    const requestId = given !== undefined && /^[\w-]{1,128}$/.test(given) ? given : randomUUID();
    c.set("requestId", requestId);
    c.header("x-request-id", requestId);
    const started = performance.now();
    await next();
    const milliseconds = Math.round(performance.now() - started);
    logger.info({ requestId, method: c.req.method, path: c.req.path, status: c.res.status, milliseconds });
  });
  if (options.corsOrigins.length > 0) app.use(cors({ origin: [...options.corsOrigins] }));
  app.onError((error, c) => {
    const known = error instanceof ApiError ? error : new ApiError(500, "the request failed; the log has more");
    if (known !== error) logger.error({ requestId: c.get("requestId"), error: String(error) });
    service.metrics.failures.inc({ status: known.status });
    if (known.details.retryAfter !== undefined) c.header("retry-after", `${known.details.retryAfter}`);
    return c.json(known.body, known.status);
  });
  app.notFound(() => {
    throw new ApiError(404, "there is no such endpoint");
  });

  app.get("/v1/health/live", (c) => c.json({ object: "health.response", message: "live" }));
  app.get("/v1/health/ready", (c) => {
    if (!readiness.ready) throw new ApiError(503, "not ready: the service is ending");
    return c.json({ object: "health.response", message: "ready" });
  });
  app.get("/v1/version", (c) => c.json({ release: options.version, api: "1.0" }));
  app.get("/v1/metrics", async (c) => {
    const { registry } = service.metrics;
    return c.body(await registry.metrics(), 200, { "content-type": registry.contentType });
  });

  app.use("/v1/*", async (c, next) => {
    if (keys !== undefined && !keys.allows(/^Bearer (.+)$/.exec(c.req.header("authorization") ?? "")?.[1] ?? ""))
      throw new ApiError(401, "a valid API key is needed (Authorization: Bearer KEY)", { code: "invalid_api_key" });
    await next();
  });
  app.use(
    bodyLimit({
      maxSize: options.maxBodyBytes,
      onError: () => {
        throw new ApiError(413, `the body has more than ${options.maxBodyBytes} bytes`);
      },
    }),
  );

  const modelCard = {
    ...{ id: service.options.name, object: "model", created: service.started, owned_by: "coppice" },
    max_model_len: service.model.contextSize,
  };
  app.get("/v1/models", (c) => c.json({ object: "list", data: [modelCard] }));
  app.get("/v1/models/:name{.+}", (c) => {
    service.checkModel(c.req.param("name"));
    return c.json(modelCard);
  });

  /** Whose request it is, and when it must end. */
  const contextOf = (c: Context<Bindings>): { readonly context: RequestContext; readonly end: () => void } => {
    if (!readiness.ready) throw new ApiError(503, "the service is ending", { retryAfter: 5 });
    const abort = new AbortController();
    const late = new ApiError(408, `the request took longer than ${options.timeoutSeconds} seconds`, {
      code: "timeout",
    });
    const timer = setTimeout(() => abort.abort(late), 1000 * options.timeoutSeconds);
    const left = () => abort.abort(new ApiError(408, "the client left"));
    const { signal } = c.req.raw;
    signal.addEventListener("abort", left, { once: true });
    const client = c.req.header("authorization") ?? c.env.incoming.socket.remoteAddress ?? "";
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", left);
    };
    return { context: { client, signal: abort.signal }, end };
  };

  /** An endpoint that answers at once, or as a stream where the body asks for one. */
  const writing =
    <Body extends { readonly stream: boolean }>(
      parse: (body: unknown) => Body,
      whole: (body: Body, context: RequestContext) => Promise<StreamPart>,
      parts: (body: Body, context: RequestContext) => AsyncGenerator<StreamPart>,
    ) =>
    async (c: Context<Bindings>) => {
      const body = parse(await jsonOf(c));
      const { context, end } = contextOf(c);
      if (!body.stream)
        try {
          return c.json(await whole(body, context));
        } finally {
          end();
        }
      const stream = parts(body, context);
      const first = await stream.next().catch((error) => {
        end();
        throw error; // what is wrong from the start is answered with its status
      });
      return streamSSE(
        c,
        async (sse) => {
          sse.onAbort(() => void stream.return(undefined));
          try {
            for (let part = first; part.done !== true; part = await stream.next())
              await sse.writeSSE({ data: JSON.stringify(part.value) });
            await sse.writeSSE({ data: "[DONE]" });
          } finally {
            end();
            await stream.return(undefined);
          }
        },
        async (error, sse) => {
          const known = error instanceof ApiError ? error : new ApiError(500, "the request failed; the log has more");
          if (known !== error) logger.error({ requestId: c.get("requestId"), error: String(error) });
          service.metrics.failures.inc({ status: known.status });
          await sse.writeSSE({ data: JSON.stringify(known.body) });
        },
      );
    };

  app.post(
    "/v1/completions",
    writing(
      (body) => parseBody(completionSchema, body),
      (body, context) => service.completion(body, context),
      (body, context) => service.completionStream(body, context),
    ),
  );
  app.post(
    "/v1/chat/completions",
    writing(
      (body) => parseBody(chatSchema, body),
      (body, context) => service.chat(body, context),
      (body, context) => service.chatStream(body, context),
    ),
  );
  app.post("/tokenize", async (c) => {
    const { model, prompt } = parseBody(tokenizeSchema, await jsonOf(c));
    service.checkModel(model);
    const tokens = service.model.promptOf(prompt);
    return c.json({ tokens, count: tokens.length, max_model_len: service.model.contextSize });
  });
  app.post("/detokenize", async (c) => {
    const { model, tokens } = parseBody(detokenizeSchema, await jsonOf(c));
    service.checkModel(model);
    return c.json({ prompt: service.model.detokenize(tokens) });
  });
  return app;
}

/** @throws ApiError 400 for what is no JSON, 413 for too much of it */
async function jsonOf(c: Context<Bindings>): Promise<unknown> {
  const bytes = await c.req.arrayBuffer();
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new ApiError(400, `the body is no JSON in UTF-8: ${error instanceof Error ? error.message : error}`);
  }
}
