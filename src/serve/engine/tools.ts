import { randomUUID } from "node:crypto";
import type { TemplateMessage } from "../../data/index.js";
import { elementAt } from "../../system/arrays.js";
import { hashBytes } from "../../system/files.js";
import { ApiError } from "../errors.js";
import { either, GrammarRules, jsonBody, literal, spaceRule } from "../grammar/index.js";
import type { Conversation, Tool, ToolCall, Turn } from "./conversation.js";
import { elementSources, memberSource } from "./json-source.js";
import { StopTexts } from "./stop-texts.js";

/** How a family of models writes calls of tools. */
export interface CallStyle {
  /** What comes before a call. */
  readonly open: string;
  /** What comes after a call. */
  readonly close: string;
  /** The key of the arguments. */
  readonly argumentsKey: "arguments" | "parameters";
  /** Whether calls are a JSON list behind one opening. */
  readonly listed: boolean;
  /** Where a call is a tool's name and its arguments rather than one JSON object: the marks before an id, if it has one, and the arguments. */
  readonly marks?: { readonly id?: string | undefined; readonly arguments: string } | undefined;
}

const TAGS: CallStyle = { open: "<tool_call>", close: "</tool_call>", argumentsKey: "arguments", listed: false };
const LIST: CallStyle = { open: "[TOOL_CALLS]", close: "", argumentsKey: "arguments", listed: true };
const MARKS = { id: "[CALL_ID]", arguments: "[ARGS]" };
const MARKED: CallStyle = { ...LIST, listed: false, marks: { arguments: MARKS.arguments } };
const MARKED_WITH_IDS: CallStyle = { ...MARKED, marks: MARKS };
const BARE: CallStyle = { open: "", close: "", argumentsKey: "parameters", listed: false };

/**
 * How a model writes calls, judged by its chat template: Mistral's list, or its newer `[TOOL_CALLS]name[ARGS]{}`, Llama 3's bare JSON, or the
 * tags of Qwen, Hermes and others.
 */
export function callStyle(template: string | undefined): CallStyle {
  if (template?.includes(LIST.open)) {
    if (!template.includes(MARKS.arguments)) return LIST;
    return template.includes(MARKS.id) ? MARKED_WITH_IDS : MARKED;
  }
  if (template?.includes("<tool_call>")) return TAGS;
  return template?.includes("python_tag") || (template?.includes("tools") && template.includes('"parameters"'))
    ? BARE
    : TAGS;
}

/** Whether a chat template lists the tools itself. */
export const describesTools = (template: string | undefined): boolean => /\btools\b/.test(template ?? "");

/** The tools that an answer may call. @throws ApiError 400 when a chosen tool does not exist */
export function callableTools({ tools, toolChoice }: Pick<Conversation, "tools" | "toolChoice">): readonly Tool[] {
  if (toolChoice === "none") return [];
  if (typeof toolChoice === "string") {
    if (toolChoice === "required" && tools.length === 0)
      throw new ApiError(400, "tool_choice asks for a tool, but there are none", { param: "tool_choice" });
    return tools;
  }
  const missing = toolChoice.names.find((chosen) => !tools.some(({ name }) => name === chosen));
  if (missing !== undefined) throw new ApiError(400, `there is no tool ${missing}`, { param: "tool_choice" });
  return tools.filter(({ name }) => toolChoice.names.includes(name));
}

/** A grammar (GBNF) of an answer from the beginning of its first call on. */
export function callsGrammar(tools: readonly Tool[], style: CallStyle, parallel: boolean): string {
  const rules = new GrammarRules();
  rules.add(callsBody(rules, tools, style, parallel), "root");
  return rules.toString();
}

/** What an answer is from the beginning of its first call on, as the body of a rule. */
export function callsBody(rules: GrammarRules, tools: readonly Tool[], style: CallStyle, parallel: boolean): string {
  const { marks } = style;
  const space = spaceRule(rules);
  const call = rules.add(
    either(
      tools.map(({ name, parameters, strict }) => {
        const options = { param: `tools.${name}.parameters`, isStrict: strict === true };
        const body = jsonBody(rules, argumentsOf(parameters), options);
        if (marks !== undefined) {
          const id = marks.id === undefined ? "" : `${literal(marks.id)} [a-zA-Z0-9]{9}`;
          return `${literal(name)} ${id} ${literal(marks.arguments)} ${body}`;
        }
        const key = literal(JSON.stringify(style.argumentsKey));
        return `"{" ${space} "\\"name\\"" ":" ${space} ${literal(JSON.stringify(name))} "," ${space} ${key} ":" ${space} ${body} ${space} "}"`;
      }),
    ),
  );
  const blank = rules.add("[ \\n]{0,2}");
  if (style.listed) return `${blank} "[" ${call} ${parallel ? `("," ${space} ${call})*` : ""} "]"`;
  if (marks !== undefined) return `${call} ${parallel ? `(${literal(style.open)} ${call})*` : ""}`;
  if (style.close === "") return `${blank} ${call}`;
  const closed = `${call} ${blank} ${literal(style.close)}`;
  const more = parallel ? `(${blank} ${literal(style.open)} ${blank} ${closed})*` : "";
  return `${blank} ${closed} ${more}`;
}

/** Arguments are an object, also where their schema does not say so. */
const argumentsOf = (parameters: Tool["parameters"]): unknown =>
  parameters.type === undefined && parameters.$ref === undefined ? { type: "object", ...parameters } : parameters;

const MAX_CALL_LENGTH = 1 << 20;
const MAX_TRIES = 64;

/** Some text of an answer, or a complete call of a tool. */
export type AnswerPart = { readonly text: string } | { readonly call: ToolCall };

/** Finds calls of tools in a text as it is written. Blanks around calls belong to the calls, not to the text. */
export class CallReader {
  private readonly opening: StopTexts;
  private inside: string | undefined;
  private hasBegun = false;
  /** Blanks that belong to the text if more text follows. */
  private blanks = "";
  private afterCall = false;

  /** @param tools that can be called @param isInside whether the text begins inside a call */
  constructor(
    private readonly tools: readonly Tool[],
    private readonly style: CallStyle,
    isInside: boolean,
  ) {
    this.opening = new StopTexts(style.open === "" ? [] : [style.open]);
    if (isInside) this.inside = "";
  }

  push(text: string): AnswerPart[] {
    return this.withoutBlanks(this.read(text));
  }

  /** What is left at the end. @param isCut whether a limit ended the text: an unfinished call is then dropped, otherwise shown as text */
  end(isCut: boolean): AnswerPart[] {
    const parts = this.withoutBlanks(this.unfinished(isCut));
    if (this.blanks === "" || this.afterCall) return parts;
    const { blanks } = this;
    this.blanks = "";
    return [...parts, { text: blanks }];
  }

  /** Drops blanks before, between and after calls. */
  private withoutBlanks(parts: readonly AnswerPart[]): AnswerPart[] {
    return parts.flatMap((part): AnswerPart[] => {
      if ("call" in part) {
        this.blanks = "";
        this.afterCall = true;
        return [part];
      }
      const all = this.blanks + part.text;
      const text = all.trimEnd();
      this.blanks = all.slice(text.length);
      if (text === "") return [];
      const shown = this.afterCall ? text.trimStart() : text;
      this.afterCall = false;
      return [{ text: shown }];
    });
  }

  private read(text: string): AnswerPart[] {
    if (this.tools.length === 0) return text === "" ? [] : [{ text }];
    if (this.style.open === "") return this.readBare(text);
    if (this.inside !== undefined) return this.collect(text);
    const shown = this.opening.push(text);
    const parts: AnswerPart[] = shown === "" ? [] : [{ text: shown }];
    if (this.opening.found === undefined) return parts;
    this.inside = "";
    return [...parts, ...this.collect(this.opening.rest)];
  }

  private unfinished(isCut: boolean): AnswerPart[] {
    const { inside } = this;
    if (inside === undefined) {
      const rest = this.opening.end();
      return rest === "" || isCut ? [] : [{ text: rest }];
    }
    this.inside = undefined;
    const text = inside.trim();
    if (text === "") return [];
    const { marks } = this.style;
    const calls = marks === undefined ? this.parsed(text) : this.marked(text, marks, isCut);
    if (calls !== undefined) return calls;
    if (isCut && this.style.listed) return this.completeCalls(text);
    const isCall = this.style.open !== "" || /^\{\s*("(n(a(m(e)?)?)?)?"?\s*(:|$)|$)/.test(text);
    return isCut && isCall ? [] : [{ text: `${this.style.open}${inside}` }];
  }

  /** The complete calls of a list whose last one is incomplete. */
  private completeCalls(list: string): AnswerPart[] {
    let at = list.lastIndexOf("}");
    for (let tries = 0; at > 0 && tries < MAX_TRIES; tries++) {
      const calls = this.parsed(`${list.slice(0, at + 1)}]`);
      if (calls !== undefined) return calls;
      at = list.lastIndexOf("}", at - 1);
    }
    return [];
  }

  /** Bare JSON is recognized only at the very beginning of an answer. */
  private readBare(text: string): AnswerPart[] {
    if (this.inside !== undefined) return this.collect(text);
    if (this.hasBegun) return text === "" ? [] : [{ text }];
    const start = text.replace(/^\s*(<\|python_tag\|>)?\s*/, "");
    if (start === "") return [];
    this.hasBegun = true;
    if (!start.startsWith("{")) return [{ text }];
    this.inside = "";
    return this.collect(start);
  }

  private collect(text: string): AnswerPart[] {
    this.inside = (this.inside ?? "") + text;
    if (this.inside.length > MAX_CALL_LENGTH) return this.unfinished(false);
    const { close, open } = this.style;
    const parts: AnswerPart[] = [];
    while (close !== "" && this.inside !== undefined) {
      const at: number = endOfCall(this.inside, close);
      if (at < 0) break;
      const [call, rest]: [string, string] = [this.inside.slice(0, at), this.inside.slice(at + close.length)];
      parts.push(...(this.parsed(call.trim()) ?? [{ text: `${open}${call}${close}` }]));
      this.inside = undefined;
      this.opening.reset();
      parts.push(...this.read(rest));
    }
    return parts;
  }

  /** Calls that are names and arguments, one behind the other. @param isCut whether the last one may be incomplete */
  private marked(text: string, marks: NonNullable<CallStyle["marks"]>, isCut: boolean): AnswerPart[] | undefined {
    const calls: AnswerPart[] = [];
    let rest = text;
    while (rest !== "") {
      const at = rest.indexOf(marks.arguments);
      const end = at < 0 ? -1 : endOfCall(rest.slice(at), this.style.open);
      const [one, next] =
        end < 0 ? [rest, ""] : [rest.slice(0, at + end), rest.slice(at + end + this.style.open.length)];
      const [name = ""] = one.slice(0, Math.max(0, at)).split(marks.id ?? marks.arguments);
      const call = this.parsed(
        `{"name":${JSON.stringify(name.trim())},"arguments":${one.slice(at + marks.arguments.length)}}`,
      );
      if (at < 0 || call === undefined) return isCut && next === "" ? calls : undefined;
      calls.push(...call);
      rest = next;
    }
    return calls;
  }

  private parsed(text: string): AnswerPart[] | undefined {
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch {
      return undefined;
    }
    const sources = Array.isArray(value) ? elementSources(text) : [text];
    const calls = (Array.isArray(value) ? value : [value]).map((call: unknown, i): AnswerPart | undefined => {
      if (typeof call !== "object" || call === null) return undefined;
      const { name, ...values } = call as Record<string, unknown>;
      if (!this.tools.some((tool) => tool.name === name)) return undefined;
      return { call: { id: callId(), name: `${name}`, arguments: argumentsText(elementAt(sources, i), values) } };
    });
    return calls.length === 0 || calls.includes(undefined) ? undefined : (calls as AnswerPart[]);
  }
}

/** Where a call ends: at its closing tag, but for tags within texts of its JSON. -1 where it has not ended yet. */
function endOfCall(inside: string, close: string): number {
  for (let at = inside.indexOf(close); at >= 0; at = inside.indexOf(close, at + 1))
    if (!endsWithinText(inside.slice(0, at))) return at;
  return -1;
}

/** Whether the beginning of some JSON ends within a text. */
const endsWithinText = (json: string): boolean => json.replace(/\\./gs, "").split('"').length % 2 === 0;

/** A call's arguments as JSON; as they are written where large whole numbers would be rounded. @param call as JSON */
function argumentsText(call: string, { arguments: own, parameters }: Readonly<Record<string, unknown>>): string {
  const source = memberSource(call, (own ?? undefined) === undefined ? "parameters" : "arguments");
  return source !== undefined && /\d{16}/.test(source) ? source : JSON.stringify(own ?? parameters ?? {});
}

/** A unique id of a call. */
const callId = (): string => `call_${randomUUID().replace(/-/g, "").slice(0, 24)}`;

/** Mistral's templates take ids of nine letters and digits only; clients keep theirs, which may come from another service. */
const shortId = (id: string): string => hashBytes(id).slice(0, 9);

/** Turns as messages for a chat template that knows tools. */
export function templateMessages(turns: readonly Turn[], style: CallStyle): TemplateMessage[] {
  const idOf = style.open === LIST.open ? shortId : (id: string) => id;
  const names = new Map(
    turns.flatMap((turn) => (turn.role === "assistant" ? turn.calls : [])).map(({ id, name }) => [id, name]),
  );
  return turns.map((turn) => {
    if (turn.role === "tool")
      return { role: "tool", content: turn.content, tool_call_id: idOf(turn.callId), name: names.get(turn.callId) };
    if (turn.role !== "assistant") return { role: turn.role, content: turn.content };
    const calls = turn.calls.map(({ id, name, arguments: text }) => ({
      id: idOf(id),
      type: "function",
      function: { name, arguments: parsedArguments(text) },
    }));
    const message = { role: "assistant", content: turn.content };
    return calls.length > 0 ? { ...message, tool_calls: calls } : message;
  });
}

/** Turns as messages for any chat template: tools, calls and their results are written as text. */
export function plainMessages(turns: readonly Turn[], tools: readonly Tool[]): TemplateMessage[] {
  const messages = turns.map((turn) => {
    if (turn.role === "tool") return { role: "user", content: `<tool_response>\n${turn.content}\n</tool_response>` };
    if (turn.role !== "assistant") return { role: turn.role, content: turn.content };
    const calls = turn.calls.map(({ name, arguments: text }) => {
      const call = JSON.stringify({ name, arguments: parsedArguments(text) });
      return `${TAGS.open}\n${call}\n${TAGS.close}`;
    });
    return { role: "assistant", content: [turn.content, ...calls].filter((one) => one !== "").join("\n") };
  });
  if (tools.length === 0) return messages;
  const listed = tools.map((tool) => JSON.stringify(tool)).join("\n");
  const instructions = `You can call these tools:\n${listed}\nTo call one, write ${TAGS.open}{"name": its name, "arguments": its arguments}${TAGS.close}.`;
  const [first] = messages;
  if (first?.role !== "system") return [{ role: "system", content: instructions }, ...messages];
  return [{ role: "system", content: `${first.content}\n\n${instructions}` }, ...messages.slice(1)];
}

const parsedArguments = (text: string): unknown => {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
};
