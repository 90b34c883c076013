import type { Token } from "node-llama-cpp";
import { MOST_MILLISECONDS, withinTime } from "../../system/within-time.js";
import { ApiError } from "../errors.js";
import { either, GrammarRules, jsonBody, literal, regexBody } from "../grammar/index.js";
import type { Conversation, Format, Overflow, Tool, Turn } from "./conversation.js";
import type { HostedModel } from "./hosted-model.js";
import type { LoadedModel } from "./model-pool.js";
import {
  CallReader,
  type CallStyle,
  callableTools,
  callStyle,
  callsBody,
  callsGrammar,
  describesTools,
  plainMessages,
  templateMessages,
} from "./tools.js";
import type { TextGrammar, WriteRequest } from "./writing.js";

/** A text to write, and how to read it. */
export interface WriteTask {
  readonly request: Omit<WriteRequest, "signal">;
  /** How many of the most probable tokens to report for each token of the prompt; none of the prompt's where undefined. */
  readonly promptLogprobs?: number | undefined;
  /** Finds calls of tools in the text. */
  readonly calls?: (() => CallReader) | undefined;
}

/** What to write to answer a conversation. @throws ApiError 400 for a conversation that cannot be answered */
export function conversationTask({ model }: LoadedModel, conversation: Conversation, overflow: Overflow): WriteTask {
  const { sampling, format, maxTokens, topLogprobs, toolChoice, parallelCalls } = conversation;
  const tools = callableTools(conversation);
  const template = model.templateFor(tools)?.source;
  const style = callStyle(template);
  const mode = typeof toolChoice === "string" ? toolChoice : toolChoice.mode;
  const isForced = tools.length > 0 && mode !== "auto";
  if (isForced && format !== undefined)
    throw new ApiError(400, "an answer cannot both call a tool and have a required form", { param: "tool_choice" });
  const { turns, begun } = conversation.continues
    ? withoutBegun(conversation.turns)
    : { turns: conversation.turns, begun: "" };
  const promptOf = promptWriter(model, tools, {
    listsTools: describesTools(template),
    style,
    opening: begun + (isForced ? style.open : ""),
    variables: conversation.templateVariables,
  });
  const prompt = fitPrompt(turns, promptOf, {
    contextSize: model.contextSize,
    maxTokens,
    overflow: conversation.overflow ?? overflow,
  });
  const grammar =
    grammarWithin(() => callGrammar(tools, style, { parallelCalls, isForced, format }), "tools") ??
    (format && formatGrammar(format));
  return {
    request: { ...sampling, prompt, maxTokens, topLogprobs, grammar, special: tools.length > 0 },
    calls: () => new CallReader(tools, style, isForced),
  };
}

interface PromptOptions {
  /** Whether the template lists tools itself. */
  readonly listsTools: boolean;
  readonly style: CallStyle;
  readonly opening: string;
  readonly variables: Conversation["templateVariables"];
}

/** Writes the prompt of a conversation, for a template that lists tools or one that does not. */
function promptWriter(
  model: HostedModel,
  tools: readonly Tool[],
  { listsTools, style, ...options }: PromptOptions,
): (turns: readonly Turn[]) => Token[] {
  if (!listsTools) return (turns) => model.chatPrompt(plainMessages(turns, tools), options);
  const described = tools.map(({ name, description = "", parameters }) => ({
    type: "function",
    function: { name, description, parameters },
  }));
  return (turns) => model.chatPrompt(templateMessages(turns, style), { ...options, tools: described });
}

interface CallOptions extends Pick<Conversation, "parallelCalls" | "format"> {
  /** Whether the answer must begin with a call. */
  readonly isForced: boolean;
}

/** The grammar of calls, where the answer must be one or shows where one begins. */
function callGrammar(
  tools: readonly Tool[],
  style: CallStyle,
  { parallelCalls, isForced, format }: CallOptions,
): TextGrammar | undefined {
  if (tools.length === 0) return undefined;
  if (format !== undefined) return callsOrForm(tools, style, parallelCalls, format);
  const text = callsGrammar(tools, style, parallelCalls); // also says what is wrong with a tool's schema
  if (isForced) return { text, param: "tools" };
  return style.open === "" ? undefined : { text, param: "tools", after: style.open };
}

/** The grammar of an answer that either calls tools or has a required form. @throws ApiError 400 where the form is a grammar of its own */
export function callsOrForm(tools: readonly Tool[], style: CallStyle, parallel: boolean, format: Format): TextGrammar {
  if (format.kind === "grammar")
    throw new ApiError(400, "tools and a grammar cannot go together: leave one of them out", { param: format.param });
  const rules = new GrammarRules();
  const form = formBody(rules, format);
  const calls = callsBody(rules, tools, style, parallel);
  rules.add(`${form} | ${style.open === "" ? "" : literal(style.open)} ${calls}`, "root");
  return { text: rules.toString(), param: "tools" };
}

/** Splits off the answer that a client has begun. */
function withoutBegun(turns: readonly Turn[]): { readonly turns: readonly Turn[]; readonly begun: string } {
  const last = turns.at(-1);
  if (turns.length < 2 || last?.role !== "assistant" || last.calls.length > 0) return { turns, begun: "" };
  return { turns: turns.slice(0, -1), begun: last.content.trimEnd() };
}

/** The grammar of a required form. @throws ApiError 400 for a form that a grammar cannot express */
export function formatGrammar(format: Format): TextGrammar {
  if (format.kind === "grammar") return { text: format.text, param: format.param };
  const param = format.kind === "choice" ? "guided_choice" : format.param;
  return grammarWithin(() => {
    const rules = new GrammarRules();
    rules.add(formBody(rules, format), "root");
    return { text: rules.toString(), param };
  }, param);
}

/** Schemas come from clients, with regular expressions that may take for ever. @throws ApiError 400 where it takes too long */
function grammarWithin<T>(make: () => T, param: string): T {
  return withinTime(
    make,
    () => new ApiError(400, `the schema takes more than ${MOST_MILLISECONDS} ms to read`, { param }),
  );
}

function formBody(rules: GrammarRules, format: Exclude<Format, { kind: "grammar" }>): string {
  switch (format.kind) {
    case "json":
      return jsonBody(rules, format.schema ?? { type: "object" }, format);
    case "regex":
      return regexBody(rules, format.pattern, format.param);
    case "choice":
      return either(format.options.map(literal));
  }
}

interface FitOptions {
  readonly contextSize: number;
  /** Tokens of the answer; unknown where undefined. */
  readonly maxTokens: number | undefined;
  readonly overflow: Overflow;
}

/** Where a prompt is cut, an answer gets a quarter of the context, or less if it needs less. */
const ANSWER_SHARE = 4;

function promptRoom({ contextSize, maxTokens }: Omit<FitOptions, "overflow">): number {
  const share = Math.floor(contextSize / ANSWER_SHARE);
  return contextSize - Math.min(maxTokens ?? share, share);
}

/** The prompt of a conversation, without its oldest turns where it is too long and they may be dropped. */
function fitPrompt(
  turns: readonly Turn[],
  promptOf: (turns: readonly Turn[]) => Token[],
  options: FitOptions,
): Token[] {
  const whole = promptOf(turns);
  const room = promptRoom(options);
  if (options.overflow === "refuse" || whole.length < room) return whole;
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

/** The prompt of a text to be continued, without its beginning where it is too long and that may be dropped. */
export function fitTokens({ model }: LoadedModel, prompt: Token[], maxTokens: number, overflow: Overflow): Token[] {
  const room = promptRoom({ contextSize: model.contextSize, maxTokens });
  if (overflow === "refuse" || prompt.length < room) return prompt;
  const begin = model.begins(prompt) ? prompt.slice(0, 1) : [];
  return [...begin, ...prompt.slice(prompt.length - room + begin.length + 1)];
}

/** The same task several times, each with another seed. */
export const repeatedTask = (task: WriteTask, count: number): WriteTask[] =>
  Array.from({ length: count }, (_, i) => {
    const { seed, ...request } = task.request;
    return { ...task, request: { ...request, seed: seed === undefined ? undefined : (seed + i) % 2 ** 32 } };
  });
