import { randomUUID } from "node:crypto";
import { ApiError } from "./errors.js";
import { FairQueue } from "./fair-queue.js";
import type { HostedModel, Piece, TokenLogprob, WriteRequest, Written, WrittenToken } from "./hosted-model.js";
import { Metrics } from "./metrics.js";
import type { ChatBody, CompletionBody } from "./schemas.js";

/** What of a request does not come with its body. */
export interface RequestContext {
  /** Whose turn it is in the queue. */
  readonly client: string;
  /** Aborted when the client leaves or the time is up. */
  readonly signal: AbortSignal;
}

export interface ServiceOptions {
  /** The name that the API calls the model. */
  readonly name: string;
  /** Requests that are computed together. */
  readonly slots: number;
  /** Requests that may wait. */
  readonly queueLimit: number;
}

/** A part of a stream: an object of the API, in the order in which they are sent. */
export type StreamPart = Readonly<Record<string, unknown>>;

const DEFAULT_COMPLETION_TOKENS = 16;
const now = (): number => Math.floor(Date.now() / 1000);

interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  readonly prompt_tokens_details: { readonly cached_tokens: number };
}

/** One text of several that a request asks for. */
interface Choice {
  readonly index: number;
  readonly request: Omit<WriteRequest, "signal">;
  /** Put before the text. */
  readonly echo: string;
  /** How many of the most probable tokens to tell of for each token of the prompt. */
  readonly promptLogprobs?: number | undefined;
}

/** A model behind OpenAI's API: bodies in, objects of the API out. */
export class InferenceService {
  readonly metrics = new Metrics();
  readonly started = now();
  private readonly queue: FairQueue;

  constructor(
    readonly model: HostedModel,
    readonly options: ServiceOptions,
  ) {
    this.queue = new FairQueue(options.slots, options.queueLimit);
    const { metrics, queue } = this;
    metrics.gauge("vllm:num_requests_running", "Requests that are computed", () => queue.running);
    metrics.gauge("vllm:num_requests_waiting", "Requests that wait", () => queue.waiting);
    metrics.gauge("vllm:kv_cache_usage_perc", "Share of the cache that holds something", () => model.cacheUse);
  }

  /** Requests that are computed or wait. */
  get busy(): number {
    return this.queue.running + this.queue.waiting;
  }

  /** @throws ApiError 404 for another model's name */
  checkModel(name: string | undefined): void {
    if (name !== undefined && name !== this.options.name)
      throw new ApiError(404, `there is no model ${name} here, only ${this.options.name}`, {
        ...{ param: "model", code: "model_not_found" },
      });
  }

  /** Answers /v1/completions at once. */
  async completion(body: CompletionBody, context: RequestContext): Promise<StreamPart> {
    const id = `cmpl-${randomUUID()}`;
    const results = await this.writeAll(this.completionChoices(body), context);
    const choices = results.map(({ choice, text, tokens, written }) => ({
      ...{ index: choice.index, text: choice.echo + text, finish_reason: written.finishReason },
      logprobs:
        typeof body.logprobs === "number" ? completionLogprobs(tokens, body.echo ? 0 : choice.echo.length) : null,
    }));
    return {
      id,
      object: "text_completion",
      created: now(),
      model: this.options.name,
      choices,
      usage: usageOf(results),
    };
  }

  /** The same as it is written. */
  async *completionStream(body: CompletionBody, context: RequestContext): AsyncGenerator<StreamPart> {
    const base = { id: `cmpl-${randomUUID()}`, object: "text_completion", created: now(), model: this.options.name };
    const choices = this.completionChoices(body);
    const part = (
      index: number,
      text: string,
      tokens: readonly WrittenToken[],
      reason: string | null,
      offset: number,
    ) => ({
      ...base,
      choices: [
        {
          ...{ index, text, finish_reason: reason },
          logprobs: typeof body.logprobs === "number" && tokens.length > 0 ? completionLogprobs(tokens, offset) : null,
        },
      ],
    });
    if (body.echo && typeof body.logprobs === "number")
      throw new ApiError(400, "a stream has no logprobs of the prompt: ask without stream or echo", {
        param: "stream",
      });
    const offsets = choices.map(({ echo }) => echo.length);
    for (const { index, echo } of choices) if (echo !== "") yield part(index, echo, [], null, 0);
    yield* this.streamAll(
      choices,
      context,
      base,
      body.stream_options?.include_usage === true,
      (index, piece, written) => {
        const offset = offsets[index] ?? 0;
        offsets[index] = offset + (piece?.text.length ?? 0);
        return part(index, piece?.text ?? "", piece?.tokens ?? [], written?.finishReason ?? null, offset);
      },
    );
  }

  /** Answers /v1/chat/completions at once. */
  async chat(body: ChatBody, context: RequestContext): Promise<StreamPart> {
    const id = `chatcmpl-${randomUUID()}`;
    const results = await this.writeAll(await this.chatChoices(body), context);
    const choices = results.map(({ choice, text, tokens, written }) => ({
      ...{ index: choice.index, finish_reason: written.finishReason },
      message: { role: "assistant", content: text, refusal: null },
      logprobs:
        body.logprobs === true
          ? { content: tokens.flatMap((token) => (token ? [chatLogprob(token)] : [])), refusal: null }
          : null,
    }));
    return {
      id,
      object: "chat.completion",
      created: now(),
      model: this.options.name,
      choices,
      usage: usageOf(results),
    };
  }

  /** The same as it is written. */
  async *chatStream(body: ChatBody, context: RequestContext): AsyncGenerator<StreamPart> {
    const base = {
      id: `chatcmpl-${randomUUID()}`,
      object: "chat.completion.chunk",
      created: now(),
      model: this.options.name,
    };
    const choices = await this.chatChoices(body);
    const part = (index: number, delta: object, tokens: readonly WrittenToken[], reason: string | null) => ({
      ...base,
      choices: [
        {
          ...{ index, delta, finish_reason: reason },
          logprobs:
            body.logprobs === true && tokens.length > 0 ? { content: tokens.map(chatLogprob), refusal: null } : null,
        },
      ],
    });
    const begun = new Set<number>();
    yield* this.streamAll(
      choices,
      context,
      base,
      body.stream_options?.include_usage === true,
      (index, piece, written) => {
        const role = begun.has(index) ? {} : { role: "assistant" };
        begun.add(index);
        const delta = piece === undefined ? role : { ...role, content: piece.text };
        return part(index, delta, piece?.tokens ?? [], written?.finishReason ?? null);
      },
    );
  }

  private completionChoices(body: CompletionBody): Choice[] {
    this.checkModel(body.model);
    const { prompt } = body;
    const prompts =
      typeof prompt === "string"
        ? [prompt]
        : typeof prompt[0] === "number"
          ? [prompt as number[]]
          : (prompt as string[]);
    return prompts.flatMap((one, i) => {
      const tokens = typeof one === "string" ? this.model.promptOf(one) : this.model.tokensOf(one, "prompt");
      const echo = body.echo ? (typeof one === "string" ? one : this.model.detokenize(one)) : "";
      return this.repeated(body, {
        ...{ prompt: tokens, maxTokens: body.max_tokens ?? DEFAULT_COMPLETION_TOKENS },
        ...{ topLogprobs: body.logprobs ?? undefined },
      }).map((request, j) => ({
        ...{ index: i * body.n + j, request, echo },
        promptLogprobs: body.echo ? (body.logprobs ?? undefined) : undefined,
      }));
    });
  }

  private async chatChoices(body: ChatBody): Promise<Choice[]> {
    this.checkModel(body.model);
    if (typeof body.top_logprobs === "number" && body.logprobs !== true)
      throw new ApiError(400, "top_logprobs needs logprobs: true", { param: "top_logprobs", code: "invalid_value" });
    const messages = body.messages.map(({ content, ...rest }) => ({
      ...{ ...rest, role: rest.role === "developer" ? "system" : rest.role },
      content: typeof content === "string" ? content : content.map(({ text }) => text).join(""),
    }));
    const format = body.response_format?.type ?? "text";
    const grammar =
      format === "text"
        ? undefined
        : await this.model.jsonGrammar(
            body.response_format?.type === "json_schema" ? body.response_format.json_schema.schema : undefined,
          );
    const requests = this.repeated(body, {
      prompt: this.model.chatPrompt(messages),
      maxTokens: body.max_completion_tokens ?? body.max_tokens ?? undefined,
      ...{ topLogprobs: body.logprobs === true ? (body.top_logprobs ?? 0) : undefined, grammar },
    });
    return requests.map((request, index) => ({ index, request, echo: "" }));
  }

  /** What is to be written, `n` times with other seeds. */
  private repeated(
    body: CompletionBody | ChatBody,
    own: Pick<WriteRequest, "prompt" | "maxTokens" | "topLogprobs" | "grammar">,
  ): Omit<WriteRequest, "signal">[] {
    const stops = typeof body.stop === "string" ? [body.stop] : (body.stop ?? []);
    return Array.from({ length: body.n }, (_, i) => ({
      ...own,
      temperature: body.temperature,
      ...{ topP: body.top_p ?? undefined, topK: body.top_k ?? undefined, minP: body.min_p ?? undefined },
      seed: typeof body.seed === "number" ? body.seed + i : undefined,
      ...{ presencePenalty: body.presence_penalty ?? undefined, frequencyPenalty: body.frequency_penalty ?? undefined },
      ...{ logitBias: body.logit_bias ?? undefined, stops: stops.filter((stop) => stop !== "") },
    }));
  }

  private writeAll(choices: readonly Choice[], context: RequestContext) {
    return Promise.all(
      choices.map(async (choice) => {
        let text = "";
        const tokens: (WrittenToken | undefined)[] = [];
        const pieces = this.write(choice, context, (known) => tokens.push(...known));
        for (;;) {
          const { done, value } = await pieces.next();
          if (done) return { choice, text, tokens, written: value };
          text += value.text;
          tokens.push(...value.tokens);
        }
      }),
    );
  }

  /** The pieces of all choices as they come, each choice's end, and the usage where it is wanted. */
  private async *streamAll(
    choices: readonly Choice[],
    context: RequestContext,
    base: object,
    includeUsage: boolean,
    part: (index: number, piece: Piece | undefined, written: Written | undefined) => StreamPart,
  ): AsyncGenerator<StreamPart> {
    const abort = new AbortController();
    const forward = () => abort.abort(context.signal.reason);
    context.signal.addEventListener("abort", forward, { once: true }); // AbortSignal.any leaks in Node 20
    const own = { ...context, signal: abort.signal };
    const running = choices.map((choice) => ({ choice, pieces: this.write(choice, own) }));
    const next = async (one: (typeof running)[number]) => ({ one, result: await one.pieces.next() });
    const coming = new Map(running.map((one) => [one, next(one)]));
    const results: { readonly written: Written }[] = [];
    try {
      while (coming.size > 0) {
        const { one, result } = await Promise.race(coming.values());
        coming.delete(one);
        if (result.done) {
          results.push({ written: result.value });
          yield part(one.choice.index, undefined, result.value);
        } else {
          coming.set(one, next(one));
          yield part(one.choice.index, result.value, undefined);
        }
      }
      if (includeUsage) yield { ...base, choices: [], usage: usageOf(results) };
    } finally {
      context.signal.removeEventListener("abort", forward);
      abort.abort(new ApiError(408, "the client left"));
      await Promise.allSettled(coming.values());
    }
  }

  /** Writes a choice when it is its turn, and counts what was done. */
  private async *write(
    { request, promptLogprobs }: Choice,
    { client, signal }: RequestContext,
    onPrompt?: (tokens: readonly (WrittenToken | undefined)[]) => void,
  ): AsyncGenerator<Piece, Written> {
    const { metrics } = this;
    const began = performance.now();
    const leave = await this.queue.enter(client, signal);
    let last = began;
    try {
      if (promptLogprobs !== undefined) {
        const known = await this.model.promptLogprobs(request.prompt, promptLogprobs, signal);
        onPrompt?.(this.model.begins(request.prompt) ? known.slice(1) : known);
      }
      const pieces = this.model.write({ ...request, signal });
      for (;;) {
        const { done, value } = await pieces.next();
        const time = performance.now();
        if (done) {
          metrics.promptTokens.inc(value.promptTokens);
          metrics.generatedTokens.inc(value.completionTokens);
          metrics.cacheQueries.inc(value.promptTokens);
          metrics.cacheHits.inc(value.cachedTokens);
          metrics.latency.observe((time - began) / 1000);
          metrics.successes.inc({ finished_reason: value.finishReason });
          return value;
        }
        (last === began ? metrics.firstToken : metrics.betweenTokens).observe((time - last) / 1000);
        last = time;
        yield value;
      }
    } finally {
      leave();
    }
  }
}

function usageOf(results: readonly { readonly written: Written }[]): Usage {
  const sum = (of: (written: Written) => number) => results.reduce((total, { written }) => total + of(written), 0);
  const [prompt, completion] = [sum(({ promptTokens }) => promptTokens), sum((one) => one.completionTokens)];
  return {
    ...{ prompt_tokens: prompt, completion_tokens: completion, total_tokens: prompt + completion },
    prompt_tokens_details: { cached_tokens: sum(({ cachedTokens }) => cachedTokens) },
  };
}

const chatLogprob = ({ token, bytes, logprob, top }: WrittenToken) => ({
  ...{ token, bytes, logprob },
  top_logprobs: top.map(({ token: other, bytes: otherBytes, logprob: own }) => ({
    ...{ token: other, bytes: otherBytes, logprob: own },
  })),
});

/** The older form, in lists. Of a token of which nothing is known the logprob is null. @param offset characters before */
function completionLogprobs(tokens: readonly (WrittenToken | undefined)[], offset: number) {
  let at = offset;
  const offsets = tokens.map((token) => {
    const own = at;
    at += token?.width ?? 0;
    return own;
  });
  const byText = (top: readonly TokenLogprob[]) =>
    Object.fromEntries(top.map(({ token, logprob }) => [token, logprob]));
  return {
    tokens: tokens.map((token) => token?.token ?? ""),
    token_logprobs: tokens.map((token) => token?.logprob ?? null),
    top_logprobs: tokens.map((token) => (token === undefined ? null : byText(token.top))),
    text_offset: offsets,
  };
}
