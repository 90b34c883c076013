import type { z } from "zod";
import type { Conversation } from "../engine/conversation.js";
import type { LoadedModel, ModelPool } from "../engine/model-pool.js";
import type { RequestContext } from "../engine/writer.js";
import { ApiError } from "../errors.js";

/** An event of a stream. */
export interface ServerEvent {
  readonly event?: string | undefined;
  /** Sent as JSON, a string as it is. */
  readonly data: unknown;
}

/** An answer as a whole, or as it is written. */
export type Reply = { readonly json: unknown } | { readonly events: AsyncGenerator<ServerEvent> };

/** What endpoints have access to. */
export interface Service {
  readonly pool: ModelPool;
  /** Tokens that an answer may have; as many as fit in the context where undefined. */
  readonly maxTokens?: number | undefined;
}

/** An endpoint that is called by POST. */
export interface Endpoint<Body = unknown> {
  readonly path: string;
  readonly tag: "OpenAI" | "Anthropic" | "Ollama" | "Tokens";
  readonly summary: string;
  readonly body: z.ZodType<Body>;
  /** Schema of an answer, for the documentation. */
  readonly reply: z.ZodType;
  /** Whether it can be answered as a stream. */
  readonly streams: boolean;
  answer(body: Body, service: Service, context: RequestContext): Promise<Reply>;
}

/** Defines an endpoint; checks that its schema and its answer agree about the body. */
export const endpoint = <Body>(definition: Endpoint<Body>): Endpoint => definition as unknown as Endpoint;

/** Answers with a model, as a whole. */
export const replyWhole = async (
  { pool }: Service,
  name: string | undefined,
  { signal }: RequestContext,
  work: (model: LoadedModel) => Promise<unknown>,
): Promise<Reply> => pool.use(name, signal, async (model) => ({ json: await work(model) }));

/** Answers with a model, as a stream. */
export function replyStreamed(
  { pool }: Service,
  name: string | undefined,
  { signal }: RequestContext,
  work: (model: LoadedModel) => AsyncGenerator<ServerEvent>,
): Reply {
  const events = async function* (): AsyncGenerator<ServerEvent> {
    const { model, release } = await pool.lease(name, signal);
    try {
      yield* work(model);
    } finally {
      release();
    }
  };
  return { events: events() };
}

/** Tokens that an answer may have. @param param the field that asks for it @throws ApiError 400 for more than the service allows */
export function allowedTokens({ maxTokens }: Service, asked: number | undefined, param: string): number | undefined {
  if (asked !== undefined && maxTokens !== undefined && asked > maxTokens)
    throw new ApiError(400, `${param}: this service allows answers of at most ${maxTokens} tokens`, {
      param,
      code: "invalid_value",
    });
  return asked ?? maxTokens;
}

/** Unix time in seconds. */
export const now = (): number => Math.floor(Date.now() / 1000);

/** A conversation without tools. */
export const PLAIN: Pick<Conversation, "tools" | "toolChoice" | "parallelCalls"> = {
  tools: [],
  toolChoice: "auto",
  parallelCalls: true,
};
