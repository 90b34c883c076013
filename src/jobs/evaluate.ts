import { appendFileSync, existsSync, mkdirSync } from "node:fs";
import path from "node:path";
import type { RunDirectory } from "../distill/index.js";
import {
  Datasets,
  evaluateTask,
  groupResults,
  PythonSandbox,
  type Sample,
  TASK_GROUPS,
  type Task,
  type TaskResult,
  tasksOfGroup,
} from "../evaluate/index.js";
import { UsageError } from "../system/errors.js";
import { writeJson } from "../system/files.js";
import type { Input } from "../system/places.js";
import { didYouMeanPath } from "../system/suggest.js";
import { checkComputed, type OpenedModel, openEvaluatedModel } from "./evaluated-model.js";
import type { EvaluateJob, EvaluateOutcome, ModelEvaluation, PlannedTask } from "./evaluation.js";
import { writeEvaluationReport } from "./evaluation-report.js";
import { folderName, harnessFile, harnessResults, harnessSample } from "./harness-results.js";
import { fileInput } from "./inputs.js";
import { claimAnew, inRun } from "./output.js";
import { plannedTasks } from "./task-names.js";

/**
 * Evaluates models on benchmarks. Answers are kept on disk, so that an interrupted evaluation continues.
 * @example
 * ```ts
 * import { evaluate, headlines } from "coppice";
 *
 * const { models } = await evaluate({
 *   models: ["./model", "./smaller"],
 *   tasks: ["arc_easy", "hellaswag:5", "./capitals.json"], // `:5` asks with five worked examples
 *   limit: 200,
 *   out: "./scores",
 * });
 * for (const model of models)
 *   for (const { name, metric, value } of headlines(model)) console.log(model.model, name, metric.name, value);
 * ```
 */
export async function evaluate(job: EvaluateJob): Promise<EvaluateOutcome> {
  checkComputed(job);
  const planned = await planEvaluation(job);
  const { out } = job;
  if (out === undefined) return { models: await evaluateAll(job, planned, undefined) };
  return inRun({ ...job, out }, inputsOf(job), async (run) => {
    const { limit, fewShot, maxLength, maxTokens, samples, temperature, engine, computeType } = job;
    const configuration = {
      command: "evaluate",
      models: job.names ?? job.models,
      tasks: planned.map(({ label }) => label),
      limit,
      fewShot,
      maxLength,
      maxTokens,
      samples,
      temperature,
      engine,
      computeType,
    };
    claimAnew(run, { ...job, out }, configuration);
    const models = await evaluateAll(job, planned, run);
    writeJson(run.own("results.json"), { models });
    writeEvaluationReport(run.own("report.html"), models, job.published);
    run.finish();
    return { models, out };
  });
}

/** The tasks of an evaluation. @throws UsageError for a task that there is not, and for benchmark data that is nowhere */
export async function planEvaluation({
  tasks = ["minitron"],
  fewShot,
  data,
}: Pick<EvaluateJob, "tasks" | "fewShot" | "data">) {
  if (data !== undefined && !existsSync(data))
    throw new UsageError(`the benchmark data ${data} is not there.${didYouMeanPath(data)}`);
  return plannedTasks(tasks, fewShot);
}

/** What an evaluation reads on this machine. */
const inputsOf = ({ models, tasks = [], data }: EvaluateJob): Input[] => [
  ...models.flatMap((model) => fileInput("a model", model)),
  ...tasks.flatMap((task) => fileInput("a task file", task)),
  ...fileInput("the benchmark data", data),
];

/** What the evaluations of all models share. */
interface Evaluation {
  readonly job: EvaluateJob;
  readonly planned: readonly PlannedTask[];
  readonly datasets: Datasets;
  readonly sandbox: PythonSandbox;
  /** The run in which results are kept, if they are. */
  readonly run: RunDirectory | undefined;
}

async function evaluateAll(
  job: EvaluateJob,
  planned: readonly PlannedTask[],
  run: RunDirectory | undefined,
): Promise<ModelEvaluation[]> {
  const hub = { ...job.hub, revision: undefined }; // the revision is the model's
  const datasets = new Datasets({ directory: job.data, hub });
  const sandbox = new PythonSandbox();
  const models: ModelEvaluation[] = [];
  try {
    for (const index of job.models.keys())
      models.push(await evaluateModel({ job, planned, datasets, sandbox, run }, index));
    return models;
  } finally {
    sandbox.close();
  }
}

async function evaluateModel(evaluation: Evaluation, index: number): Promise<ModelEvaluation> {
  const { job, planned, run } = evaluation;
  const started = performance.now();
  const opened = await openEvaluatedModel(index, job);
  const model = job.names?.[index] ?? job.models[index] ?? "";
  const folder = folderName(model);
  const date = new Date();
  const results = new Map<PlannedTask, TaskResult>();
  try {
    // all tasks with likelihoods first, so that only one engine is in memory at a time
    for (const asks of ["likelihood", "generation"] as const) {
      for (const task of planned.filter((each) => each.task.asks === asks)) {
        const samplesFile = run?.own(folder, harnessFile(`samples_${task.label}`, date, "jsonl"));
        results.set(task, await evaluateOne(evaluation, task, { model, opened, samplesFile }));
      }
      await opened.release();
    }
  } finally {
    await opened.release();
  }
  const tasks = planned.map((task) => results.get(task) as TaskResult);
  const cached = tasks.reduce((sum, result) => sum + result.cached, 0);
  // what is behind an address can change without a word
  if (cached > 0 && /^https?:/.test(job.models[index] ?? ""))
    job.onNote?.(`${cached} answers of ${model} are from an earlier evaluation: --restart asks for them again`);
  const outcome: ModelEvaluation = {
    model,
    parameters: opened.parameters,
    tasks,
    groups: groupResults(TASK_GROUPS, tasks),
    seconds: (performance.now() - started) / 1000,
  };
  if (run !== undefined)
    writeJson(run.own(folder, harnessFile("results", date, "json")), harnessResults(outcome, planned, job, date));
  return outcome;
}

/** The model that a task is evaluated on. */
interface Subject {
  readonly model: string;
  readonly opened: OpenedModel;
  readonly samplesFile: string | undefined;
}

async function evaluateOne(
  evaluation: Evaluation,
  planned: PlannedTask,
  { model, opened, samplesFile }: Subject,
): Promise<TaskResult> {
  const { job, datasets, sandbox } = evaluation;
  const { maxTokens, temperature, limit, signal, samples = 1 } = job;
  const { task, fewShot } = planned;
  const log = samplesFile === undefined ? undefined : new SampleFile(samplesFile, task);
  const result = await evaluateTask(task, opened.model, {
    datasets,
    limit,
    fewShot,
    maxTokens,
    maxLength: opened.maxLength,
    temperature,
    signal,
    samples,
    tools: { passes: countedRuns(sandbox, `${task.name} tests`, job) },
    onProgress: progressOf(evaluation, planned, model),
    onSample: log && ((sample) => log.add(sample)),
  });
  log?.flush();
  return result;
}

/** Reports the progress of a task's requests. The tasks of a group are reported as one stage. */
function progressOf(
  { job, planned }: Evaluation,
  { task, label }: PlannedTask,
  model: string,
): (done: number, total: number) => void {
  const prefix = job.models.length > 1 ? `${path.basename(model)} ` : "";
  const isPlanned = (name: string) => planned.some((each) => each.task.name === name);
  const group = TASK_GROUPS.map(({ name }) => ({ name, tasks: tasksOfGroup(TASK_GROUPS, name) })).find(
    ({ tasks }) => tasks.includes(task.name) && tasks.every(isPlanned),
  );
  if (group === undefined)
    return (done, total) => job.onProgress?.({ stage: prefix + label, done, total, unit: "requests" });
  const finished = group.tasks.indexOf(task.name);
  return (done, total) =>
    job.onProgress?.({
      stage: prefix + group.name,
      done: finished + done / total,
      total: group.tasks.length,
      unit: "tasks",
      detail: task.name,
    });
}

/** Runs programs in the sandbox, and reports how many of those that were started have ended. */
function countedRuns(sandbox: PythonSandbox, stage: string, job: EvaluateJob): (program: string) => Promise<boolean> {
  let [done, total] = [0, 0];
  return async (program) => {
    total++;
    const { passed } = await sandbox.run(program);
    job.onProgress?.({ stage, done: ++done, total, unit: "programs" });
    return passed;
  };
}

/** Writes documents with their answers to a file in the harness's format, one per line. */
class SampleFile {
  private lines: string[] = [];

  constructor(
    private readonly file: string,
    private readonly task: Task,
  ) {
    mkdirSync(path.dirname(file), { recursive: true });
  }

  add(sample: Sample): void {
    for (const record of harnessSample(sample, this.task)) this.lines.push(`${JSON.stringify(record)}\n`);
    if (this.lines.length >= 256) this.flush();
  }

  flush(): void {
    appendFileSync(this.file, this.lines.join(""));
    this.lines = [];
  }
}
