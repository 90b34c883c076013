import type { IncomingMessage } from "node:http";
import type { Context } from "hono";
import type { Logger } from "pino";
import type { Overflow } from "./engine/conversation.js";
import type { RequestContext } from "./engine/writer.js";
import { ApiError } from "./errors.js";
import type { ApiKeys, Client } from "./keys.js";
import type { Metrics } from "./metrics.js";
import { type Protocol, protocolOf } from "./protocols.js";
import type { SiteOptions } from "./same-site.js";

export interface HttpOptions extends SiteOptions {
  /** Bytes that a request's body may have. */
  readonly maxBodyBytes: number;
  /** Seconds after which a request is ended. */
  readonly timeoutSeconds: number;
  /** Keys, one of which every request must have; no key is needed where undefined. */
  readonly keys?: Pick<ApiKeys, "clientOf"> | undefined;
  /** Tokens that an answer may have. */
  readonly maxTokens?: number | undefined;
  /** What to do with a prompt that does not fit. */
  readonly overflow: Overflow;
  /** Whether to log prompts and answers. */
  readonly logPrompts: boolean;
  readonly logger: Logger;
  readonly metrics: Metrics;
}

export interface Bindings {
  readonly Bindings: { readonly incoming: IncomingMessage };
  readonly Variables: {
    requestId: string;
    client: Client | undefined;
    /** More fields of the request's line in the log. */
    note: Record<string, unknown>;
  };
}

export type AppContext = Context<Bindings>;

/** Whether a request's headers say that it uses Anthropic's API. */
export const isAnthropic = (c: AppContext): boolean => c.req.header("anthropic-version") !== undefined;

export const protocolFor = (c: AppContext): Protocol => protocolOf(c.req.path, isAnthropic(c));

/** The client whose key a request has. @throws ApiError 401 where it has none and one is needed */
export function identify(c: AppContext, keys: HttpOptions["keys"]): Client | undefined {
  if (keys === undefined) return undefined;
  const key = /^Bearer +(.+)$/i.exec(c.req.header("authorization") ?? "")?.[1] ?? c.req.header("x-api-key") ?? "";
  const client = keys.clientOf(key);
  if (client === undefined)
    throw new ApiError(401, "a valid API key is needed (Authorization: Bearer KEY)", { code: "invalid_api_key" });
  return client;
}

/**
 * The error and the body that a failed request is answered with. What the client must not see is logged instead.
 */
export function failure(error: unknown, c: AppContext, { logger, metrics }: Pick<HttpOptions, "logger" | "metrics">) {
  const known = error instanceof ApiError ? error : new ApiError(500, "the request failed; the log says why");
  const cause = known === error ? known.details.cause : error;
  if (cause !== undefined) logger.error({ requestId: c.get("requestId"), error: String(cause) });
  metrics.failures.inc({ status: known.status });
  return { known, body: protocolFor(c).errorBody(known, c.get("requestId")) };
}

const MAX_WARNINGS = 8;

/** The context of a request, which is aborted when the client leaves or the time is up. @returns also what ends its timer */
export function openContext(
  c: AppContext,
  options: HttpOptions,
): { readonly context: RequestContext; readonly end: () => void } {
  const client = c.get("client");
  const note = c.get("note");
  const { signal, end } = abortSignal(c, options.timeoutSeconds);
  const context: RequestContext = {
    client: client?.name ?? c.env.incoming.socket.remoteAddress ?? "",
    signal,
    overflow: options.overflow,
    metrics: options.metrics,
    warn: warner(c),
    onTokens: (count) => {
      note.tokens = Number(note.tokens ?? 0) + count;
      client?.spend(count);
    },
    onText: options.logPrompts ? textLogger(note) : undefined,
  };
  return { context, end };
}

/** A signal that is aborted when the client leaves or the time is up. */
function abortSignal(c: AppContext, timeoutSeconds: number) {
  const abort = new AbortController();
  const late = new ApiError(408, `the request took longer than ${timeoutSeconds} seconds`, { code: "timeout" });
  const timer = setTimeout(() => abort.abort(late), 1000 * timeoutSeconds);
  const onLeave = () => abort.abort(new ApiError(408, "the client left"));
  const { signal } = c.req.raw;
  if (signal.aborted) onLeave();
  signal.addEventListener("abort", onLeave, { once: true });
  const end = () => {
    clearTimeout(timer);
    signal.removeEventListener("abort", onLeave);
  };
  return { signal: abort.signal, end };
}

/** Adds warnings to the header Warning (RFC 7234, section 5.5: code 299, no agent). */
function warner(c: AppContext): RequestContext["warn"] {
  const warnings = new Set<string>();
  return (text) => {
    if (warnings.size < MAX_WARNINGS) warnings.add(`299 - ${JSON.stringify(text.replace(/[^ -~]/g, "?"))}`);
    c.header("warning", [...warnings].join(", "));
  };
}

/** Collects prompt and answer for the log. */
function textLogger(note: Record<string, unknown>): NonNullable<RequestContext["onText"]> {
  const texts: Record<string, string> = {};
  return (kind, text) => {
    texts[kind] = (texts[kind] ?? "") + text;
    Object.assign(note, texts);
  };
}
