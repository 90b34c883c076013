import type { z } from "zod";
import type { Conversation } from "../engine/conversation.js";
import type { LoadedModel, ModelPool } from "../engine/model-pool.js";
import type { RequestContext } from "../engine/writer.js";
import { ApiError } from "../errors.js";

/** What is sent of a stream: JSON, or a text as it stands. */
export interface ServerEvent {
  readonly event?: string | undefined;
  readonly data: unknown;
}

/** An answer at once, or as it is written. */
export type Reply = { readonly json: unknown } | { readonly events: AsyncGenerator<ServerEvent> };

/** What endpoints work with. */
export interface Service {
  readonly pool: ModelPool;
  /** Most tokens of an answer; no limit but the context where it is not set. */
  readonly maxTokens?: number | undefined;
}

/** Something that can be asked for by POST. */
export interface Endpoint<Body = unknown> {
  readonly path: string;
  readonly tag: "OpenAI" | "Anthropic" | "Ollama" | "Tokens";
  readonly summary: string;
  readonly body: z.ZodType<Body>;
  /** What an answer is, for the documentation. */
  readonly reply: z.ZodType;
  /** Whether it can be answered as a stream. */
  readonly streams: boolean;
  answer(body: Body, service: Service, context: RequestContext): Promise<Reply>;
}

/** Keeps the type of a body together with what answers it. */
export const endpoint = <Body>(definition: Endpoint<Body>): Endpoint => definition as unknown as Endpoint;

/** Answers with a model at once. */
export const whole = async (
  { pool }: Service,
  name: string | undefined,
  { signal }: RequestContext,
  work: (model: LoadedModel) => Promise<unknown>,
): Promise<Reply> => pool.use(name, signal, async (model) => ({ json: await work(model) }));

/** Answers with a model as it is written. */
export function streamed(
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

/** How long an answer may become. @throws ApiError 400 for more than the service allows */
export function allowedTokens({ maxTokens }: Service, asked: number | undefined, param: string): number | undefined {
  if (asked !== undefined && maxTokens !== undefined && asked > maxTokens)
    throw new ApiError(400, `${param}: an answer may have ${maxTokens} tokens at most here`, {
      param,
      code: "invalid_value",
    });
  return asked ?? maxTokens;
}

export const now = (): number => Math.floor(Date.now() / 1000);

/** What a conversation is where nothing else is asked for. */
export const PLAIN: Pick<Conversation, "tools" | "toolChoice" | "parallelCalls"> = {
  tools: [],
  toolChoice: "auto",
  parallelCalls: true,
};
