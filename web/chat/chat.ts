/** A conversation with the service that this page came from, by its own API. */

interface Message {
  readonly role: "system" | "user" | "assistant";
  readonly content: string;
}

interface Chunk {
  readonly choices?: readonly { readonly delta: { readonly content?: string } }[];
  readonly usage?: { readonly completion_tokens: number };
  readonly error?: { readonly message: string };
}

const element = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;
const [messages, status, text] = [element("messages"), element("status"), element<HTMLTextAreaElement>("text")];
const [send, stop] = [element<HTMLButtonElement>("send"), element<HTMLButtonElement>("stop")];
const model = element<HTMLSelectElement>("model");
const NUMBERS = ["temperature", "top_p", "min_p", "top_k", "max_tokens", "seed"] as const;

let conversation: Message[] = [];
let running: AbortController | undefined;

function headers(): Record<string, string> {
  const key = element<HTMLInputElement>("key").value;
  return { "content-type": "application/json", ...(key !== "" && { authorization: `Bearer ${key}` }) };
}

async function listModels(): Promise<void> {
  try {
    const response = await fetch("/v1/models", { headers: headers() });
    if (!response.ok) throw new Error(await reasonOf(response));
    const { data } = (await response.json()) as { readonly data: readonly { readonly id: string }[] };
    model.replaceChildren(...data.map(({ id }) => new Option(id, id)));
    status.textContent = "";
  } catch (error) {
    status.textContent = `The models cannot be listed: ${error instanceof Error ? error.message : error}`;
  }
}

async function reasonOf(response: Response): Promise<string> {
  const body = (await response.json().catch(() => ({}))) as Chunk;
  return body.error?.message ?? `the service answered ${response.status}`;
}

function show(role: string, content: string): HTMLElement {
  const article = document.createElement("article");
  article.dataset.role = role;
  article.textContent = content;
  messages.append(article);
  article.scrollIntoView({ block: "end" });
  return article;
}

/** What a stream of server-sent events holds, as it comes. */
async function* events(response: Response): AsyncGenerator<Chunk> {
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = (await reader?.read()) ?? { done: true, value: undefined };
    if (done || value === undefined) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop() ?? "";
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data) as Chunk;
    }
  }
}

async function answer(asked: string): Promise<void> {
  const system = element<HTMLTextAreaElement>("system").value;
  conversation.push({ role: "user", content: asked });
  show("you", asked);
  const article = show(model.value, "");
  const given = NUMBERS.flatMap((name) => {
    const { value } = element<HTMLInputElement>(name);
    return value === "" ? [] : [[name, Number(value)]];
  });
  const body = {
    ...Object.fromEntries(given),
    model: model.value,
    messages: [...(system === "" ? [] : [{ role: "system", content: system }]), ...conversation],
    ...{ stream: true, stream_options: { include_usage: true } },
  };
  running = new AbortController();
  let written = "";
  const asking = performance.now();
  let first: number | undefined;
  const rate = (tokens: number) => {
    const seconds = (performance.now() - (first ?? asking)) / 1000;
    return `${tokens} tokens, ${(tokens / Math.max(seconds, 1e-3)).toFixed(1)} tokens/s`;
  };
  try {
    const request = { method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal };
    const response = await fetch("/v1/chat/completions", request);
    if (!response.ok) throw new Error(await reasonOf(response));
    let pieces = 0;
    let tokens: number | undefined;
    for await (const { choices, usage, error } of events(response)) {
      if (error !== undefined) throw new Error(error.message);
      const piece = choices?.[0]?.delta.content ?? "";
      if (piece !== "") {
        first ??= performance.now();
        written += piece;
        pieces++;
        article.append(piece);
        messages.scrollTop = messages.scrollHeight;
      }
      tokens = usage?.completion_tokens ?? tokens;
      const wait = first === undefined ? "" : `, first after ${Math.round(first - asking)} ms`;
      status.textContent = rate(tokens ?? pieces) + wait;
    }
  } catch (error) {
    if (running.signal.aborted) status.textContent = "Stopped.";
    else {
      article.className = "error";
      article.textContent = error instanceof Error ? error.message : `${error}`;
    }
  } finally {
    running = undefined;
  }
  if (written === "") conversation.pop();
  else conversation.push({ role: "assistant", content: written });
}

element("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const asked = text.value.trim();
  if (asked === "" || running !== undefined) return;
  text.value = "";
  [send.disabled, stop.disabled] = [true, false];
  await answer(asked);
  [send.disabled, stop.disabled] = [false, true];
  text.focus();
});
text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  element<HTMLFormElement>("ask").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
stop.addEventListener("click", () => running?.abort());
element("clear").addEventListener("click", () => {
  running?.abort();
  conversation = [];
  messages.replaceChildren();
  status.textContent = "";
  text.focus();
});
element("key").addEventListener("change", listModels);
void listModels();

export {}; // a module of its own
