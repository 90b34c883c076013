import { useEffect, useState } from "preact/hooks";
import {
  type Candidate,
  type Dataset,
  type Device,
  type Job,
  list,
  type Model,
  type Plan,
  send,
  upload,
} from "./api.js";
import { Pareto } from "./charts.js";
import { bytes, count } from "./format.js";
import { messageOf, useLoaded } from "./use.js";

/** A model, data and a device: with a live plan, and what follows from it. */
export function NewJob() {
  const models = useLoaded(() => list<Model>("/v1/models"), []);
  const datasets = useLoaded(() => list<Dataset>("/v1/datasets"), []);
  const devices = useLoaded(() => list<Device>("/v1/devices"), []);
  const [model, setModel] = useState("");
  const [dataset, setDataset] = useState("");
  const [device, setDevice] = useState("phone-4gb");
  const [context, setContext] = useState("");
  const [tokens, setTokens] = useState("2000000");
  const [tasks, setTasks] = useState("");
  const [correction, setCorrection] = useState(false);
  const [plan, setPlan] = useState<Plan>();
  const [chosen, setChosen] = useState<Candidate | null>(null);
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState("");
  const ready = (models.value ?? []).filter((one) => one.state === "ready");
  const selected = model === "" ? (ready.find((one) => one.shared) ?? ready[0])?.id : model;
  const isNew = ready.find((one) => one.id === selected)?.parameters === null;

  useEffect(() => {
    if (selected === undefined) return setPlan(undefined);
    let current = true;
    const body = { model: selected, device, ...(context !== "" && { context_length: Number(context) }) };
    send<Plan>("POST", "/v1/plans", body).then(
      (made) => {
        if (!current) return;
        setProblem("");
        setPlan(made);
        if (isNew) models.reload(); // it was read for the plan
        setChosen(
          made.candidates.find(
            (one) => made.best !== null && one.kind === made.best.kind && one.parameters === made.best.parameters,
          ) ?? null,
        );
      },
      (error: unknown) => {
        if (!current) return;
        setPlan(undefined);
        setProblem(messageOf(error));
      },
    );
    return () => {
      current = false;
    };
  }, [selected, device, context]);

  const doing = async (what: string, work: () => Promise<void>) => {
    setBusy(what);
    setProblem("");
    try {
      await work();
    } catch (error) {
      setProblem(messageOf(error));
    } finally {
      setBusy("");
    }
  };
  const sendData = (file: File | undefined) =>
    file &&
    doing(`Sending ${file.name} …`, async () => {
      const made = await upload<Dataset>("POST", `/v1/datasets?name=${encodeURIComponent(file.name)}`, file);
      datasets.reload();
      setDataset(made.id);
    });
  const sendModel = (files: FileList | null) =>
    files !== null &&
    files.length > 0 &&
    doing("Sending the model …", async () => {
      const all = [...files];
      const name =
        all.find((file) => file.name.endsWith(".gguf"))?.name ?? all[0]?.webkitRelativePath.split("/")[0] ?? "Model";
      const made = await send<Model>("POST", "/v1/models", { name: name === "" ? "Model" : name });
      for (const file of all) await upload("PUT", `/v1/models/${made.id}/files/${encodeURIComponent(file.name)}`, file);
      await send("POST", `/v1/models/${made.id}/complete`);
      models.reload();
      setModel(made.id);
    });
  const addFromHub = () => {
    const id = prompt("Model on the hub (organisation/name)");
    if (id)
      void doing("Adding …", async () => {
        const made = await send<Model>("POST", "/v1/models", { hub_id: id });
        models.reload();
        setModel(made.id);
      });
  };
  const start = () =>
    doing("Starting …", async () => {
      const sizes =
        chosen && chosen.share < 1 ? Object.entries(chosen.sizes).map(([axis, size]) => `${axis}=${size}`) : undefined;
      const job = await send<Job>(
        "POST",
        "/v1/jobs",
        {
          ...{ model: selected, device, tokens: Number(tokens) },
          ...(dataset !== "" && { dataset }),
          ...(context !== "" && { context_length: Number(context) }),
          ...(sizes && { target: sizes.join(",") }),
          ...(chosen && { quantization: [chosen.kind] }),
          ...(correction && { teacher_correction: true }),
          ...(tasks.trim() !== "" && { evaluate: { tasks: tasks.split(",").map((task) => task.trim()), limit: 100 } }),
        },
        { "idempotency-key": crypto.randomUUID() },
      );
      location.hash = `#/jobs/${job.id}`;
    });

  return (
    <section>
      <h1>New job</h1>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void start();
        }}
      >
        <div class="grid">
          <label>
            Model
            <select value={selected} onChange={(event) => setModel(event.currentTarget.value)}>
              {ready.map((one) => (
                <option key={one.id} value={one.id}>
                  {one.name} {one.parameters === null ? "" : `(${count(one.parameters)})`}
                </option>
              ))}
            </select>
          </label>
          <div class="actions">
            <label class="button">
              Send a model
              <input
                type="file"
                multiple
                class="hidden"
                aria-label="Send a model"
                onChange={(event) => void sendModel(event.currentTarget.files)}
              />
            </label>
            <button type="button" onClick={addFromHub}>
              From the hub
            </button>
          </div>
          <label>
            Data
            <select value={dataset} onChange={(event) => setDataset(event.currentTarget.value)}>
              <option value="">Embedded stories</option>
              {(datasets.value ?? []).map((one) => (
                <option key={one.id} value={one.id}>
                  {one.name} ({bytes(one.bytes)})
                </option>
              ))}
            </select>
          </label>
          <div class="actions">
            <label class="button">
              Send data
              <input
                type="file"
                class="hidden"
                aria-label="Send data"
                accept=".txt,.jsonl,.json,.parquet,.gz"
                onChange={(event) => void sendData(event.currentTarget.files?.[0])}
              />
            </label>
          </div>
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
          <label>
            Context, tokens
            <input
              type="number"
              min="16"
              value={context}
              placeholder={plan === undefined ? "the device's" : String(plan.contextLength)}
              onInput={(event) => setContext(event.currentTarget.value)}
            />
          </label>
        </div>
        {plan !== undefined && (
          <figure>
            <Pareto candidates={plan.candidates} chosen={chosen} onChoose={setChosen} />
            <figcaption>
              {plan.device.name}: {bytes(plan.device.usableBytes)} usable. Each point is a cut in a type; the line joins
              those that nothing beats.
            </figcaption>
          </figure>
        )}
        {chosen !== null && plan !== undefined && (
          <p class="choice" aria-live="polite">
            <strong>
              {count(chosen.parameters)} parameters ({Math.round(100 * chosen.share)} %) as {chosen.kind}
            </strong>
            : {bytes(chosen.memory.totalBytes)} of memory ({bytes(chosen.memory.weightBytes)} weights,{" "}
            {bytes(chosen.memory.cacheBytes)} cache), about {Math.round(chosen.tokensPerSecond)} tokens/s, expected to
            lose {chosen.expectedLoss.toPrecision(2)} nats a token.
            {chosen.share === 1 && " Nothing needs to be cut: it is quantized only."}
          </p>
        )}
        {plan !== undefined && plan.best === null && <p class="error">Nothing that was weighed fits this device.</p>}
        <details>
          <summary>More</summary>
          <div class="grid">
            <label>
              Tokens to distil on
              <input type="number" min="1" value={tokens} onInput={(event) => setTokens(event.currentTarget.value)} />
            </label>
            <label>
              Benchmarks (100 documents of each)
              <input
                type="text"
                value={tasks}
                placeholder="minitron"
                onInput={(event) => setTasks(event.currentTarget.value)}
              />
            </label>
            <label class="check">
              <input
                type="checkbox"
                checked={correction}
                onChange={(event) => setCorrection(event.currentTarget.checked)}
              />{" "}
              Correct the teacher on the data first
            </label>
          </div>
        </details>
        <button
          type="submit"
          class="primary"
          disabled={busy !== "" || selected === undefined || (plan !== undefined && chosen === null)}
        >
          Start
        </button>
        <p role="status">{busy}</p>
        {(problem || models.error) && (
          <p class="error" role="alert">
            {problem || models.error}
          </p>
        )}
      </form>
    </section>
  );
}
