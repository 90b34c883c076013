import { useState } from "preact/hooks";
import { Problem } from "../../shared/parts.js";
import { messageOf, useLoaded } from "../../shared/use.js";
import { get, type Job, list, type Model, send } from "../api.js";
import { bytes, count, inOrder } from "../format.js";

/** What is known of a model, in a line. */
function describe({ state, parameters, bytes: size, source, licence }: Model): string {
  const facts: string[] = [];
  if (state === "uploading") facts.push("incomplete upload");
  if (parameters !== null) facts.push(`${count(parameters)} parameters`);
  else if (state === "ready") facts.push("size known after the first plan");
  if (size > 0) facts.push(bytes(size));
  facts.push(source);
  if (licence !== null) facts.push(licence);
  return facts.join(", ");
}

export function Models() {
  const { value: models, error, reload } = useLoaded(() => list<Model>("/v1/models"), []);
  const [problem, setProblem] = useState("");
  const remove = (model: Model) =>
    confirm(`Delete ${model.name}?`) &&
    send("DELETE", `/v1/models/${model.id}`).then(reload, (error: unknown) => setProblem(messageOf(error)));
  return (
    <section>
      <h1>Models</h1>
      <Problem>{error || problem}</Problem>
      <ul class="cards">
        {(models ?? []).map((model) => (
          <li key={model.id} class="model">
            <div>
              <strong>{model.name}</strong>
              <p class="quiet">{describe(model)}</p>
            </div>
            <span class="row">
              {model.job_id && <a href={`#/jobs/${model.job_id}`}>Job</a>}
              {model.state === "ready" && <a href={`#/compare/${model.id}`}>Compare</a>}
              {!model.shared && (
                <button type="button" onClick={() => remove(model)}>
                  Delete
                </button>
              )}
            </span>
            {model.job_id && <Measurements jobId={model.job_id} />}
          </li>
        ))}
      </ul>
    </section>
  );
}

/** What a model's job measured, as bars. */
function Measurements({ jobId }: { jobId: string }) {
  const { value: job } = useLoaded(() => get<Job>(`/v1/jobs/${jobId}`), [jobId]);
  const measured = inOrder(job?.result?.models ?? {});
  const largest = Math.max(...measured.map(([, { bytes: size }]) => size), 1);
  return (
    <ul class="bars">
      {measured.map(([role, { bytes: size, perplexity }]) => (
        <li key={role}>
          <span>{role}</span>
          <meter max={largest} value={size} aria-label={`size of ${role}`} />
          <span>{bytes(size)}</span>
          <span class="quiet">perplexity {perplexity.toFixed(3)}</span>
        </li>
      ))}
    </ul>
  );
}
