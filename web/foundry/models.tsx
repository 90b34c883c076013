import { useState } from "preact/hooks";
import { get, type Job, list, type Model, send } from "./api.js";
import { bytes, count, inOrder } from "./format.js";
import { messageOf, useLoaded } from "./use.js";

export function Models() {
  const { value: models, error, reload } = useLoaded(() => list<Model>("/v1/models"), []);
  const [problem, setProblem] = useState("");
  const forget = (model: Model) =>
    confirm(`Forget ${model.name}?`) &&
    send("DELETE", `/v1/models/${model.id}`).then(reload, (failed: unknown) => setProblem(messageOf(failed)));
  return (
    <section>
      <h1>Models</h1>
      {(error || problem) && (
        <p class="error" role="alert">
          {error || problem}
        </p>
      )}
      <ul class="cards">
        {(models ?? []).map((model) => (
          <li key={model.id}>
            <strong>{model.name}</strong>
            <span class="quiet">
              {model.parameters === null ? "not read yet" : `${count(model.parameters)} parameters`}
              {model.bytes > 0 ? `, ${bytes(model.bytes)}` : ""}, {model.source}
              {model.licence ? `, ${model.licence}` : ""}
            </span>
            {model.job_id && <BeforeAfter jobId={model.job_id} />}
            <span class="actions">
              {model.job_id && <a href={`#/jobs/${model.job_id}`}>Its job</a>}
              <a href={`#/compare/${model.id}`}>Compare</a>
              {!model.shared && (
                <button type="button" onClick={() => forget(model)}>
                  Forget
                </button>
              )}
            </span>
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
    <table class="bars">
      <tbody>
        {measured.map(([role, one]) => (
          <tr key={role}>
            <th scope="row">{role}</th>
            <td>
              <meter max={most} value={one.bytes} aria-label={`size of ${role}`} /> {bytes(one.bytes)}
            </td>
            <td>perplexity {one.perplexity.toFixed(3)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
