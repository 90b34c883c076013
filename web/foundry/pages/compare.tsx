import { useEffect, useRef, useState } from "preact/hooks";
import { Form, Problem, Select } from "../../shared/parts.js";
import { messageOf, useLoaded } from "../../shared/use.js";
import { events, list, type Model } from "../api.js";

/** Events of a completion. */
type CompletionEvents = {
  readonly text: { readonly text: string };
  readonly error: { readonly error: { readonly message: string } };
  readonly end: Readonly<Record<string, never>>;
};

type Pair = readonly [string, string];
const SIDES = [0, 1] as const;
type Side = (typeof SIDES)[number];

const replace = (pair: Pair, side: Side, value: string): Pair => (side === 0 ? [value, pair[1]] : [pair[0], value]);

/** Two models of the user's choice, side by side. @param id the second model; a job's model by default */
export function Compare({ id }: { id: string | undefined }) {
  const { value: models, error } = useLoaded(() => list<Model>("/v1/models"), []);
  const ready = (models ?? []).filter((model) => model.state === "ready");
  const second = id ?? ready.find(({ job_id }) => job_id !== null)?.id ?? ready[0]?.id ?? "";
  const [selected, setSelected] = useState<Pair>(["", ""]);
  const ids: Pair = [selected[0] || (ready.find(({ shared }) => shared)?.id ?? ""), selected[1] || second];
  return (
    <section>
      <h1>Compare</h1>
      <Problem>{error}</Problem>
      <div class="two">
        {SIDES.map((side) => (
          <Select
            key={side}
            label={side === 0 ? "First model" : "Second model"}
            value={ids[side]}
            choices={ready.map((model) => ({ value: model.id, name: model.name }))}
            onSelect={(value) => setSelected(replace(ids, side, value))}
          />
        ))}
      </div>
      <SideBySide ids={ids} names={["First", "Second"]} />
    </section>
  );
}

/** Sends a prompt to two models. */
function useCompletions(ids: Pair) {
  const [answers, setAnswers] = useState<Pair>(["", ""]);
  const [problems, setProblems] = useState<Pair>(["", ""]);
  const [isRunning, setRunning] = useState(false);
  const abort = useRef<AbortController>();
  useEffect(() => () => abort.current?.abort(), []);
  const append = (side: Side, text: string) => (pair: Pair) => replace(pair, side, pair[side] + text);

  const run = async (prompt: string) => {
    setRunning(true);
    setAnswers(["", ""]);
    setProblems(["", ""]);
    const request = new AbortController();
    const { signal } = request;
    abort.current = request;
    const body = JSON.stringify({ prompt, max_tokens: 80, temperature: 0 });
    const init = { method: "POST", body, signal, headers: { "content-type": "application/json" } };
    const complete = async (side: Side) => {
      try {
        for await (const { event, data } of events<CompletionEvents>(`/v1/models/${ids[side]}/completions`, init)) {
          if (event === "text") setAnswers(append(side, data.text));
          if (event === "error") setProblems(append(side, data.error.message));
        }
      } catch (error) {
        if (!signal.aborted) setProblems(append(side, messageOf(error)));
      }
    };
    await Promise.all(SIDES.map(complete));
    setRunning(false);
  };
  return { answers, problems, isRunning, run, stop: () => abort.current?.abort() };
}

/** Two models complete the same text, or answer it, side by side. */
export function SideBySide({ ids, names }: { ids: Pair; names: Pair }) {
  const [prompt, setPrompt] = useState("Tom had a red");
  const [sentPrompt, setSentPrompt] = useState("");
  const { answers, problems, isRunning, run, stop } = useCompletions(ids);
  const submit = () => {
    setSentPrompt(prompt);
    void run(prompt);
  };
  return (
    <>
      <Form onSubmit={submit}>
        <label>
          Prompt
          <textarea rows={2} value={prompt} onInput={(event) => setPrompt(event.currentTarget.value)} />
        </label>
        <div class="row">
          <button type="submit" class="primary" disabled={isRunning || prompt === ""}>
            Run both
          </button>
          <button type="button" disabled={!isRunning} onClick={stop}>
            Stop
          </button>
        </div>
      </Form>
      <div class="two">
        {SIDES.map((side) => (
          <div key={side}>
            <p class="quiet">{names[side]}</p>
            <p class="answer" aria-live="polite" aria-busy={isRunning}>
              <span class="quiet">{sentPrompt}</span>
              {answers[side]}
            </p>
            <Problem>{problems[side]}</Problem>
          </div>
        ))}
      </div>
    </>
  );
}
