import { ApiError } from "../errors.js";
import type { Metrics } from "../metrics.js";
import type { Overflow, ToolCall } from "./conversation.js";
import type { LoadedModel } from "./model-pool.js";
import type { AnswerPart, CallReader } from "./tools.js";
import type { WriteTask } from "./write-task.js";
import type { TextChunk, WriteResult, WrittenToken } from "./writing.js";

/** What belongs to a request beside its body. */
export interface RequestContext {
  /** Name under which the request queues. */
  readonly client: string;
  /** Aborted when the client leaves or the time is up. */
  readonly signal: AbortSignal;
  /** What to do with a prompt that does not fit. */
  readonly overflow: Overflow;
  readonly metrics: Metrics;
  /** Called with the number of tokens that were computed. */
  readonly onTokens: (count: number) => void;
  /** Warns the client, for instance of something that was left out. */
  readonly warn: (text: string) => void;
  /** Called with the prompt and with each chunk of the answer, where they are logged. */
  readonly onText?: ((kind: "prompt" | "answer", text: string) => void) | undefined;
}

/** Numbers of tokens that were read and written. */
export interface Usage {
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly completionTokens: number;
}

/** What comes next of an answer, as it is written. */
export type AnswerUpdate =
  | { readonly kind: "text"; readonly text: string; readonly tokens: readonly WrittenToken[] }
  | { readonly kind: "call"; readonly call: ToolCall }
  | { readonly kind: "end"; readonly result: WriteResult; readonly hasCalls: boolean };

/** Writes a text when its turn in the queue comes, and updates the metrics. */
export async function* write(
  { model, queue }: LoadedModel,
  task: WriteTask,
  context: RequestContext,
): AsyncGenerator<AnswerUpdate> {
  const { metrics, signal } = context;
  const began = performance.now();
  const leave = await queue.enter(context.client, signal);
  let last = began;
  let [written, hasEnded, isRefused] = [0, false, false];
  let chunks: AsyncGenerator<TextChunk, WriteResult> | undefined;
  try {
    metrics.queueTime.observe((performance.now() - began) / 1000);
    context.onText?.("prompt", model.detokenize(task.request.prompt));
    if (task.promptLogprobs !== undefined) {
      const known = await model.promptLogprobs(task.request.prompt, task.promptLogprobs, signal);
      yield { kind: "text", text: "", tokens: model.begins(task.request.prompt) ? known.slice(1) : known };
    }
    const splitter = new AnswerSplitter(task.calls?.());
    chunks = model.write({ ...task.request, signal });
    for (;;) {
      const { done, value } = await chunks.next();
      const time = performance.now();
      if (done) {
        yield* splitter.end(value.finishReason === "length");
        hasEnded = true;
        recordEnd(value, time - began, context);
        yield { kind: "end", result: value, hasCalls: splitter.hasCalls };
        return;
      }
      (last === began ? metrics.firstToken : metrics.betweenTokens).observe((time - last) / 1000);
      last = time;
      written = value.written;
      context.onText?.("answer", value.text);
      yield* splitter.push(value);
    }
  } catch (error) {
    isRefused = error instanceof ApiError && error.status === 400; // nothing was computed
    throw error;
  } finally {
    await chunks?.return(undefined as never); // frees its slot before another request gets the place
    if (chunks !== undefined && !hasEnded && !isRefused) context.onTokens(task.request.prompt.length + written); // cut off: its work counts
    leave();
  }
}

function recordEnd(result: WriteResult, milliseconds: number, { metrics, onTokens }: RequestContext): void {
  metrics.promptTokens.inc(result.promptTokens);
  metrics.generatedTokens.inc(result.completionTokens);
  metrics.cacheQueries.inc(result.promptTokens);
  metrics.cacheHits.inc(result.cachedTokens);
  metrics.latency.observe(milliseconds / 1000);
  metrics.successes.inc({ finished_reason: result.finishReason });
  onTokens(result.promptTokens + result.completionTokens);
}

/** Splits a text into texts and calls of tools. Tokens go with the text that they end in, those of calls with none. */
class AnswerSplitter {
  hasCalls = false;
  private tokens: WrittenToken[] = [];

  constructor(private readonly calls: CallReader | undefined) {}

  *push({ text, tokens }: TextChunk): Generator<AnswerUpdate> {
    if (this.calls === undefined) yield { kind: "text", text, tokens };
    else {
      this.tokens.push(...tokens);
      yield* this.updates(this.calls.push(text));
    }
  }

  /** @param isCut whether a limit ended the text */
  *end(isCut: boolean): Generator<AnswerUpdate> {
    if (this.calls !== undefined) yield* this.updates(this.calls.end(isCut));
  }

  private *updates(parts: readonly AnswerPart[]): Generator<AnswerUpdate> {
    for (const part of parts) {
      if ("call" in part) {
        this.hasCalls = true;
        yield { kind: "call", call: part.call };
      } else yield { kind: "text", text: part.text, tokens: this.tokens };
      this.tokens = [];
    }
  }
}

/** A complete answer. */
export interface Answer {
  readonly text: string;
  readonly tokens: readonly WrittenToken[];
  readonly calls: readonly ToolCall[];
  /** Texts and calls in the order in which they were written. */
  readonly parts: readonly (string | ToolCall)[];
  readonly result: WriteResult;
}

/** Writes several texts to their ends. When one fails the others end, too. */
export async function writeAll(
  model: LoadedModel,
  tasks: readonly WriteTask[],
  context: RequestContext,
): Promise<Answer[]> {
  const { signal, end } = ownSignal(context);
  const running = tasks.map((task) => writeOne(model, task, { ...context, signal }));
  try {
    return await Promise.all(running);
  } finally {
    end(new ApiError(408, "another text of the request has failed"));
    await Promise.allSettled(running);
  }
}

/** A signal that aborts with the request's, or when it is ended. */
function ownSignal(context: RequestContext): { readonly signal: AbortSignal; readonly end: (reason: Error) => void } {
  const abort = new AbortController();
  const forward = () => abort.abort(context.signal.reason);
  if (context.signal.aborted) forward();
  context.signal.addEventListener("abort", forward, { once: true }); // AbortSignal.any leaks in Node 20
  return {
    signal: abort.signal,
    end: (reason) => {
      context.signal.removeEventListener("abort", forward);
      abort.abort(reason);
    },
  };
}

/** Writes a text to its end. @param onUpdate called with each part of it as it is written */
export async function writeOne(
  model: LoadedModel,
  task: WriteTask,
  context: RequestContext,
  onUpdate: (update: AnswerUpdate) => void = () => {},
): Promise<Answer> {
  const tokens: WrittenToken[] = [];
  const parts: (string | ToolCall)[] = [];
  for await (const update of write(model, task, context)) {
    onUpdate(update);
    if (update.kind === "end") {
      const texts = parts.filter((part) => typeof part === "string");
      const calls = parts.filter((part) => typeof part !== "string");
      return { text: texts.join(""), tokens, calls, parts, result: update.result };
    }
    if (update.kind === "call") parts.push(update.call);
    else {
      tokens.push(...update.tokens);
      const last = parts.at(-1);
      if (typeof last === "string") parts[parts.length - 1] = last + update.text;
      else if (update.text !== "") parts.push(update.text);
    }
  }
  throw new ApiError(500, "an answer has no end");
}

/** Writes several texts at once. @returns their updates in the order in which they come */
export async function* streamAll(
  model: LoadedModel,
  tasks: readonly WriteTask[],
  context: RequestContext,
): AsyncGenerator<{ readonly index: number; readonly update: AnswerUpdate }> {
  const { signal, end } = ownSignal(context);
  const ownContext = { ...context, signal };
  const running = tasks.map((task, index) => ({ index, updates: write(model, task, ownContext) }));
  const next = async (text: (typeof running)[number]) => ({ text, result: await text.updates.next() });
  const coming = new Map(running.map((text) => [text, next(text)]));
  try {
    while (coming.size > 0) {
      const { text, result } = await Promise.race(coming.values());
      coming.delete(text);
      if (result.done) continue;
      coming.set(text, next(text));
      yield { index: text.index, update: result.value };
    }
  } finally {
    end(new ApiError(408, "the client left"));
    await Promise.allSettled(coming.values());
    await Promise.allSettled(running.map(({ updates }) => updates.return(undefined)));
  }
}

/**
 * The usage of several answers together. A prompt counts once, however many answers it has.
 * @param results in the order of the answers @param answers of each prompt, one after the other
 */
export function usageOf(results: readonly WriteResult[], answers = 1): Usage {
  const sum = (count: (result: WriteResult) => number, of = results) =>
    of.reduce((total, result) => total + count(result), 0);
  const firsts = results.filter((_, i) => i % answers === 0);
  return {
    promptTokens: sum(({ promptTokens }) => promptTokens, firsts),
    cachedTokens: sum(({ cachedTokens }) => cachedTokens, firsts),
    completionTokens: sum(({ completionTokens }) => completionTokens),
  };
}
