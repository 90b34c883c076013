import { Wllama } from "@wllama/wllama";
import { useEffect, useRef, useState } from "preact/hooks";
import { Markdown } from "../../shared/markdown.js";
import { Form } from "../../shared/parts.js";
import { messageOf } from "../../shared/use.js";
import { fetchArtifact } from "../api.js";

interface Turn {
  readonly role: "user" | "assistant";
  readonly content: string;
}

/** Tokens of prompt and answer. */
const CONTEXT_LENGTH = 2048;
/** Tokens of one answer. */
const MAX_TOKENS = 256;
const FIRST_PROMPT = "Tom had a";
const LOGGER = { debug: () => {}, log: () => {}, warn: () => {}, error: console.error };

interface BrowserModel {
  /** Undefined until it can be used. */
  readonly engine: Wllama | undefined;
  readonly hasChatTemplate: boolean;
  /** How loading goes, for the user. */
  readonly loadStatus: string;
}

/** Loads a job's file into this tab, by WebAssembly. */
function useBrowserModel(jobId: string, name: string): BrowserModel {
  const [model, setModel] = useState<BrowserModel>(loading("Downloading the file…"));
  useEffect(() => {
    const engine = new Wllama({ default: "/wllama/wllama.wasm" }, { logger: LOGGER });
    const { signal, abort } = abortable();
    const load = async () => {
      const file = await fetchArtifact(jobId, name, signal);
      setModel(loading("Loading the model…"));
      await engine.loadModel([file], { n_gpu_layers: 0, n_ctx: CONTEXT_LENGTH });
      if (signal.aborted) return engine.exit();
      const threads = engine.getNumThreads();
      const loadStatus = `Ready, on ${threads} thread${threads === 1 ? "" : "s"}.`;
      setModel({ engine, hasChatTemplate: Boolean(engine.getChatTemplate()), loadStatus });
    };
    load().catch(
      (error: unknown) => signal.aborted || setModel(loading(`It cannot run in this browser: ${messageOf(error)}`)),
    );
    return () => {
      abort();
      engine.exit().catch(() => {});
    };
  }, [jobId, name]);
  return model;
}

const loading = (loadStatus: string): BrowserModel => ({ engine: undefined, hasChatTemplate: false, loadStatus });

function abortable() {
  const controller = new AbortController();
  return { signal: controller.signal, abort: () => controller.abort() };
}

/** The turns of a conversation with a model in this tab. A model without a chat template continues each text by itself. */
function useTurns({ engine, hasChatTemplate }: BrowserModel) {
  const [turns, setTurns] = useState<readonly Turn[]>([]);
  const [isWriting, setWriting] = useState(false);
  const [status, setStatus] = useState("");
  const abort = useRef<() => void>();
  useEffect(() => () => abort.current?.(), [engine]);

  const write = async (content: string) => {
    if (engine === undefined) return;
    setWriting(true);
    const history: readonly Turn[] = [...(hasChatTemplate ? turns : []), { role: "user", content }];
    const show = (answer: string) => setTurns([...history, { role: "assistant", content: answer }]);
    show("");
    const request = abortable();
    abort.current = request.abort;
    const began = performance.now();
    let [tokens, answer] = [0, ""];
    try {
      const parts = hasChatTemplate
        ? chat(engine, history, request.signal)
        : continuation(engine, content, request.signal);
      for await (const part of parts) {
        tokens++;
        answer += part;
        show(answer);
      }
      const seconds = (performance.now() - began) / 1000;
      setStatus(`${tokens} tokens, ${(tokens / seconds).toFixed(1)} tokens/s on this device.`);
    } catch (error) {
      setStatus(request.signal.aborted ? "Stopped." : messageOf(error));
    } finally {
      setWriting(false);
    }
  };
  return { turns, isWriting, status, write, stop: () => abort.current?.(), startOver: () => setTurns([]) };
}

const SAMPLING = { max_tokens: MAX_TOKENS, temperature: 0.7, stream: true } as const;

/** The answer to the last turn, as it is written. */
async function* chat(engine: Wllama, turns: readonly Turn[], abortSignal: AbortSignal): AsyncGenerator<string> {
  for await (const { choices } of await engine.createChatCompletion({ ...SAMPLING, abortSignal, messages: [...turns] }))
    if (choices[0]?.delta.content) yield choices[0].delta.content;
}

/** The continuation of a text, as it is written. */
async function* continuation(engine: Wllama, prompt: string, abortSignal: AbortSignal): AsyncGenerator<string> {
  for await (const { choices } of await engine.createCompletion({ ...SAMPLING, abortSignal, prompt }))
    yield choices[0]?.text ?? "";
}

/** Runs a finished file in this tab: nothing that is written here leaves the device. */
export function RunHere({ jobId, name }: { jobId: string; name: string }) {
  const model = useBrowserModel(jobId, name);
  const { turns, isWriting, status, write, stop, startOver } = useTurns(model);
  const { hasChatTemplate } = model;
  const [typed, setTyped] = useState<string>();
  const text = typed ?? (hasChatTemplate ? "" : FIRST_PROMPT);
  const isBusy = model.engine === undefined || isWriting;
  const submit = () => {
    void write(text);
    if (hasChatTemplate) setTyped("");
  };
  return (
    <section>
      <h1>Run in the browser</h1>
      <p>
        <code>{name}</code> runs in this tab. What you write stays on this device.{" "}
        <a href={`#/jobs/${jobId}`}>Back to the job</a>
      </p>
      <div data-testid="answer" aria-live="polite" aria-busy={isBusy}>
        {hasChatTemplate ? <Conversation turns={turns} /> : <Continuation turns={turns} />}
      </div>
      <Form onSubmit={submit}>
        <label>
          {hasChatTemplate ? "Message" : "Text to continue"}
          <textarea rows={3} value={text} onInput={(event) => setTyped(event.currentTarget.value)} />
        </label>
        <div class="row">
          <button type="submit" class="primary" disabled={isBusy || text === ""}>
            {hasChatTemplate ? "Send" : "Continue"}
          </button>
          <button type="button" disabled={!isWriting} onClick={stop}>
            Stop
          </button>
          {hasChatTemplate && (
            <button type="button" disabled={isBusy || turns.length === 0} onClick={startOver}>
              New chat
            </button>
          )}
        </div>
      </Form>
      <p role="status" data-testid="engine">
        {status || model.loadStatus}
      </p>
    </section>
  );
}

function Conversation({ turns }: { turns: readonly Turn[] }) {
  return (
    <>
      {turns.map(({ role, content }, i) => (
        <div key={i} class={`answer ${role}`}>
          <span class="quiet">{role === "user" ? "You" : "Model"}: </span>
          {role === "user" ? content : <Markdown text={content} />}
        </div>
      ))}
    </>
  );
}

/** A prompt and the text that follows it. */
function Continuation({ turns: [prompt, answer] }: { turns: readonly Turn[] }) {
  if (prompt === undefined) return null;
  return (
    <p class="answer">
      <span class="quiet">{prompt.content}</span>
      {answer?.content}
    </p>
  );
}
