import { Wllama } from "@wllama/wllama";
import { useEffect, useRef, useState } from "preact/hooks";
import { fileOf } from "./api.js";
import { messageOf } from "./use.js";

/** A finished file runs in this tab, by WebAssembly: nothing that is written here leaves the device. */
export function RunHere({ jobId, name }: { jobId: string; name: string }) {
  const [state, setState] = useState("Loading the file …");
  const [text, setText] = useState("Tom had a");
  const [answer, setAnswer] = useState("");
  const [busy, setBusy] = useState(true);
  const engine = useRef<Wllama | undefined>(undefined);
  const abort = useRef<AbortController | undefined>(undefined);

  useEffect(() => {
    const own = new Wllama({ default: "/wllama/wllama.wasm" }, { logger: quiet });
    const load = async () => {
      const file = await fileOf(jobId, name);
      setState("Starting the model …");
      await own.loadModel([file], { n_gpu_layers: 0 });
      engine.current = own;
      setBusy(false);
      setState(`Ready, on ${own.getNumThreads()} thread${own.getNumThreads() === 1 ? "" : "s"} of this device.`);
    };
    load().catch((error: unknown) => setState(`It cannot run here: ${messageOf(error)}`));
    return () => void own.exit().catch(() => {});
  }, [jobId, name]);

  const write = async () => {
    const own = engine.current;
    if (own === undefined) return;
    setBusy(true);
    setAnswer("");
    const stop = new AbortController();
    abort.current = stop;
    const began = performance.now();
    let tokens = 0;
    try {
      const chunks = await own.createCompletion({
        prompt: text,
        max_tokens: 96,
        temperature: 0.7,
        stream: true,
        abortSignal: stop.signal,
      });
      for await (const chunk of chunks) {
        tokens++;
        setAnswer((before) => before + (chunk.choices[0]?.text ?? ""));
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
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void write();
        }}
      >
        <label>
          Text to go on with
          <textarea rows={3} value={text} onInput={(event) => setText(event.currentTarget.value)} />
        </label>
        <button type="submit" class="primary" disabled={busy || text === ""}>
          Write
        </button>{" "}
        <button type="button" disabled={!busy || abort.current === undefined} onClick={() => abort.current?.abort()}>
          Stop
        </button>
      </form>
      <p role="status" data-testid="engine">
        {state}
      </p>
      <p class="answer" data-testid="answer" aria-live="polite">
        {answer !== "" && <span class="quiet">{text}</span>}
        {answer}
      </p>
    </section>
  );
}

const quiet = { debug: () => {}, log: () => {}, warn: () => {}, error: console.error };
