import { useRef, useState } from "preact/hooks";
import { events, list, type Model } from "./api.js";
import { messageOf, useLoaded } from "./use.js";

/** What is told of a model that writes. */
type WritingEvents = {
  readonly text: { readonly text: string };
  readonly error: { readonly error: { readonly message: string } };
  readonly end: Readonly<Record<string, never>>;
};

/** Two models go on with the same text, or answer it, side by side. */
export function Compare({ id }: { id: string | undefined }) {
  const { value: models, error } = useLoaded(() => list<Model>("/v1/models"), []);
  const ready = (models ?? []).filter((model) => model.state === "ready");
  const made = id ?? ready.find(({ job_id }) => job_id !== null)?.id;
  const [chosen, setChosen] = useState<readonly [string, string]>(["", ""]);
  const ids = [
    chosen[0] || (ready.find(({ shared }) => shared)?.id ?? ""),
    chosen[1] || (made ?? ready[0]?.id ?? ""),
  ] as const;
  const [prompt, setPrompt] = useState("Tom had a red");
  const [answers, setAnswers] = useState<readonly [string, string]>(["", ""]);
  const [busy, setBusy] = useState(false);
  const abort = useRef<AbortController | undefined>(undefined);

  const ask = async () => {
    setBusy(true);
    setAnswers(["", ""]);
    const own = new AbortController();
    abort.current = own;
    const body = JSON.stringify({ prompt, max_tokens: 80, temperature: 0 });
    await Promise.all(
      ids.map(async (model, side) => {
        const put = (text: string) =>
          setAnswers((before) => [
            side === 0 ? before[0] + text : before[0],
            side === 1 ? before[1] + text : before[1],
          ]);
        try {
          const init = { method: "POST", body, signal: own.signal, headers: { "content-type": "application/json" } };
          for await (const { event, data } of events<WritingEvents>(`/v1/models/${model}/completions`, init)) {
            if (event === "text") put(data.text);
            if (event === "error") put(` [${data.error.message}]`);
          }
        } catch (failed) {
          if (!own.signal.aborted) put(` [${messageOf(failed)}]`);
        }
      }),
    );
    setBusy(false);
  };

  return (
    <section>
      <h1>Compare</h1>
      {error && (
        <p class="error" role="alert">
          {error}
        </p>
      )}
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void ask();
        }}
      >
        <label>
          Text to go on with, or to answer
          <textarea rows={3} value={prompt} onInput={(event) => setPrompt(event.currentTarget.value)} />
        </label>
        <button type="submit" class="primary" disabled={busy || prompt === ""}>
          Ask both
        </button>{" "}
        <button type="button" disabled={!busy} onClick={() => abort.current?.abort()}>
          Stop
        </button>
      </form>
      <div class="two">
        {([0, 1] as const).map((side) => (
          <article key={side}>
            <label>
              {side === 0 ? "One" : "Other"}
              <select
                value={ids[side]}
                onChange={(event) =>
                  setChosen(
                    side === 0 ? [event.currentTarget.value, chosen[1]] : [chosen[0], event.currentTarget.value],
                  )
                }
              >
                {ready.map((model) => (
                  <option key={model.id} value={model.id}>
                    {model.name}
                  </option>
                ))}
              </select>
            </label>
            <p class="answer" aria-live="polite">
              <span class="quiet">{prompt}</span>
              {answers[side]}
            </p>
          </article>
        ))}
      </div>
    </section>
  );
}
