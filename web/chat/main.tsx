import { render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { copyText, sayCopied } from "../shared/browser.js";
import { Markdown } from "../shared/markdown.js";
import { Scrollable } from "../shared/scrollable.js";
import { messageOf, useLoaded } from "../shared/use.js";
import { answer, listModels, remember, remembered, type Settings, type Turn } from "./conversation.js";
import "../shared/style.css";
import "./chat.css";

/** A reader within so many pixels of the end follows the conversation as it grows. */
const NEAR_END = 80;

/** The models that the service has, and which is asked. */
function useModels(key: string) {
  const { value: models = [], error } = useLoaded(() => listModels(key), [key]);
  const [chosen, setModel] = useState("");
  const model = models.includes(chosen) ? chosen : (models[0] ?? "");
  return { models, model, setModel, problem: error && `The models cannot be listed: ${error}` };
}

/** The turns of a conversation, of which the tab remembers those before; how they are asked for and stopped. */
function useConversation(before: readonly Turn[], model: string, settings: Settings, key: string) {
  const [turns, setTurns] = useState(before);
  const [status, setStatus] = useState("");
  const [running, setRunning] = useState<AbortController>();
  // not with each token: of an answer that is being written, when it ends or the page is left
  useEffect(() => {
    const keep = () => remember(turns, settings);
    if (running === undefined) keep();
    addEventListener("pagehide", keep);
    return () => removeEventListener("pagehide", keep);
  }, [turns, settings, running]);
  useEffect(() => {
    const escaped = (event: KeyboardEvent) => event.key === "Escape" && running?.abort();
    addEventListener("keydown", escaped);
    return () => removeEventListener("keydown", escaped);
  }, [running]);
  /** The answer that is shown: one that was left says nothing any more. */
  const current = useRef<AbortController>();
  /** Asks for what follows the turns, of which the last is the user's. */
  const ask = async (asked: readonly Turn[]) => {
    const stop = new AbortController();
    current.current = stop;
    setRunning(stop);
    const isShown = () => current.current === stop;
    const show = (content: string, error?: string) =>
      isShown() && setTurns([...asked, { role: "assistant", content, error }]);
    show("");
    const began = performance.now();
    let first: number | undefined;
    let written = "";
    let counted = 0;
    try {
      for await (const { text, tokens } of answer(asked, model, settings, key, stop.signal)) {
        if (text !== "") first ??= performance.now();
        written += text;
        counted = tokens;
        show(written);
      }
      const seconds = Math.max((performance.now() - (first ?? began)) / 1000, 1e-3);
      const wait = first === undefined ? "" : `, first after ${Math.round(first - began)} ms`;
      if (isShown()) setStatus(`${counted} tokens, ${(counted / seconds).toFixed(1)} tokens/s${wait}`);
    } catch (error) {
      if (!stop.signal.aborted) show(written, messageOf(error));
      else if (written === "") show("", "Stopped before the first word.");
      if (stop.signal.aborted && isShown()) setStatus("Stopped.");
    } finally {
      if (isShown()) setRunning(undefined);
    }
  };
  const forget = () => {
    current.current = undefined;
    running?.abort();
    setRunning(undefined);
    setTurns([]);
    setStatus("");
  };
  return { turns, setTurns, status, running, ask, forget };
}

function Chat() {
  const [{ turns: before, settings: set }] = useState(remembered);
  const [settings, setSettings] = useState(set);
  const [key, setKey] = useState("");
  const [text, setText] = useState("");
  const field = useRef<HTMLTextAreaElement>(null);
  const { models, model, setModel, problem } = useModels(key);
  const { turns, setTurns, status, running, ask, forget } = useConversation(before, model, settings, key);
  const submit = () => {
    const said = text.trim();
    if (said === "" || running !== undefined) return;
    setText("");
    field.current?.focus();
    void ask([...turns, { role: "user", content: said }]);
  };
  const edit = (at: number) => {
    setText(turns[at]?.content ?? "");
    setTurns(turns.slice(0, at));
    field.current?.focus();
  };
  return (
    <>
      <header>
        <h1>Coppice</h1>
        <label>
          Model
          <select value={model} onChange={(event) => setModel(event.currentTarget.value)}>
            {models.map((id) => (
              <option key={id}>{id}</option>
            ))}
          </select>
        </label>
        <button type="button" onClick={forget}>
          New chat
        </button>
        <a href="/docs">API</a>
      </header>
      <main>
        <Parameters settings={settings} onChange={setSettings} apiKey={key} onKey={setKey} />
        {problem && (
          <p class="error" role="alert">
            {problem}
          </p>
        )}
        <Log turns={turns} model={model} isRunning={running !== undefined} onEdit={edit} onRetry={ask} />
        <p id="status" role="status">
          {status}
        </p>
        <form
          class="ask"
          onSubmit={(event) => {
            event.preventDefault();
            submit();
          }}
        >
          <label for="text" class="hidden">
            Message
          </label>
          <textarea
            id="text"
            ref={field}
            rows={2}
            required
            placeholder="Message (Enter sends, Shift+Enter breaks the line)"
            value={text}
            onInput={(event) => setText(event.currentTarget.value)}
            onKeyDown={(event) => {
              if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
              event.preventDefault();
              submit();
            }}
          />
          {running === undefined ? (
            <button type="submit" class="primary">
              Send
            </button>
          ) : (
            <button type="button" onClick={() => running.abort()}>
              Stop
            </button>
          )}
        </form>
      </main>
    </>
  );
}

/** What was said, which is followed as it grows. */
function Log({
  turns,
  model,
  isRunning,
  onEdit,
  onRetry,
}: {
  turns: readonly Turn[];
  model: string;
  isRunning: boolean;
  onEdit: (at: number) => void;
  onRetry: (asked: readonly Turn[]) => Promise<void>;
}) {
  const place = useRef<HTMLDivElement>(null);
  const isAtEnd = useRef(true);
  useEffect(() => {
    if (isAtEnd.current && place.current !== null) place.current.scrollTop = place.current.scrollHeight;
  }, [turns]);
  const lastAsked = turns.findLastIndex(({ role }) => role === "user");
  const isLast = (i: number) => i === turns.length - 1;
  const again = lastAsked < 0 || isRunning ? undefined : () => void onRetry(turns.slice(0, lastAsked + 1));
  return (
    <Scrollable
      class="log"
      ref={place}
      role="log"
      aria-live="polite"
      aria-busy={isRunning}
      aria-label="Conversation"
      onScroll={({ currentTarget: at }) => {
        isAtEnd.current = at.scrollHeight - at.scrollTop - at.clientHeight < NEAR_END;
      }}
    >
      {turns.length === 0 && (
        <p class="quiet start">What is written here goes to this service and stays in this tab.</p>
      )}
      {turns.map((turn, i) => (
        <TurnView
          key={i}
          turn={turn}
          name={turn.role === "user" ? "You" : model}
          isWriting={isRunning && isLast(i)}
          onEdit={turn.role === "user" && !isRunning ? () => onEdit(i) : undefined}
          onRetry={isLast(i) && i > lastAsked ? again : undefined}
        />
      ))}
    </Scrollable>
  );
}

/** One turn, with what can be done about it. */
function TurnView({
  turn: { role, content, error },
  name,
  isWriting,
  onEdit,
  onRetry,
}: {
  turn: Turn;
  name: string;
  isWriting: boolean;
  onEdit: (() => void) | undefined;
  onRetry: (() => void) | undefined;
}) {
  return (
    <article class={`${role}${error === undefined ? "" : " error"}`} aria-busy={isWriting}>
      <h2>{name}</h2>
      {role === "user" ? <p class="as-written">{content}</p> : <Markdown text={content} />}
      {isWriting && content === "" && <p class="quiet">…</p>}
      {error !== undefined && (
        <p class="error" role="alert">
          {error}
        </p>
      )}
      <div class="row">
        {role === "assistant" && !isWriting && content !== "" && (
          <button
            type="button"
            class="plain"
            onClick={({ currentTarget }) =>
              void copyText(content).then((isCopied) => sayCopied(currentTarget, isCopied))
            }
          >
            Copy
          </button>
        )}
        {onEdit && (
          <button type="button" class="plain" onClick={onEdit}>
            Edit
          </button>
        )}
        {onRetry && (
          <button type="button" class="plain" onClick={onRetry}>
            Retry
          </button>
        )}
      </div>
    </article>
  );
}

/** Fields of numbers: name in the API, label, and what the browser checks. */
const NUMBERS = [
  ["temperature", "Temperature", { min: 0, max: 2, step: 0.1 }],
  ["top_p", "Top p", { min: 0.01, max: 1, step: 0.01 }],
  ["min_p", "Min p", { min: 0, max: 1, step: 0.01, placeholder: "0" }],
  ["top_k", "Top k", { min: 0, step: 1, placeholder: "all" }],
  ["max_tokens", "Most tokens", { min: 1, step: 1 }],
  ["seed", "Seed", { min: 0, step: 1, placeholder: "any" }],
] as const;

function Parameters({
  settings,
  onChange,
  apiKey,
  onKey,
}: {
  settings: Settings;
  onChange: (settings: Settings) => void;
  apiKey: string;
  onKey: (key: string) => void;
}) {
  return (
    <details>
      <summary>Parameters</summary>
      <div class="parameters">
        {NUMBERS.map(([name, label, rules]) => (
          <label key={name}>
            {label}
            <input
              type="number"
              {...rules}
              value={settings[name]}
              onInput={(event) => onChange({ ...settings, [name]: event.currentTarget.value })}
            />
          </label>
        ))}
        <label>
          Key
          <input
            type="password"
            autocomplete="off"
            placeholder="where one is needed"
            value={apiKey}
            onChange={(event) => onKey(event.currentTarget.value)}
          />
        </label>
        <label class="wide">
          System
          <textarea
            rows={2}
            placeholder="What the model should be like"
            value={settings.system}
            onInput={(event) => onChange({ ...settings, system: event.currentTarget.value })}
          />
        </label>
      </div>
    </details>
  );
}

const root = document.getElementById("app");
if (root !== null) render(<Chat />, root);
