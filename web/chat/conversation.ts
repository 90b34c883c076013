import { eventsOf } from "../shared/events.js";

/** A conversation with the service of this page, through its API. */

export interface Turn {
  readonly role: "user" | "assistant";
  readonly content: string;
  /** Why the answer is missing or incomplete. */
  readonly error?: string | undefined;
}

/** Fields of a request, as they were typed: the service decides on empty ones. */
export interface Settings {
  readonly temperature: string;
  readonly top_p: string;
  readonly min_p: string;
  readonly top_k: string;
  readonly max_tokens: string;
  readonly seed: string;
  readonly system: string;
}

export const DEFAULT_SETTINGS: Settings = {
  temperature: "0.8",
  top_p: "0.95",
  min_p: "",
  top_k: "",
  max_tokens: "512",
  seed: "",
  system: "",
};

interface Chunk {
  readonly choices?: readonly { readonly delta: { readonly content?: string | null } }[];
  readonly usage?: { readonly completion_tokens: number } | null;
  readonly error?: { readonly message: string };
}

const headersOf = (key: string): Record<string, string> => {
  const type = { "content-type": "application/json" };
  return key === "" ? type : { ...type, authorization: `Bearer ${key}` };
};

async function errorMessageOf(response: Response): Promise<string> {
  const body = (await response.json().catch(() => ({}))) as Chunk;
  return body.error?.message ?? `the service answered ${response.status}`;
}

export async function listModels(key: string): Promise<string[]> {
  const response = await fetch("/v1/models", { headers: headersOf(key) });
  if (!response.ok) throw new Error(await errorMessageOf(response));
  const { data } = (await response.json()) as { readonly data: readonly { readonly id: string }[] };
  return data.map(({ id }) => id);
}

export interface AnswerRequest {
  /** Ends with a turn of the user. */
  readonly turns: readonly Turn[];
  readonly model: string;
  readonly settings: Settings;
  /** The API key; empty for none. */
  readonly key: string;
  readonly signal: AbortSignal;
}

/** New text of an answer, and the number of tokens so far. */
export interface AnswerPart {
  readonly text: string;
  readonly tokens: number;
}

/** Streams an answer. @throws Error with the service's message */
export async function* streamAnswer({
  turns,
  model,
  settings,
  key,
  signal,
}: AnswerRequest): AsyncGenerator<AnswerPart> {
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: headersOf(key),
    body: JSON.stringify(requestBody(turns, model, settings)),
    signal,
  });
  if (!response.ok) throw new Error(await errorMessageOf(response));
  let tokens = 0;
  for await (const { data } of eventsOf(response)) {
    if (data === "[DONE]" || data === "") continue;
    const { choices, usage, error } = JSON.parse(data) as Chunk;
    if (error !== undefined) throw new Error(error.message);
    const text = choices?.[0]?.delta.content ?? "";
    if (text !== "") tokens++;
    tokens = usage?.completion_tokens ?? tokens;
    yield { text, tokens };
  }
}

function requestBody(turns: readonly Turn[], model: string, { system, ...numbers }: Settings): object {
  // a question without an answer is left out of later requests
  const hasFailed = (turn: Turn | undefined) => turn?.error !== undefined && turn.content === "";
  const messages = turns
    .filter((turn, i) => !hasFailed(turn) && !hasFailed(turns[i + 1]))
    .map(({ role, content }) => ({ role, content }));
  const parameters = Object.entries(numbers).filter(([, value]) => value !== "");
  return {
    ...Object.fromEntries(parameters.map(([name, value]) => [name, Number(value)])),
    model,
    messages: system === "" ? messages : [{ role: "system", content: system }, ...messages],
    stream: true,
    stream_options: { include_usage: true },
  };
}

const STORAGE_KEY = "coppice-chat";

/** The conversation and settings that this tab has stored. */
export function loadConversation(): { readonly turns: readonly Turn[]; readonly settings: Settings } {
  try {
    const stored = JSON.parse(sessionStorage.getItem(STORAGE_KEY) ?? "{}") as {
      turns?: Turn[];
      settings?: Partial<Settings>;
    };
    return { turns: stored.turns ?? [], settings: { ...DEFAULT_SETTINGS, ...stored.settings } };
  } catch {
    return { turns: [], settings: DEFAULT_SETTINGS };
  }
}

export function saveConversation(turns: readonly Turn[], settings: Settings): void {
  try {
    sessionStorage.setItem(STORAGE_KEY, JSON.stringify({ turns, settings }));
  } catch {
    // storage is full or not allowed: the conversation lasts until the tab is reloaded
  }
}
