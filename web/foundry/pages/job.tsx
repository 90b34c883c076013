import { useState } from "preact/hooks";
import { Problem } from "../../shared/parts.js";
import { Scrollable } from "../../shared/scrollable.js";
import { messageOf, useLoaded } from "../../shared/use.js";
import { type Artifact, get, type Job, type JobStatus, list, type Model, saveArtifact, send } from "../api.js";
import { CutDrawing } from "../charts/cut-drawing.js";
import { LossCurve } from "../charts/loss-curve.js";
import { useJobFeed } from "../follow.js";
import { bytes, count, inOrder, seconds } from "../format.js";
import { Panel, Table } from "../parts.js";
import { SideBySide } from "./compare.js";

/** A job from its original model over cuts and training to its results. */
export function JobPage({ id }: { id: string }) {
  const { value: job, error, reload } = useLoaded(() => get<Job>(`/v1/jobs/${id}`), [id]);
  const models = useLoaded(() => list<Model>("/v1/models"), [job?.state]);
  const artifacts = useLoaded(() => list<Artifact>(`/v1/jobs/${id}/artifacts`), [id, job?.state]);
  const isRunning = job?.state === "queued" || job?.state === "running";
  const { status, points, logs, problem } = useJobFeed(id, isRunning, reload);
  if (job === undefined) return <section>{error ? <Problem>{error}</Problem> : <p>…</p>}</section>;
  const current = { ...job, ...status };
  const { result } = job;
  const base = models.value?.find((model) => model.id === job.spec.model);
  const smaller = models.value?.find((model) => model.job_id === job.id);
  return (
    <article>
      <Head job={job} status={current} problem={problem} reload={reload} />
      <Panel title="Task">
        <Facts facts={factsOf(job, base)} />
      </Panel>
      {result?.plan && (
        <Panel title="Cuts">
          <CutDrawing plan={result.plan} keptLayers={result.keptLayers} />
        </Panel>
      )}
      {job.spec.kind === "compress" && (isRunning || points.length > 1) && (
        <Panel title="Training">
          <LossCurve points={points} teacherLoss={result?.models?.teacher?.loss} />
        </Panel>
      )}
      {result && <Outcome result={result} />}
      {base && smaller && job.state === "done" && (
        <Panel title="Side by side">
          <SideBySide ids={[base.id, smaller.id]} names={[base.name, smaller.name]} />
        </Panel>
      )}
      <Files id={id} files={artifacts.value ?? []} />
      <Panel title="Stages">
        <Stages status={current} isRunning={isRunning} />
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

/** A job's task as names and values. */
function factsOf({ spec }: Job, base: Model | undefined): [string, string][] {
  const facts: [string, string][] = [
    ["original model", base?.name ?? "deleted"],
    ["parameters", base?.parameters ? count(base.parameters) : "–"],
    ["target", spec.device ?? spec.target ?? "–"],
  ];
  if (spec.kind === "compress") facts.push(["distilled on", `${count(spec.tokens ?? 0)} tokens`]);
  facts.push(["file types", spec.quantization?.join(", ") ?? "what suits the device"]);
  if (spec.requires !== undefined) facts.push(["needs a worker with", needs(spec.requires)]);
  return facts;
}

function needs({ device, memory_bytes: memory, ranks }: NonNullable<Job["spec"]["requires"]>): string {
  const all = [device, memory && `${bytes(memory)} of memory`, ranks && `${count(ranks)} processes`];
  return all.filter(Boolean).join(", ");
}

/** A job's name, state and progress, and buttons for what can be done with it. */
function Head({ job, status, problem, reload }: { job: Job; status: JobStatus; problem: string; reload: () => void }) {
  const [refusal, setRefusal] = useState("");
  const { state, progress } = status;
  const isRunning = state === "queued" || state === "running";
  const refused = (error: unknown) => setRefusal(messageOf(error));
  const change = (action: "cancel" | "retry") => send("POST", `/v1/jobs/${job.id}/${action}`).then(reload, refused);
  const remove = () =>
    confirm(`Delete ${job.name}, with its files and its model?`) &&
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
          <button type="button" onClick={() => change("cancel")}>
            Stop
          </button>
        )}
        {(state === "failed" || state === "cancelled") && (
          <button type="button" class="primary" onClick={() => change("retry")}>
            Resume
          </button>
        )}
        {!isRunning && (
          <button type="button" onClick={remove}>
            Delete
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

/** Measurements of each model and file, and a sentence by the smaller model. */
function Outcome({ result: { models, scores, sentence, memory, speed } }: { result: NonNullable<Job["result"]> }) {
  const measured = inOrder(models ?? {});
  const largest = Math.max(...measured.map(([, { bytes: size }]) => size), 1);
  const roles = [...new Set(Object.values(scores ?? {}).flatMap((byModel) => Object.keys(byModel)))];
  return (
    <Panel title="Results">
      {measured.length > 0 && (
        <Table
          label="Models and files, measured"
          head={["", "parameters", "size", "loss", "perplexity", "relative size"]}
          rows={measured.map(([role, { parameters, bytes: size, loss, perplexity }]) => [
            role,
            count(parameters),
            bytes(size),
            loss.toFixed(4),
            perplexity.toFixed(3),
            <meter max={largest} value={size} aria-label={`size of ${role}`} />,
          ])}
        />
      )}
      {memory && (
        <p class="quiet">
          {`Predicted on the device: ${bytes(memory.totalBytes)} of memory${speed ? `, about ${Math.round(speed)} tokens/s` : ""}.`}
        </p>
      )}
      {roles.length > 0 && (
        <Table
          label="Benchmarks"
          head={["", ...roles]}
          rows={Object.entries(scores ?? {}).map(([task, byModel]) => [
            task,
            ...roles.map((role) => byModel[role] ?? "–"),
          ])}
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
            Run in the browser
          </a>{" "}
          <span class="quiet">What you write stays on this device.</span>
        </p>
      )}
      <Problem>{problem}</Problem>
      <ul class="files">
        {files.map((file) => (
          <li key={file.name}>
            <button
              type="button"
              onClick={() => saveArtifact(id, file.name).catch((error: unknown) => setProblem(messageOf(error)))}
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
      {status.stages.map(({ name, seconds: duration, peakMemoryBytes }) => (
        <li key={name}>
          {name}{" "}
          <span class="quiet">
            {seconds(duration)}, {bytes(peakMemoryBytes)}
          </span>
        </li>
      ))}
      {isRunning && status.stage !== null && <li class="now">{status.stage}</li>}
    </ol>
  );
}
