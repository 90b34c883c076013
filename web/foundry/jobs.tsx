import { useEffect, useRef, useState } from "preact/hooks";
import { type Artifact, events, get, type Job, type JobStatus, list, type Point, Refused, save, send } from "./api.js";
import { CutDrawing, LossCurve } from "./charts.js";
import { bytes, count, inOrder, seconds } from "./format.js";
import { messageOf, useLoaded } from "./use.js";

const REFRESH = 2000;
/** What happens to a job. */
type JobEvents = {
  readonly status: JobStatus;
  readonly state: { readonly state: string; readonly error?: string };
  readonly stage: { readonly stage: string };
  readonly metrics: Point;
  readonly log: { readonly text: string };
  readonly end: { readonly state: string };
};
/** What comes in between is drawn at once. */
const DRAW = 250;

export function Jobs() {
  const { value: jobs, error, reload } = useLoaded(() => list<Job>("/v1/jobs"), []);
  useEffect(() => {
    const timer = setInterval(reload, REFRESH);
    return () => clearInterval(timer);
  }, []);
  return (
    <section>
      <h1>Jobs</h1>
      {error && (
        <p class="error" role="alert">
          {error}
        </p>
      )}
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

export function JobPage({ id }: { id: string }) {
  const { value: job, error, reload } = useLoaded(() => get<Job>(`/v1/jobs/${id}`), [id]);
  const [status, setStatus] = useState<JobStatus>();
  const [points, setPoints] = useState<readonly Point[]>([]);
  const [logs, setLogs] = useState<readonly string[]>([]);
  const [problem, setProblem] = useState("");
  const artifacts = useLoaded(() => list<Artifact>(`/v1/jobs/${id}/artifacts`), [id, job?.state]);
  const running = job?.state === "queued" || job?.state === "running";
  /** What was heard of the job so far: a stream that breaks off is gone on with. */
  const followed = useRef({ id: "", last: 0, curve: new Map<number, Point>() });

  useEffect(() => {
    const stop = new AbortController();
    const { signal } = stop;
    if (followed.current.id !== id) {
      followed.current = { id, last: 0, curve: new Map() };
      setPoints([]);
      setLogs([]);
      setStatus(undefined);
    }
    const known = followed.current;
    let isDue = false;
    const draw = () => {
      isDue = false;
      if (followed.current === known) setPoints([...known.curve.values()].sort((a, b) => a.step - b.step));
    };
    const follow = async () => {
      const all = events<JobEvents>(`/v1/jobs/${id}/events?after=${known.last}`, { signal });
      for await (const { event, id: at, data } of all) {
        if (at !== "") known.last = Number(at);
        if (event === "status") setStatus(data);
        if (event === "metrics") {
          known.curve.set(data.step, data);
          if (!isDue) setTimeout(draw, DRAW);
          isDue = true;
        }
        if (event === "log") setLogs((before) => [...before, data.text]);
        if (event === "state") setLogs((before) => [...before, `${data.state}${data.error ? `: ${data.error}` : ""}`]);
        if (event === "end") return reload();
      }
      throw new Error("the service ended the connection");
    };
    const keepOn = async () => {
      for (;;)
        try {
          return await follow();
        } catch (failed) {
          if (signal.aborted) return;
          if (failed instanceof Refused) return setProblem(failed.message);
          await new Promise((resolve) => setTimeout(resolve, REFRESH)); // the service may come back
        }
    };
    void keepOn();
    return () => stop.abort();
  }, [id, running]);

  const act = (what: "cancel" | "retry") =>
    send("POST", `/v1/jobs/${id}/${what}`).then(reload, (failed: unknown) => setProblem(messageOf(failed)));
  const forget = () =>
    confirm(`Forget ${job?.name}, its files and the model that it made?`) &&
    send("DELETE", `/v1/jobs/${id}`).then(
      () => {
        location.hash = "#/jobs";
      },
      (failed: unknown) => setProblem(messageOf(failed)),
    );
  if (job === undefined) return <section>{error ? <p class="error">{error}</p> : <p>…</p>}</section>;
  const now = { ...job, ...status };
  const { progress } = now;
  const gguf = artifacts.value?.find(({ name }) => name.endsWith(".gguf"));
  return (
    <section>
      <h1>{job.name}</h1>
      <p>
        <span class={`state ${now.state}`} data-testid="state">
          {now.state}
        </span>{" "}
        {running && (
          <button type="button" onClick={() => act("cancel")}>
            Stop
          </button>
        )}
        {(now.state === "failed" || now.state === "cancelled") && (
          <button type="button" onClick={() => act("retry")}>
            Go on
          </button>
        )}{" "}
        {!running && (
          <button type="button" onClick={forget}>
            Forget
          </button>
        )}
      </p>
      {job.error && (
        <p class="error" role="alert">
          {job.error}
        </p>
      )}
      {problem && (
        <p class="error" role="alert">
          {problem}
        </p>
      )}
      {running && progress !== null && (
        <p>
          <label>
            {progress.stage} <progress max={progress.total} value={progress.done} />
          </label>{" "}
          {count(progress.done)} of {count(progress.total)} {progress.unit}
          {progress.detail ? `, ${progress.detail}` : ""}
          {progress.secondsLeft === undefined ? "" : `, ${seconds(progress.secondsLeft)} left`}
        </p>
      )}
      <h2>Stages</h2>
      <ol class="stages">
        {now.stages.map((one) => (
          <li key={one.name}>
            {one.name}{" "}
            <span class="quiet">
              {seconds(one.seconds)}, {bytes(one.peakMemoryBytes)}
            </span>
          </li>
        ))}
        {running && now.stage !== null && <li class="now">{now.stage}</li>}
      </ol>
      {job.spec.kind === "compress" && (running || points.length > 1) && (
        <>
          <h2>Learning</h2>
          <LossCurve points={points} />
        </>
      )}
      {job.result?.plan && (
        <>
          <h2>Cut</h2>
          <CutDrawing plan={job.result.plan} keptLayers={job.result.keptLayers} />
        </>
      )}
      {job.result?.models && (
        <>
          <h2>Before and after</h2>
          <div class="scroll">
            <table>
              <thead>
                <tr>
                  <th />
                  <th>parameters</th>
                  <th>size</th>
                  <th>loss</th>
                  <th>perplexity</th>
                </tr>
              </thead>
              <tbody>
                {inOrder(job.result.models).map(([role, one]) => (
                  <tr key={role}>
                    <th scope="row">{role}</th>
                    <td>{count(one.parameters)}</td>
                    <td>{bytes(one.bytes)}</td>
                    <td>{one.loss.toFixed(4)}</td>
                    <td>{one.perplexity.toFixed(3)}</td>
                  </tr>
                ))}
              </tbody>
            </table>
          </div>
        </>
      )}
      <Scores scores={job.result?.scores ?? undefined} />
      {job.result?.sentence && <blockquote>{job.result.sentence}</blockquote>}
      {gguf && (
        <p>
          <a class="button primary" href={`#/run/${id}/${encodeURIComponent(gguf.name)}`}>
            Run it here
          </a>
        </p>
      )}
      {(artifacts.value ?? []).length > 0 && (
        <>
          <h2>Files</h2>
          <ul class="cards">
            {(artifacts.value ?? []).map((file) => (
              <li key={file.name}>
                <button
                  type="button"
                  onClick={() => save(id, file.name).catch((failed: unknown) => setProblem(messageOf(failed)))}
                >
                  {file.name}
                </button>
                <span>{bytes(file.bytes)}</span>
                <code title={file.sha256}>{file.sha256.slice(0, 16)}…</code>
              </li>
            ))}
          </ul>
        </>
      )}
      <h2>Log</h2>
      <pre class="log">{logs.join("\n")}</pre>
    </section>
  );
}

function Scores({ scores }: { scores: NonNullable<Job["result"]>["scores"] | undefined }) {
  if (!scores || Object.keys(scores).length === 0) return null;
  const roles = [...new Set(Object.values(scores).flatMap((of) => Object.keys(of)))];
  return (
    <>
      <h2>Benchmarks</h2>
      <div class="scroll">
        <table>
          <thead>
            <tr>
              <th />
              {roles.map((role) => (
                <th key={role}>{role}</th>
              ))}
            </tr>
          </thead>
          <tbody>
            {Object.entries(scores).map(([task, of]) => (
              <tr key={task}>
                <th scope="row">{task}</th>
                {roles.map((role) => (
                  <td key={role}>{of[role] ?? "-"}</td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
}
