import { useEffect, useRef, useState } from "preact/hooks";
import { messageOf, useLoaded } from "../../shared/use.js";
import { events, list, type Model } from "../api.js";
import { Problem } from "../parts.js";

/** What is told of a model that writes. */
type WritingEvents = {
  readonly text: { readonly text: string };
  readonly error: { readonly error: { readonly message: string } };
  readonly end: Readonly<Record<string, never>>;
};

type Pair = readonly [string, string];
const SIDES = [0, 1] as const;

/** Two models of the library, chosen. */
export function Compare({ id }: { id: string | undefined }) {
  const { value: models, error } = useLoaded(() => list<Model>("/v1/models"), []);
  const ready = (models ?? []).filter((model) => model.state === "ready");
  const made = id ?? ready.find(({ job_id }) => job_id !== null)?.id;
  const [chosen, setChosen] = useState<Pair>(["", ""]);
  const ids: Pair = [
    chosen[0] || (ready.find(({ shared }) => shared)?.id ?? ""),
    chosen[1] || (made ?? ready[0]?.id ?? ""),
  ];
  return (
    <section>
      <h1>Compare</h1>
      <Problem>{error}</Problem>
      <div class="two">
        {SIDES.map((side) => (
          <label key={side}>
            {side === 0 ? "One" : "Other"}
            <select
              value={ids[side]}
              onChange={({ currentTarget: { value } }) => setChosen(side === 0 ? [value, ids[1]] : [ids[0], value])}
            >
              {ready.map((model) => (
                <option key={model.id} value={model.id}>
                  {model.name}
                </option>
              ))}
            </select>
          </label>
        ))}
      </div>
      <SideBySide ids={ids} names={["one", "other"]} />
    </section>
  );
}

/** Two models go on with the same text, or answer it, side by side. */
export function SideBySide({ ids, names }: { ids: Pair; names: Pair }) {
  const [prompt, setPrompt] = useState("Tom had a red");
  const [asked, setAsked] = useState("");
  const [answers, setAnswers] = useState<Pair>(["", ""]);
  const [problems, setProblems] = useState<Pair>(["", ""]);
  const [running, setRunning] = useState(false);
  const abort = useRef<AbortController>();
  useEffect(() => () => abort.current?.abort(), []);
  const put =
    (side: 0 | 1, text: string) =>
    (before: Pair): Pair =>
      side === 0 ? [before[0] + text, before[1]] : [before[0], before[1] + text];

  const ask = async () => {
    setRunning(true);
    setAsked(prompt);
    setAnswers(["", ""]);
    setProblems(["", ""]);
    const own = new AbortController();
    abort.current = own;
    const body = JSON.stringify({ prompt, max_tokens: 80, temperature: 0 });
    const init = { method: "POST", body, signal: own.signal, headers: { "content-type": "application/json" } };
    const write = async (side: 0 | 1) => {
      try {
        for await (const { event, data } of events<WritingEvents>(`/v1/models/${ids[side]}/completions`, init)) {
          if (event === "text") setAnswers(put(side, data.text));
          if (event === "error") setProblems(put(side, data.error.message));
        }
      } catch (failed) {
        if (!own.signal.aborted) setProblems(put(side, messageOf(failed)));
      }
    };
    await Promise.all(SIDES.map(write));
    setRunning(false);
  };

  return (
    <>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void ask();
        }}
      >
        <label>
          Text to go on with, or to answer
          <textarea rows={2} value={prompt} onInput={(event) => setPrompt(event.currentTarget.value)} />
        </label>
        <div class="row">
          <button type="submit" class="primary" disabled={running || prompt === ""}>
            Ask both
          </button>
          <button type="button" disabled={!running} onClick={() => abort.current?.abort()}>
            Stop
          </button>
        </div>
      </form>
      <div class="two">
        {SIDES.map((side) => (
          <div key={side}>
            <p class="quiet">{names[side]}</p>
            <p class="answer" aria-live="polite" aria-busy={running}>
              <span class="quiet">{asked}</span>
              {answers[side]}
            </p>
            <Problem>{problems[side]}</Problem>
          </div>
        ))}
      </div>
    </>
  );
}
