import { useEffect, useState } from "preact/hooks";
import { uniqueName } from "../../shared/browser.js";
import { Form, Problem, Select } from "../../shared/parts.js";
import { messageOf, useLoaded } from "../../shared/use.js";
import { type Candidate, type Device, type Job, list, type Model, type Plan, send } from "../api.js";
import { Panel } from "../parts.js";
import { CandidateChooser } from "./candidates.js";
import { DataField, ModelField } from "./materials.js";

/** Options of a job beside its model, data and device. */
interface MoreOptions {
  readonly tokens: string;
  readonly tasks: string;
  readonly correction: boolean;
}

/** What a job is started with, as the form has it. */
interface JobFields {
  readonly model: string | undefined;
  /** Empty for the built-in stories. */
  readonly dataset: string;
  readonly device: string;
  /** Empty for the device's own context length. */
  readonly context: string;
  readonly chosen: Candidate | null;
  readonly more: MoreOptions;
}

/** A form to start a job, with a plan that follows each change. */
export function NewJob() {
  const models = useLoaded(() => list<Model>("/v1/models"), []);
  const devices = useLoaded(() => list<Device>("/v1/devices"), []);
  const [selected, setModel] = useState("");
  const [dataset, setDataset] = useState("");
  const [device, setDevice] = useState("phone-4gb");
  const [context, setContext] = useState("");
  const [more, setMore] = useState<MoreOptions>({ tokens: "2000000", tasks: "", correction: false });
  const ready = (models.value ?? []).filter(({ state }) => state === "ready");
  const model = selected === "" ? (ready.find(({ shared }) => shared) ?? ready[0])?.id : selected;
  const { plan, chosen, setChosen, problem } = usePlan(model, device, context, () => {
    if (ready.find(({ id }) => id === model)?.parameters === null) models.reload(); // the plan has read its size
  });
  const [uploads, setUploads] = useState(0);
  const onBusy = (isBusy: boolean) => setUploads((n) => n + (isBusy ? 1 : -1));
  const { isStarting, refusal, start } = useStart({ model, dataset, device, context, chosen, more });
  return (
    <section>
      <h1>New job</h1>
      <p class="quiet">Choose a model and a device to get a model that fits.</p>
      <Form onSubmit={() => void start()}>
        <div class="panels">
          <Panel title="Source">
            <ModelField models={ready} selected={model} onSelect={setModel} onAdded={models.reload} onBusy={onBusy} />
            <Problem>{models.error}</Problem>
            <DataField selected={dataset} onSelect={setDataset} onBusy={onBusy} />
          </Panel>
          <Panel title="Target">
            <Select
              label="Device"
              value={device}
              choices={(devices.value ?? []).map(({ id, name }) => ({ value: id, name }))}
              onSelect={setDevice}
            />
            <Problem>{devices.error}</Problem>
            <label>
              Context length, tokens
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
          <button type="submit" class="primary" disabled={isStarting || uploads > 0 || chosen === null}>
            {isStarting ? "Starting…" : "Start"}
          </button>
        </div>
        <Problem>{refusal}</Problem>
      </Form>
    </section>
  );
}

/** Plans for a model on a device, again when one of them changes. The best candidate is chosen at first. */
function usePlan(model: string | undefined, device: string, context: string, onPlanned: () => void) {
  const [plan, setPlan] = useState<Plan>();
  const [chosen, setChosen] = useState<Candidate | null>(null);
  const [problem, setProblem] = useState("");
  useEffect(() => {
    setPlan(undefined); // the old plan is for other inputs
    setChosen(null);
    setProblem("");
    if (model === undefined) return;
    let isCurrent = true;
    const body = { model, device, context_length: numberOf(context) };
    send<Plan>("POST", "/v1/plans", body).then(
      (newPlan) => {
        if (!isCurrent) return;
        const { candidates, best } = newPlan;
        setPlan(newPlan);
        onPlanned();
        setChosen(
          candidates.find(({ kind, parameters }) => kind === best?.kind && parameters === best.parameters) ?? null,
        );
      },
      (error: unknown) => isCurrent && setProblem(messageOf(error)),
    );
    return () => {
      isCurrent = false;
    };
  }, [model, device, context]);
  return { plan, chosen, setChosen, problem };
}

/** The number in a field; undefined for an empty one. */
const numberOf = (text: string): number | undefined => (text === "" ? undefined : Number(text));

/** Starts a job and shows its page. */
function useStart(fields: JobFields) {
  const [isStarting, setStarting] = useState(false);
  const [refusal, setRefusal] = useState("");
  const start = async () => {
    setStarting(true);
    setRefusal("");
    try {
      const job = await send<Job>("POST", "/v1/jobs", jobSpec(fields), { "idempotency-key": uniqueName() });
      location.hash = `#/jobs/${job.id}`;
    } catch (error) {
      setRefusal(messageOf(error));
      setStarting(false);
    }
  };
  return { isStarting, refusal, start };
}

/** The request that starts a job. JSON has no fields that are undefined. */
function jobSpec({ model, dataset, device, context, chosen, more }: JobFields): object {
  const tasks = more.tasks
    .split(",")
    .map((task) => task.trim())
    .filter((task) => task !== "");
  const sizes = Object.entries(chosen?.sizes ?? {}).map(([axis, size]) => `${axis}=${[size].flat().join("/")}`);
  return {
    model,
    device,
    tokens: Number(more.tokens),
    dataset: dataset === "" ? undefined : dataset,
    context_length: numberOf(context),
    target: chosen !== null && chosen.share < 1 ? sizes.join(",") : "1x",
    quantization: chosen === null ? undefined : [chosen.kind],
    teacher_correction: more.correction || undefined,
    evaluate: tasks.length === 0 ? undefined : { tasks, limit: 100 },
  };
}

function MoreFields({ more, onChange }: { more: MoreOptions; onChange: (more: MoreOptions) => void }) {
  return (
    <details class="panel">
      <summary>More options</summary>
      <div class="fields">
        <label>
          Tokens to distill on
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
          Adapt the teacher to the data first
        </label>
      </div>
    </details>
  );
}
