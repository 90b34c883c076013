import { useEffect } from "preact/hooks";
import { Problem } from "../../shared/parts.js";
import { useLoaded } from "../../shared/use.js";
import { type Job, list } from "../api.js";

const REFRESH_MILLISECONDS = 2000;

export function Jobs() {
  const { value: jobs, error, reload } = useLoaded(() => list<Job>("/v1/jobs"), []);
  // counted from each answer, however long it takes
  useEffect(() => {
    const timer = setTimeout(reload, REFRESH_MILLISECONDS);
    return () => clearTimeout(timer);
  }, [jobs, error]);
  return (
    <section>
      <h1>Jobs</h1>
      <Problem>{error}</Problem>
      {jobs?.length === 0 && (
        <p>
          No jobs yet. <a href="#/">Start one</a>.
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
