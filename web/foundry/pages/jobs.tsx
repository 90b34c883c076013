import { useEffect } from "preact/hooks";
import { useLoaded } from "../../shared/use.js";
import { type Job, list } from "../api.js";
import { Problem } from "../parts.js";

const REFRESH = 2000;

export function Jobs() {
  const { value: jobs, error, reload } = useLoaded(() => list<Job>("/v1/jobs"), []);
  // again some time after each answer, however long it took
  useEffect(() => {
    const timer = setTimeout(reload, REFRESH);
    return () => clearTimeout(timer);
  }, [jobs, error]);
  return (
    <section>
      <h1>Jobs</h1>
      <Problem>{error}</Problem>
      {jobs?.length === 0 && (
        <p>
          There are none yet: <a href="#/">begin one</a>.
        </p>
      )}
      <ul class="cards">
        {(jobs ?? []).map((job) => (
          <li key={job.id}>
            <a href={`#/jobs/${job.id}`}>
              <strong>{job.name}</strong>
            </a>
            <span class={`state ${job.state}`}>{job.state}</span>
            <span class="quiet">
              {job.state === "running" ? job.stage : ""} {new Date(job.created_at).toLocaleString()}
            </span>
          </li>
        ))}
      </ul>
    </section>
  );
}
