import { useState } from "preact/hooks";
import { messageOf, useLoaded } from "../../shared/use.js";
import { get, type Job, list, type Model, send } from "../api.js";
import { bytes, count, inOrder } from "../format.js";
import { Problem } from "../parts.js";

const factsOf = (model: Model): string =>
  [
    model.state === "uploading" ? "did not come whole" : undefined,
    model.parameters === null
      ? model.state === "ready"
        ? "read when it is planned for"
        : undefined
      : `${count(model.parameters)} parameters`,
    model.bytes > 0 ? bytes(model.bytes) : undefined,
    model.source,
    model.licence ?? undefined,
  ]
    .filter((fact) => fact !== undefined)
    .join(", ");

export function Models() {
  const { value: models, error, reload } = useLoaded(() => list<Model>("/v1/models"), []);
  const [problem, setProblem] = useState("");
  const forget = (model: Model) =>
    confirm(`Forget ${model.name}?`) &&
    send("DELETE", `/v1/models/${model.id}`).then(reload, (failed: unknown) => setProblem(messageOf(failed)));
  return (
    <section>
      <h1>Models</h1>
      <Problem>{error || problem}</Problem>
      <ul class="cards">
        {(models ?? []).map((model) => (
          <li key={model.id} class="model">
            <div>
              <strong>{model.name}</strong>
              <p class="quiet">{factsOf(model)}</p>
            </div>
            <span class="row">
              {model.job_id && <a href={`#/jobs/${model.job_id}`}>Its job</a>}
              {model.state === "ready" && <a href={`#/compare/${model.id}`}>Compare</a>}
              {!model.shared && (
                <button type="button" onClick={() => forget(model)}>
                  Forget
                </button>
              )}
            </span>
            {model.job_id && <BeforeAfter jobId={model.job_id} />}
          </li>
        ))}
      </ul>
    </section>
  );
}

/** What a model's job measured, as bars. */
function BeforeAfter({ jobId }: { jobId: string }) {
  const { value: job } = useLoaded(() => get<Job>(`/v1/jobs/${jobId}`), [jobId]);
  const measured = inOrder(job?.result?.models ?? {});
  const most = Math.max(...measured.map(([, one]) => one.bytes), 1);
  return (
    <ul class="bars">
      {measured.map(([role, one]) => (
        <li key={role}>
          <span>{role}</span>
          <meter max={most} value={one.bytes} aria-label={`size of ${role}`} />
          <span>{bytes(one.bytes)}</span>
          <span class="quiet">perplexity {one.perplexity.toFixed(3)}</span>
        </li>
      ))}
    </ul>
  );
}
