import { useEffect, useState } from "preact/hooks";
import { randomName } from "../../shared/browser.js";
import { messageOf, useLoaded } from "../../shared/use.js";
import { type Candidate, type Device, type Job, list, type Model, type Plan, send } from "../api.js";
import { describeCandidate, lowest, Pareto } from "../charts/pareto.js";
import { bytes, count } from "../format.js";
import { Panel, Problem } from "../parts.js";
import { DataField, ModelField } from "./materials.js";

/** What a job is asked for beside its model, data and device. */
interface More {
  readonly tokens: string;
  readonly tasks: string;
  readonly correction: boolean;
}

/** A model, data and a device: with a live plan, and what follows from it. */
export function NewJob() {
  const models = useLoaded(() => list<Model>("/v1/models"), []);
  const devices = useLoaded(() => list<Device>("/v1/devices"), []);
  const [model, setModel] = useState("");
  const [dataset, setDataset] = useState("");
  const [device, setDevice] = useState("phone-4gb");
  const [context, setContext] = useState("");
  const [more, setMore] = useState<More>({ tokens: "2000000", tasks: "", correction: false });
  const ready = (models.value ?? []).filter((one) => one.state === "ready");
  const selected = model === "" ? (ready.find((one) => one.shared) ?? ready[0])?.id : model;
  const { plan, chosen, setChosen, problem } = usePlan(selected, device, context, () => {
    if (ready.find((one) => one.id === selected)?.parameters === null) models.reload(); // it was read for the plan
  });
  /** Uploads under way. */
  const [sending, setSending] = useState(0);
  const onBusy = (isBusy: boolean) => setSending((n) => n + (isBusy ? 1 : -1));
  const [starting, setStarting] = useState(false);
  const [refusal, setRefusal] = useState("");

  const start = async () => {
    setStarting(true);
    setRefusal("");
    const isCut = chosen !== null && chosen.share < 1;
    const sizes = isCut && Object.entries(chosen.sizes).map(([axis, size]) => `${axis}=${[size].flat().join("/")}`);
    const tasks = more.tasks.split(",").flatMap((task) => (task.trim() === "" ? [] : [task.trim()]));
    const body = {
      model: selected,
      device,
      tokens: Number(more.tokens),
      ...(dataset !== "" && { dataset }),
      ...(context !== "" && { context_length: Number(context) }),
      target: sizes ? sizes.join(",") : "1x",
      ...(chosen && { quantization: [chosen.kind] }),
      ...(more.correction && { teacher_correction: true }),
      ...(tasks.length > 0 && { evaluate: { tasks, limit: 100 } }),
    };
    try {
      const job = await send<Job>("POST", "/v1/jobs", body, { "idempotency-key": randomName() });
      location.hash = `#/jobs/${job.id}`;
    } catch (error) {
      setRefusal(messageOf(error));
      setStarting(false);
    }
  };

  return (
    <section>
      <h1>New job</h1>
      <p class="quiet">Give a model and a device, get back a model that fits.</p>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void start();
        }}
      >
        <div class="panels">
          <Panel title="From">
            <ModelField
              models={ready}
              selected={selected}
              onSelect={setModel}
              onAdded={models.reload}
              onBusy={onBusy}
            />
            <Problem>{models.error}</Problem>
            <DataField selected={dataset} onSelect={setDataset} onBusy={onBusy} />
          </Panel>
          <Panel title="For">
            <label>
              Device
              <select value={device} onChange={(event) => setDevice(event.currentTarget.value)}>
                {(devices.value ?? []).map((one) => (
                  <option key={one.id} value={one.id}>
                    {one.name}
                  </option>
                ))}
              </select>
            </label>
            <Problem>{devices.error}</Problem>
            <label>
              Context, tokens
              <input
                type="number"
                min="16"
                value={context}
                placeholder={plan === undefined ? "the device's" : String(plan.contextLength)}
                onChange={(event) => setContext(event.currentTarget.value)}
              />
            </label>
            <Problem>{problem}</Problem>
          </Panel>
        </div>
        {plan !== undefined && <CandidateChooser plan={plan} chosen={chosen} onChoose={setChosen} />}
        <MoreFields more={more} onChange={setMore} />
        <div class="row">
          <button type="submit" class="primary" disabled={starting || sending > 0 || chosen === null}>
            {starting ? "Starting …" : "Start"}
          </button>
        </div>
        <Problem>{refusal}</Problem>
      </form>
    </section>
  );
}

/** What can become of a model on a device, asked for when one of them changes. The best is chosen at first. */
function usePlan(model: string | undefined, device: string, context: string, onPlanned: () => void) {
  const [plan, setPlan] = useState<Plan>();
  const [chosen, setChosen] = useState<Candidate | null>(null);
  const [problem, setProblem] = useState("");
  useEffect(() => {
    setPlan(undefined); // one of other inputs is not this one's
    setChosen(null);
    setProblem("");
    if (model === undefined) return;
    let current = true;
    const body = { model, device, ...(context !== "" && { context_length: Number(context) }) };
    send<Plan>("POST", "/v1/plans", body).then(
      (made) => {
        if (!current) return;
        setPlan(made);
        onPlanned();
        const isBest = (one: Candidate) => one.kind === made.best?.kind && one.parameters === made.best.parameters;
        setChosen(made.candidates.find(isBest) ?? null);
      },
      (error: unknown) => {
        if (!current) return;
        setProblem(messageOf(error));
      },
    );
    return () => {
      current = false;
    };
  }, [model, device, context]);
  return { plan, chosen, setChosen, problem };
}

/** What the model may become: a chart to click, and the same as a list. */
function CandidateChooser({
  plan,
  chosen,
  onChoose,
}: {
  plan: Plan;
  chosen: Candidate | null;
  onChoose: (candidate: Candidate) => void;
}) {
  const fitting = plan.candidates.filter(({ fits }) => fits);
  const front = lowest(fitting);
  const others = fitting.filter((one) => !front.includes(one));
  const choices = (candidates: readonly Candidate[]) =>
    candidates
      .toSorted((a, b) => a.expectedLoss - b.expectedLoss)
      .map((one) => (
        <label key={`${one.kind} ${one.parameters}`} class="check">
          <input type="radio" name="candidate" checked={one === chosen} onChange={() => onChoose(one)} />
          {describeCandidate(one)}
        </label>
      ));
  return (
    <Panel title="What it becomes">
      {plan.best === null && <Problem>Nothing that was weighed fits this device.</Problem>}
      <div class="panels">
        <figure>
          <Pareto candidates={plan.candidates} chosen={chosen} onChoose={onChoose} />
          <figcaption>
            {`${plan.device.name}: ${bytes(plan.device.usableBytes ?? 0)} usable. Each point is a cut in a type; the line joins those that nothing beats.`}
          </figcaption>
        </figure>
        <div>
          {chosen !== null && (
            <p class="choice" aria-live="polite">
              <strong>{`${count(chosen.parameters)} parameters (${Math.round(100 * chosen.share)} %) as ${chosen.kind}`}</strong>
              {`: ${bytes(chosen.memory.totalBytes)} of memory (${bytes(chosen.memory.weightBytes)} weights, ${bytes(chosen.memory.cacheBytes)} cache), about ${Math.round(chosen.tokensPerSecond)} tokens/s, expected to lose ${chosen.expectedLoss.toPrecision(2)} nats a token.`}
              {chosen.share === 1 && " Nothing needs to be cut: it is quantized only."}
            </p>
          )}
          <fieldset class="choices">
            <legend>Those that nothing beats, least loss first</legend>
            {choices(front)}
            {others.length > 0 && (
              <details open={chosen !== null && others.includes(chosen)}>
                <summary>All others that fit</summary>
                {choices(others)}
              </details>
            )}
          </fieldset>
        </div>
      </div>
    </Panel>
  );
}

function MoreFields({ more, onChange }: { more: More; onChange: (more: More) => void }) {
  return (
    <details class="panel">
      <summary>More</summary>
      <div class="fields">
        <label>
          Tokens to distil on
          <input
            type="number"
            min="1"
            value={more.tokens}
            onInput={(event) => onChange({ ...more, tokens: event.currentTarget.value })}
          />
        </label>
        <label>
          Benchmarks (100 documents of each)
          <input
            type="text"
            value={more.tasks}
            placeholder="minitron"
            onInput={(event) => onChange({ ...more, tasks: event.currentTarget.value })}
          />
        </label>
        <label class="check">
          <input
            type="checkbox"
            checked={more.correction}
            onChange={(event) => onChange({ ...more, correction: event.currentTarget.checked })}
          />
          Correct the teacher on the data first
        </label>
      </div>
    </details>
  );
}
