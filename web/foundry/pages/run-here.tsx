import { Wllama } from "@wllama/wllama";
import { useEffect, useRef, useState } from "preact/hooks";
import { Markdown } from "../../shared/markdown.js";
import { messageOf } from "../../shared/use.js";
import { fileOf } from "../api.js";

interface Turn {
  readonly role: "user" | "assistant";
  readonly content: string;
}

/** Tokens of prompt and answer, and those that it may write at once. */
const [CONTEXT, MOST_TOKENS] = [2048, 256];

/**
 * A finished file runs in this tab, by WebAssembly: nothing that is written here leaves the device. One that has a template for
 * chats is talked with; others go on with a text.
 */
export function RunHere({ jobId, name }: { jobId: string; name: string }) {
  const [state, setState] = useState("Loading the file …");
  const [chats, setChats] = useState(false);
  const [text, setText] = useState("Tom had a");
  const [turns, setTurns] = useState<readonly Turn[]>([]);
  const [busy, setBusy] = useState(true);
  const engine = useRef<Wllama | undefined>(undefined);
  const abort = useRef<AbortController | undefined>(undefined);

  useEffect(() => {
    const own = new Wllama({ default: "/wllama/wllama.wasm" }, { logger: quiet });
    const left = new AbortController();
    const load = async () => {
      const file = await fileOf(jobId, name, left.signal);
      setState("Starting the model …");
      await own.loadModel([file], { n_gpu_layers: 0, n_ctx: CONTEXT });
      if (left.signal.aborted) return own.exit();
      engine.current = own;
      if (own.getChatTemplate()) {
        setChats(true);
        setText("");
      }
      setBusy(false);
      setState(`Ready, on ${own.getNumThreads()} thread${own.getNumThreads() === 1 ? "" : "s"} of this device.`);
    };
    load().catch((error: unknown) => left.signal.aborted || setState(`It cannot run here: ${messageOf(error)}`));
    return () => {
      left.abort();
      abort.current?.abort();
      engine.current = undefined;
      own.exit().catch(() => {});
    };
  }, [jobId, name]);

  const write = async () => {
    const own = engine.current;
    if (own === undefined) return;
    setBusy(true);
    const asked = [...(chats ? turns : []), { role: "user", content: text } as const];
    const put = (content: string) => setTurns([...asked, { role: "assistant", content }]);
    put("");
    if (chats) setText("");
    const stop = new AbortController();
    abort.current = stop;
    const began = performance.now();
    let [tokens, answer] = [0, ""];
    try {
      for await (const part of partsOf(own, asked, chats, stop.signal)) {
        tokens++;
        answer += part;
        put(answer);
      }
      setState(
        `${tokens} tokens, ${((1000 * tokens) / (performance.now() - began)).toFixed(1)} tokens/s on this device.`,
      );
    } catch (error) {
      setState(stop.signal.aborted ? "Stopped." : messageOf(error));
    } finally {
      setBusy(false);
    }
  };

  return (
    <section>
      <h1>Run it here</h1>
      <p>
        <code>{name}</code> runs in this tab. What you write stays on this device.{" "}
        <a href={`#/jobs/${jobId}`}>Back to the job</a>
      </p>
      <div data-testid="answer" aria-live="polite" aria-busy={busy}>
        {chats
          ? turns.map(({ role, content }, i) => (
              <div key={i} class={`answer ${role}`}>
                <span class="quiet">{role === "user" ? "You" : "The model"}: </span>
                {role === "user" ? content : <Markdown text={content} />}
              </div>
            ))
          : turns.length > 0 && (
              <p class="answer">
                <span class="quiet">{turns[0]?.content}</span>
                {turns[1]?.content}
              </p>
            )}
      </div>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void write();
        }}
      >
        <label>
          {chats ? "Message" : "Text to go on with"}
          <textarea rows={3} value={text} onInput={(event) => setText(event.currentTarget.value)} />
        </label>
        <div class="row">
          <button type="submit" class="primary" disabled={busy || text === ""}>
            {chats ? "Send" : "Write"}
          </button>
          <button type="button" disabled={!busy || abort.current === undefined} onClick={() => abort.current?.abort()}>
            Stop
          </button>
          {chats && (
            <button type="button" disabled={busy || turns.length === 0} onClick={() => setTurns([])}>
              Begin anew
            </button>
          )}
        </div>
      </form>
      <p role="status" data-testid="engine">
        {state}
      </p>
    </section>
  );
}

/** What a model says to the turns before, or how it goes on with the only one, as it comes. */
async function* partsOf(
  model: Wllama,
  turns: readonly Turn[],
  chats: boolean,
  abortSignal: AbortSignal,
): AsyncGenerator<string> {
  const common = { max_tokens: MOST_TOKENS, temperature: 0.7, stream: true, abortSignal } as const;
  if (chats) {
    for await (const { choices } of await model.createChatCompletion({ ...common, messages: [...turns] }))
      if (choices[0]?.delta.content) yield choices[0].delta.content;
  } else {
    for await (const { choices } of await model.createCompletion({ ...common, prompt: turns[0]?.content ?? "" }))
      yield choices[0]?.text ?? "";
  }
}

const quiet = { debug: () => {}, log: () => {}, warn: () => {}, error: console.error };
