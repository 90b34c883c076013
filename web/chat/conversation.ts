import { eventsOf } from "../shared/events.js";

/** A conversation with the service that this page came from, by its own API. */

export interface Turn {
  readonly role: "user" | "assistant";
  readonly content: string;
  /** What went wrong in place of an answer, or at its end. */
  readonly error?: string | undefined;
}

/** Fields of a request, as they were typed: empty ones are left to the service. */
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

const headersOf = (key: string): Record<string, string> => ({
  "content-type": "application/json",
  ...(key !== "" && { authorization: `Bearer ${key}` }),
});

async function reasonOf(response: Response): Promise<string> {
  const body = (await response.json().catch(() => ({}))) as Chunk;
  return body.error?.message ?? `the service answered ${response.status}`;
}

export async function listModels(key: string): Promise<string[]> {
  const response = await fetch("/v1/models", { headers: headersOf(key) });
  if (!response.ok) throw new Error(await reasonOf(response));
  const { data } = (await response.json()) as { readonly data: readonly { readonly id: string }[] };
  return data.map(({ id }) => id);
}

/** What comes of an answer: a part of its text, or how many tokens there are by now. */
export interface Part {
  readonly text: string;
  readonly tokens: number;
}

/** An answer to the turns so far, as it comes. @throws Error with the service's own words */
export async function* answer(
  turns: readonly Turn[],
  model: string,
  { system, ...numbers }: Settings,
  key: string,
  signal: AbortSignal,
): AsyncGenerator<Part> {
  // a question that got no answer is not said again with the next
  const failed = (turn: Turn | undefined) => turn?.error !== undefined && turn.content === "";
  const said = turns.filter((turn, i) => !failed(turn) && !failed(turns[i + 1]));
  const body = {
    ...Object.fromEntries(Object.entries(numbers).flatMap(([name, value]) => (value === "" ? [] : [[name, +value]]))),
    model,
    messages: [
      ...(system === "" ? [] : [{ role: "system", content: system }]),
      ...said.map(({ role, content }) => ({ role, content })),
    ],
    stream: true,
    stream_options: { include_usage: true },
  };
  const request = { method: "POST", headers: headersOf(key), body: JSON.stringify(body), signal };
  const response = await fetch("/v1/chat/completions", request);
  if (!response.ok) throw new Error(await reasonOf(response));
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

const KEPT = "coppice-chat";

/** What this tab remembers of an earlier visit. */
export function remembered(): { readonly turns: readonly Turn[]; readonly settings: Settings } {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "{}") as { turns?: Turn[]; settings?: Partial<Settings> };
    return { turns: kept.turns ?? [], settings: { ...DEFAULT_SETTINGS, ...kept.settings } };
  } catch {
    return { turns: [], settings: DEFAULT_SETTINGS };
  }
}

export function remember(turns: readonly Turn[], settings: Settings): void {
  try {
    sessionStorage.setItem(KEPT, JSON.stringify({ turns, settings }));
  } catch {
    // full, or not allowed: then this tab forgets
  }
}
