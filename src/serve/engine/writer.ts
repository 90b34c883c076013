import type { Token } from "node-llama-cpp";
import { ApiError } from "../errors.js";
import { either, GrammarRules, jsonGrammar, literal, regexBody } from "../grammar/index.js";
import type { Metrics } from "../metrics.js";
import type { Conversation, Format, Overflow, ToolCall, Turn } from "./conversation.js";
import type { LoadedModel } from "./model-pool.js";
import {
  CallReader,
  callableTools,
  callStyle,
  callsGrammar,
  describesTools,
  plainMessages,
  templateMessages,
} from "./tools.js";
import type { Piece, WriteRequest, Written, WrittenToken } from "./written.js";

/** What of a request does not come with its body. */
export interface RequestContext {
  /** Whose turn it is in the queue. */
  readonly client: string;
  /** Aborted when the client leaves or the time is up. */
  readonly signal: AbortSignal;
  /** What is done with a prompt that does not fit. */
  readonly overflow: Overflow;
  readonly metrics: Metrics;
  /** Told of the tokens that were computed. */
  readonly onTokens: (count: number) => void;
  /** Tells the client of something that was left out. */
  readonly warn: (text: string) => void;
  /** Told of what was asked and what was answered, where that is logged. */
  readonly onText?: ((kind: "prompt" | "answer", text: string) => void) | undefined;
}

/** Tokens that were read and written. */
export interface Usage {
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly completionTokens: number;
}

/** Something of an answer, as it is written. */
export type Said =
  | { readonly kind: "text"; readonly text: string; readonly tokens: readonly WrittenToken[] }
  | { readonly kind: "call"; readonly call: ToolCall }
  | { readonly kind: "end"; readonly written: Written; readonly called: boolean };

/** A text that is to be written. */
export interface Task {
  readonly request: Omit<WriteRequest, "signal">;
  /** How many of the most probable tokens to tell of for each token of the prompt. */
  readonly promptLogprobs?: number | undefined;
  /** Finds calls of tools in it. */
  readonly calls?: (() => CallReader) | undefined;
}

/** What a conversation asks a model to write. @throws ApiError for what it cannot */
export function conversationTask({ model }: LoadedModel, conversation: Conversation, overflow: Overflow): Task {
  const { sampling, format, maxTokens, topLogprobs, toolChoice, parallelCalls } = conversation;
  const { templateVariables: variables } = conversation;
  const tools = callableTools(conversation);
  const style = callStyle(model.templateSource);
  const mode = typeof toolChoice === "string" ? toolChoice : toolChoice.mode;
  const forced = tools.length > 0 && mode !== "auto";
  if (tools.length > 0 && format !== undefined && forced)
    throw new ApiError(400, "an answer cannot be a call of a tool and of a given form", { param: "tool_choice" });
  const native = describesTools(model.templateSource);
  const described = tools.map(({ name, description = "", parameters }) => ({
    type: "function",
    function: { name, description, parameters },
  }));
  const { turns: given, begun } = conversation.continues
    ? withoutBegun(conversation.turns)
    : { turns: conversation.turns, begun: "" };
  const opening = begun + (forced ? style.open : "");
  const promptOf = (turns: readonly Turn[]) =>
    native
      ? model.chatPrompt(templateMessages(turns), { tools: described, opening, variables })
      : model.chatPrompt(plainMessages(turns, tools), { opening, variables });
  const prompt = fitting(given, promptOf, model.contextSize, maxTokens, conversation.overflow ?? overflow);
  const calling = tools.length === 0 ? undefined : callsGrammar(tools, style, parallelCalls);
  const after = style.open === "" ? undefined : style.open;
  const grammar =
    calling === undefined || (!forced && (after === undefined || format !== undefined))
      ? format && formatGrammar(format)
      : { text: calling, param: "tools", after: forced ? undefined : after };
  const special = tools.length > 0;
  return {
    request: { ...sampling, prompt, maxTokens, topLogprobs, grammar, special },
    calls: () => new CallReader(tools, style, forced),
  };
}

/** The turns before an answer that a client has begun. */
function withoutBegun(turns: readonly Turn[]): { readonly turns: readonly Turn[]; readonly begun: string } {
  const last = turns.at(-1);
  if (turns.length < 2 || last?.role !== "assistant" || last.calls.length > 0) return { turns, begun: "" };
  return { turns: turns.slice(0, -1), begun: last.content.trimEnd() };
}

/** What a text must look like, as a grammar. */
export function formatGrammar(format: Format): NonNullable<WriteRequest["grammar"]> {
  switch (format.kind) {
    case "json":
      return { text: jsonGrammar(format.schema, format), param: format.param };
    case "grammar":
      return { text: format.text, param: format.param };
    default: {
      const rules = new GrammarRules();
      const [body, param] =
        format.kind === "regex"
          ? [regexBody(rules, format.pattern, format.param), format.param]
          : [either(format.options.map(literal)), "guided_choice"];
      rules.add(body, "root");
      return { text: rules.toString(), param };
    }
  }
}

/** Of a context, what an answer of unknown length is sure to get where the prompt is cut. */
const ANSWER_SHARE = 4;

/** The prompt of a conversation: where it is too long, without its oldest turns if they may be left out. */
function fitting(
  turns: readonly Turn[],
  promptOf: (turns: readonly Turn[]) => Token[],
  contextSize: number,
  maxTokens: number | undefined,
  overflow: Overflow,
): Token[] {
  const whole = promptOf(turns);
  const share = Math.floor(contextSize / ANSWER_SHARE);
  const room = contextSize - Math.min(maxTokens ?? share, share);
  if (overflow === "refuse" || whole.length < room) return whole;
  const first = turns[0]?.role === "system" ? 1 : 0;
  const starts = turns.flatMap(({ role }, i) => (i > first && role === "user" ? [i] : [])); // an answer needs its question
  let [low, high] = [0, starts.length - 1];
  let best = whole;
  while (low <= high) {
    const middle = (low + high) >> 1;
    const prompt = promptOf([...turns.slice(0, first), ...turns.slice(starts[middle])]);
    if (prompt.length < room || best === whole || prompt.length < best.length) best = prompt;
    if (prompt.length < room) high = middle - 1;
    else low = middle + 1;
  }
  return best;
}

/** The end of a prompt of which the beginning must be left out. */
export function fittingTokens({ model }: LoadedModel, prompt: Token[], maxTokens: number, overflow: Overflow): Token[] {
  const share = Math.floor(model.contextSize / ANSWER_SHARE);
  const room = model.contextSize - Math.min(maxTokens, share);
  if (overflow === "refuse" || prompt.length < room) return prompt;
  const begin = model.begins(prompt) ? prompt.slice(0, 1) : [];
  return [...begin, ...prompt.slice(prompt.length - room + begin.length + 1)];
}

/** The same task with another seed for each. */
export const repeatedTask = (task: Task, count: number): Task[] =>
  Array.from({ length: count }, (_, i) => {
    const { seed, ...request } = task.request;
    return { ...task, request: { ...request, seed: seed === undefined ? undefined : (seed + i) % 2 ** 32 } };
  });

/** Writes when it is its turn, and counts what was done. */
export async function* write({ model, queue }: LoadedModel, task: Task, context: RequestContext): AsyncGenerator<Said> {
  const { metrics, signal } = context;
  const began = performance.now();
  const leave = await queue.enter(context.client, signal);
  let last = began;
  let pieces: AsyncGenerator<Piece, Written> | undefined;
  try {
    metrics.queueTime.observe((performance.now() - began) / 1000);
    context.onText?.("prompt", model.detokenize(task.request.prompt));
    if (task.promptLogprobs !== undefined) {
      const known = await model.promptLogprobs(task.request.prompt, task.promptLogprobs, signal);
      yield { kind: "text", text: "", tokens: model.begins(task.request.prompt) ? known.slice(1) : known };
    }
    const said = new SaidParts(task.calls?.());
    pieces = model.write({ ...task.request, signal });
    for (;;) {
      const { done, value } = await pieces.next();
      const time = performance.now();
      if (done) {
        yield* said.end(value.finishReason === "length");
        count(value, time - began, context);
        yield { kind: "end", written: value, called: said.called };
        return;
      }
      (last === began ? metrics.firstToken : metrics.betweenTokens).observe((time - last) / 1000);
      last = time;
      context.onText?.("answer", value.text);
      yield* said.push(value);
    }
  } finally {
    await pieces?.return(undefined as never); // frees its slot before another request gets the place
    leave();
  }
}

function count(written: Written, milliseconds: number, { metrics, onTokens }: RequestContext): void {
  metrics.promptTokens.inc(written.promptTokens);
  metrics.generatedTokens.inc(written.completionTokens);
  metrics.cacheQueries.inc(written.promptTokens);
  metrics.cacheHits.inc(written.cachedTokens);
  metrics.latency.observe(milliseconds / 1000);
  metrics.successes.inc({ finished_reason: written.finishReason });
  onTokens(written.promptTokens + written.completionTokens);
}

/** Pieces of a text, told apart into text and calls of tools. Tokens go with the text that they end in; those of calls with none. */
class SaidParts {
  called = false;
  private tokens: WrittenToken[] = [];

  constructor(private readonly calls: CallReader | undefined) {}

  *push({ text, tokens }: Piece): Generator<Said> {
    if (this.calls === undefined) yield { kind: "text", text, tokens };
    else {
      this.tokens.push(...tokens);
      yield* this.told(this.calls.push(text));
    }
  }

  /** @param isCut whether the text ends at a limit */
  *end(isCut: boolean): Generator<Said> {
    if (this.calls !== undefined) yield* this.told(this.calls.end(isCut));
  }

  private *told(parts: ReturnType<CallReader["push"]>): Generator<Said> {
    for (const part of parts) {
      if ("call" in part) {
        this.called = true;
        yield { kind: "call", call: part.call };
      } else yield { kind: "text", text: part.text, tokens: this.tokens };
      this.tokens = [];
    }
  }
}

/** An answer that is whole. */
export interface Answer {
  readonly text: string;
  readonly tokens: readonly WrittenToken[];
  readonly calls: readonly ToolCall[];
  /** Texts and calls in the order in which they were written. */
  readonly parts: readonly (string | ToolCall)[];
  readonly written: Written;
}

/** Writes several texts to their ends. */
export function writeAll(model: LoadedModel, tasks: readonly Task[], context: RequestContext): Promise<Answer[]> {
  return Promise.all(tasks.map((task) => writeOne(model, task, context)));
}

/** Writes a text to its end. @param onSaid told of each piece of it */
export async function writeOne(
  model: LoadedModel,
  task: Task,
  context: RequestContext,
  onSaid: (said: Said) => void = () => {},
): Promise<Answer> {
  const tokens: WrittenToken[] = [];
  const parts: (string | ToolCall)[] = [];
  for await (const said of write(model, task, context)) {
    onSaid(said);
    if (said.kind === "end") {
      const texts = parts.filter((part) => typeof part === "string");
      const calls = parts.filter((part) => typeof part !== "string");
      return { text: texts.join(""), tokens, calls, parts, written: said.written };
    }
    if (said.kind === "call") parts.push(said.call);
    else {
      tokens.push(...said.tokens);
      const last = parts.at(-1);
      if (typeof last === "string") parts[parts.length - 1] = last + said.text;
      else if (said.text !== "") parts.push(said.text);
    }
  }
  throw new ApiError(500, "an answer has no end");
}

/** What several texts say as they are written, in the order in which it comes. */
export async function* streamAll(
  model: LoadedModel,
  tasks: readonly Task[],
  context: RequestContext,
): AsyncGenerator<{ readonly index: number; readonly said: Said }> {
  const abort = new AbortController();
  const forward = () => abort.abort(context.signal.reason);
  if (context.signal.aborted) forward();
  context.signal.addEventListener("abort", forward, { once: true }); // AbortSignal.any leaks in Node 20
  const own = { ...context, signal: abort.signal };
  const running = tasks.map((task, index) => ({ index, parts: write(model, task, own) }));
  const next = async (one: (typeof running)[number]) => ({ one, result: await one.parts.next() });
  const coming = new Map(running.map((one) => [one, next(one)]));
  try {
    while (coming.size > 0) {
      const { one, result } = await Promise.race(coming.values());
      coming.delete(one);
      if (result.done) continue;
      coming.set(one, next(one));
      yield { index: one.index, said: result.value };
    }
  } finally {
    context.signal.removeEventListener("abort", forward);
    abort.abort(new ApiError(408, "the client left"));
    await Promise.allSettled(coming.values());
    await Promise.allSettled(running.map(({ parts }) => parts.return(undefined)));
  }
}

/** The sum of what several answers took. A prompt of several answers counts as often as it was read. */
export function usageOf(all: readonly Written[]): Usage {
  const sum = (of: (written: Written) => number) => all.reduce((total, written) => total + of(written), 0);
  return {
    promptTokens: sum(({ promptTokens }) => promptTokens),
    cachedTokens: sum(({ cachedTokens }) => cachedTokens),
    completionTokens: sum(({ completionTokens }) => completionTokens),
  };
}
