import { useState } from "preact/hooks";
import { Scrollable } from "../../shared/scrollable.js";
import { messageOf, useLoaded } from "../../shared/use.js";
import { type Artifact, get, type Job, type JobStatus, list, type Model, save, send } from "../api.js";
import { CutDrawing } from "../charts/cut-drawing.js";
import { LossCurve } from "../charts/loss-curve.js";
import { useFollowed } from "../follow.js";
import { bytes, count, inOrder, seconds } from "../format.js";
import { Panel, Problem, Table } from "../parts.js";
import { SideBySide } from "./compare.js";

/** A job as a story: what the model was, what was cut, how it learnt, what came out. */
export function JobPage({ id }: { id: string }) {
  const { value: job, error, reload } = useLoaded(() => get<Job>(`/v1/jobs/${id}`), [id]);
  const models = useLoaded(() => list<Model>("/v1/models"), [job?.state]);
  const artifacts = useLoaded(() => list<Artifact>(`/v1/jobs/${id}/artifacts`), [id, job?.state]);
  const isRunning = job?.state === "queued" || job?.state === "running";
  const { status, points, logs, problem } = useFollowed(id, isRunning, reload);
  if (job === undefined) return <section>{error ? <Problem>{error}</Problem> : <p>…</p>}</section>;
  const now = { ...job, ...status };
  const { result } = job;
  const base = models.value?.find((model) => model.id === job.spec.model);
  const made = models.value?.find((model) => model.job_id === job.id);
  return (
    <article>
      <Head job={job} status={now} problem={problem} reload={reload} />
      <Panel title="What it was">
        <Facts
          facts={[
            ["model", base?.name ?? "forgotten since"],
            ["parameters", base?.parameters ? count(base.parameters) : "–"],
            ["made for", job.spec.device ?? job.spec.target ?? "–"],
            ...(job.spec.kind === "compress"
              ? ([["distilled on", `${count(job.spec.tokens ?? 0)} tokens`]] as const)
              : []),
            ["types", job.spec.quantization?.join(", ") ?? "what suits the device"],
          ]}
        />
      </Panel>
      {result?.plan && (
        <Panel title="What was cut">
          <CutDrawing plan={result.plan} keptLayers={result.keptLayers} />
        </Panel>
      )}
      {job.spec.kind === "compress" && (isRunning || points.length > 1) && (
        <Panel title="How it learnt">
          <LossCurve points={points} teacherLoss={result?.models?.teacher?.loss} />
        </Panel>
      )}
      {result && <Outcome result={result} />}
      {base && made && job.state === "done" && (
        <Panel title="Answers side by side">
          <SideBySide ids={[base.id, made.id]} names={[base.name, made.name]} />
        </Panel>
      )}
      <Files id={id} files={artifacts.value ?? []} />
      <Panel title="How it went">
        <Stages status={now} isRunning={isRunning} />
        <details>
          <summary>Log</summary>
          <Scrollable class="log" aria-label="Log">
            {logs.join("\n")}
          </Scrollable>
        </details>
      </Panel>
    </article>
  );
}

/** What it is called, how it stands, and what can be done with it. */
function Head({ job, status, problem, reload }: { job: Job; status: JobStatus; problem: string; reload: () => void }) {
  const [refusal, setRefusal] = useState("");
  const { state, progress } = status;
  const isRunning = state === "queued" || state === "running";
  const refused = (failed: unknown) => setRefusal(messageOf(failed));
  const act = (what: "cancel" | "retry") => send("POST", `/v1/jobs/${job.id}/${what}`).then(reload, refused);
  const forget = () =>
    confirm(`Forget ${job.name}, its files and the model that it made?`) &&
    send("DELETE", `/v1/jobs/${job.id}`).then(() => {
      location.hash = "#/jobs";
    }, refused);
  return (
    <>
      <h1>{job.name}</h1>
      <div class="row">
        <span class={`state ${state}`} data-testid="state">
          {state}
        </span>
        {isRunning && (
          <button type="button" onClick={() => act("cancel")}>
            Stop
          </button>
        )}
        {(state === "failed" || state === "cancelled") && (
          <button type="button" class="primary" onClick={() => act("retry")}>
            Go on
          </button>
        )}
        {!isRunning && (
          <button type="button" onClick={forget}>
            Forget
          </button>
        )}
      </div>
      <Problem>{job.error}</Problem>
      <Problem>{problem || refusal}</Problem>
      {isRunning && progress !== null && (
        <p class="progress">
          <label>
            {progress.stage}
            <progress max={progress.total} value={progress.done} />
          </label>
          <span class="quiet">
            {count(progress.done)} of {count(progress.total)} {progress.unit}
            {progress.detail ? `, ${progress.detail}` : ""}
            {progress.secondsLeft === undefined ? "" : `, ${seconds(progress.secondsLeft)} left`}
          </span>
        </p>
      )}
    </>
  );
}

function Facts({ facts }: { facts: readonly (readonly [string, string])[] }) {
  return (
    <dl class="facts">
      {facts.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

/** What was measured of each model and file, and what the smaller one writes. */
function Outcome({ result: { models, scores, sentence, memory, speed } }: { result: NonNullable<Job["result"]> }) {
  const measured = inOrder(models ?? {});
  const largest = Math.max(...measured.map(([, one]) => one.bytes), 1);
  const roles = [...new Set(Object.values(scores ?? {}).flatMap((of) => Object.keys(of)))];
  return (
    <Panel title="What came out">
      {measured.length > 0 && (
        <Table
          label="Models and files, measured"
          head={["", "parameters", "size", "loss", "perplexity", "of the original"]}
          rows={measured.map(([role, one]) => [
            role,
            count(one.parameters),
            bytes(one.bytes),
            one.loss.toFixed(4),
            one.perplexity.toFixed(3),
            <meter max={largest} value={one.bytes} aria-label={`size of ${role}`} />,
          ])}
        />
      )}
      {memory && (
        <p class="quiet">
          {`On the device the file takes ${bytes(memory.totalBytes)} of memory${speed ? ` and writes about ${Math.round(speed)} tokens a second` : ""}, as predicted.`}
        </p>
      )}
      {roles.length > 0 && (
        <Table
          label="Benchmarks"
          head={["", ...roles]}
          rows={Object.entries(scores ?? {}).map(([task, of]) => [task, ...roles.map((role) => of[role] ?? "–")])}
        />
      )}
      {sentence && <blockquote>{sentence}</blockquote>}
    </Panel>
  );
}

function Files({ id, files }: { id: string; files: readonly Artifact[] }) {
  const [problem, setProblem] = useState("");
  const gguf = files.find(({ name }) => name.endsWith(".gguf"));
  if (files.length === 0) return null;
  return (
    <Panel title="Files">
      {gguf && (
        <p>
          <a class="button primary" href={`#/run/${id}/${encodeURIComponent(gguf.name)}`}>
            Run it here
          </a>{" "}
          <span class="quiet">in this tab: nothing that you write leaves the device</span>
        </p>
      )}
      <Problem>{problem}</Problem>
      <ul class="files">
        {files.map((file) => (
          <li key={file.name}>
            <button
              type="button"
              onClick={() => save(id, file.name).catch((failed: unknown) => setProblem(messageOf(failed)))}
            >
              {file.name}
            </button>
            <span>{bytes(file.bytes)}</span>
            <code class="quiet" title={`SHA-256 ${file.sha256}`}>
              {file.sha256.slice(0, 16)}…
            </code>
          </li>
        ))}
      </ul>
    </Panel>
  );
}

function Stages({ status, isRunning }: { status: JobStatus; isRunning: boolean }) {
  return (
    <ol class="stages">
      {status.stages.map((one) => (
        <li key={one.name}>
          {one.name}{" "}
          <span class="quiet">
            {seconds(one.seconds)}, {bytes(one.peakMemoryBytes)}
          </span>
        </li>
      ))}
      {isRunning && status.stage !== null && <li class="now">{status.stage}</li>}
    </ol>
  );
}
