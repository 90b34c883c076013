import { randomUUID } from "node:crypto";
import { ApiError } from "../errors.js";
import { either, GrammarRules, jsonBody, literal } from "../grammar/index.js";
import type { Conversation, Tool, ToolCall, Turn } from "./conversation.js";
import { StopTexts } from "./stop-texts.js";

/** How a family of models writes that it calls a tool. */
interface CallStyle {
  /** Comes before a call, and what comes after it. */
  readonly open: string;
  readonly close: string;
  /** The name under which the arguments stand. */
  readonly argumentsKey: "arguments" | "parameters";
  /** Whether calls are a list of JSON behind one opening. */
  readonly listed: boolean;
}

const TAGS: CallStyle = { open: "<tool_call>", close: "</tool_call>", argumentsKey: "arguments", listed: false };
const LIST: CallStyle = { open: "[TOOL_CALLS]", close: "", argumentsKey: "arguments", listed: true };
const BARE: CallStyle = { open: "", close: "", argumentsKey: "parameters", listed: false };

/** How calls are written where a chat template is such: Mistral's list, bare JSON as Llama 3 was taught it, tags as Qwen, Hermes and others. */
export function callStyle(template: string | undefined): CallStyle {
  if (template?.includes("[TOOL_CALLS]")) return LIST;
  if (template?.includes("<tool_call>")) return TAGS;
  return template?.includes("python_tag") || (template?.includes("tools") && template.includes('"parameters"'))
    ? BARE
    : TAGS;
}

/** Whether a chat template says itself which tools there are. */
export const describesTools = (template: string | undefined): boolean => /\btools\b/.test(template ?? "");

/** The tools that an answer may call. @throws ApiError 400 for one that is not there */
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

/** What is to be written from the beginning of the first call on, as a grammar. */
export function callsGrammar(tools: readonly Tool[], style: CallStyle, parallel: boolean): string {
  const rules = new GrammarRules();
  const space = rules.add('" "? | "\\n" " "{0,16}');
  const one = rules.add(
    either(
      tools.map(({ name, parameters, strict }) => {
        const options = { param: `tools.${name}.parameters`, isStrict: strict === true };
        const body = jsonBody(rules, argumentsOf(parameters), options);
        const key = literal(JSON.stringify(style.argumentsKey));
        return `"{" ${space} "\\"name\\"" ":" ${space} ${literal(JSON.stringify(name))} "," ${space} ${key} ":" ${space} ${body} ${space} "}"`;
      }),
    ),
  );
  const blank = rules.add("[ \\n]{0,2}");
  if (style.listed) rules.add(`${blank} "[" ${one} ${parallel ? `("," ${space} ${one})*` : ""} "]"`, "root");
  else if (style.close === "") rules.add(`${blank} ${one}`, "root");
  else {
    const closed = `${one} ${blank} ${literal(style.close)}`;
    const more = parallel ? `(${blank} ${literal(style.open)} ${blank} ${closed})*` : "";
    rules.add(`${blank} ${closed} ${more}`, "root");
  }
  return rules.toString();
}

/** Arguments are an object, whatever their schema leaves open. */
const argumentsOf = (parameters: Tool["parameters"]): unknown =>
  parameters.type === undefined && parameters.$ref === undefined ? { type: "object", ...parameters } : parameters;

const MOST_CALL_TEXT = 1 << 20;
const MOST_TRIES = 64;

/** Some text, or a call of a tool that is complete. */
export type Said = { readonly text: string } | { readonly call: ToolCall };

/** Finds calls of tools in a text as it is written. Blanks around calls are part of how calls are written, not of the text. */
export class CallReader {
  private readonly opening: StopTexts;
  private inside: string | undefined;
  private begun = false;
  /** Blanks that are text if text follows. */
  private blanks = "";
  private afterCall = false;

  /** @param tools what can be called @param within whether the text begins within a call */
  constructor(
    private readonly tools: readonly Tool[],
    private readonly style: CallStyle,
    within: boolean,
  ) {
    this.opening = new StopTexts(style.open === "" ? [] : [style.open]);
    if (within) this.inside = "";
  }

  push(text: string): Said[] {
    return this.settled(this.read(text));
  }

  /** What is left at the end. @param isCut whether a limit ended it: half a call is then dropped, else shown as the text that it is */
  end(isCut: boolean): Said[] {
    const said = this.settled(this.unfinished(isCut));
    if (this.blanks === "" || this.afterCall) return said;
    const { blanks } = this;
    this.blanks = "";
    return [...said, { text: blanks }];
  }

  /** Without the blanks before, between and after calls. */
  private settled(parts: readonly Said[]): Said[] {
    return parts.flatMap((part): Said[] => {
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

  private read(text: string): Said[] {
    if (this.tools.length === 0) return text === "" ? [] : [{ text }];
    if (this.style.open === "") return this.readBare(text);
    if (this.inside !== undefined) return this.collect(text);
    const shown = this.opening.push(text);
    const said: Said[] = shown === "" ? [] : [{ text: shown }];
    if (this.opening.found === undefined) return said;
    this.inside = "";
    return [...said, ...this.collect(this.opening.rest)];
  }

  private unfinished(isCut: boolean): Said[] {
    const { inside } = this;
    if (inside === undefined) {
      const rest = this.opening.end();
      return rest === "" || isCut ? [] : [{ text: rest }];
    }
    this.inside = undefined;
    const text = inside.trim();
    if (text === "") return [];
    const calls = this.parsed(text);
    if (calls !== undefined) return calls;
    if (isCut && this.style.listed) return this.wholeOf(text);
    const isCall = this.style.open !== "" || /^\{\s*("(n(a(m(e)?)?)?)?"?\s*(:|$)|$)/.test(text);
    return isCut && isCall ? [] : [{ text: `${this.style.open}${inside}` }];
  }

  /** The calls of a list of which the last is not whole. */
  private wholeOf(list: string): Said[] {
    let at = list.lastIndexOf("}");
    for (let tries = 0; at > 0 && tries < MOST_TRIES; tries++) {
      const calls = this.parsed(`${list.slice(0, at + 1)}]`);
      if (calls !== undefined) return calls;
      at = list.lastIndexOf("}", at - 1);
    }
    return [];
  }

  /** Bare JSON can only be told at the very beginning of an answer. */
  private readBare(text: string): Said[] {
    if (this.inside !== undefined) return this.collect(text);
    if (this.begun) return text === "" ? [] : [{ text }];
    const start = text.replace(/^\s*(<\|python_tag\|>)?\s*/, "");
    if (start === "") return [];
    this.begun = true;
    if (!start.startsWith("{")) return [{ text }];
    this.inside = "";
    return this.collect(start);
  }

  private collect(text: string): Said[] {
    this.inside = (this.inside ?? "") + text;
    if (this.inside.length > MOST_CALL_TEXT) return this.unfinished(false);
    const { close, open } = this.style;
    const said: Said[] = [];
    while (close !== "" && this.inside !== undefined) {
      const at: number = this.inside.indexOf(close);
      if (at < 0) break;
      const [own, rest]: [string, string] = [this.inside.slice(0, at), this.inside.slice(at + close.length)];
      said.push(...(this.parsed(own.trim()) ?? [{ text: `${open}${own}${close}` }]));
      this.inside = undefined;
      this.opening.reset();
      said.push(...this.read(rest));
    }
    return said;
  }

  private parsed(text: string): Said[] | undefined {
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch {
      return undefined;
    }
    const calls = (Array.isArray(value) ? value : [value]).map((one: unknown): Said | undefined => {
      if (typeof one !== "object" || one === null) return undefined;
      const { name, arguments: own, parameters } = one as Record<string, unknown>;
      if (!this.tools.some((tool) => tool.name === name)) return undefined;
      return { call: { id: callId(), name: `${name}`, arguments: JSON.stringify(own ?? parameters ?? {}) } };
    });
    return calls.length === 0 || calls.includes(undefined) ? undefined : (calls as Said[]);
  }
}

/** A name of a call that no other has. */
const callId = (): string => `call_${randomUUID().replace(/-/g, "").slice(0, 24)}`;

/** Turns in the form of chat templates. */
export type TemplateMessage = Readonly<Record<string, unknown>>;

/** Turns as a chat template takes them that knows of tools. */
export function templateMessages(turns: readonly Turn[]): TemplateMessage[] {
  const names = new Map(
    turns.flatMap((turn) => (turn.role === "assistant" ? turn.calls : [])).map(({ id, name }) => [id, name]),
  );
  return turns.map((turn) => {
    if (turn.role === "tool")
      return { role: "tool", content: turn.content, tool_call_id: turn.callId, name: names.get(turn.callId) };
    if (turn.role !== "assistant") return { role: turn.role, content: turn.content };
    const calls = turn.calls.map(({ id, name, arguments: text }) => ({
      id,
      type: "function",
      function: { name, arguments: parsedArguments(text) },
    }));
    return { role: "assistant", content: turn.content, ...(calls.length > 0 && { tool_calls: calls }) };
  });
}

/** Turns as any template takes them: tools, calls and their results are told in words. */
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
  const told = `You can call these tools:\n${listed}\nTo call one, write ${TAGS.open}{"name": its name, "arguments": its arguments}${TAGS.close}.`;
  const [first] = messages;
  if (first?.role !== "system") return [{ role: "system", content: told }, ...messages];
  return [{ role: "system", content: `${first.content}\n\n${told}` }, ...messages.slice(1)];
}

const parsedArguments = (text: string): unknown => {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
};
