import { appendFileSync, mkdirSync } from "node:fs";
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
import { writeJson } from "../system/files.js";
import type { Input } from "../system/places.js";
import { type OpenedModel, openEvaluatedModel } from "./evaluated-model.js";
import type { EvaluateJob, EvaluateOutcome, ModelEvaluation, PlannedTask } from "./evaluation.js";
import { writeEvaluationReport } from "./evaluation-report.js";
import { folderName, harnessFile, harnessResults, harnessSample } from "./harness-results.js";
import { claim, fileInput, inRun } from "./output.js";
import { plannedTasks } from "./task-names.js";

/**
 * Measures models on benchmarks. What was answered is kept on disk, so that a stopped evaluation goes on.
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
  const planned = await plannedTasks(job.tasks ?? ["minitron"], job.fewShot);
  const { out } = job;
  if (out === undefined) return { models: await evaluateAll(job, planned, undefined) };
  return inRun({ ...job, out }, inputsOf(job), async (run) => {
    const { names, models: given, limit, fewShot, maxLength, maxTokens, samples, temperature, engine } = job;
    const configuration = {
      command: "evaluate",
      models: names ?? given,
      tasks: planned.map(({ label }) => label),
      limit,
      fewShot,
      maxLength,
      maxTokens,
      samples,
      temperature,
      engine,
      computeType: job.computeType,
    };
    claim(run, { ...job, out }, configuration);
    const models = await evaluateAll(job, planned, run);
    writeJson(run.own("results.json"), { models });
    writeEvaluationReport(run.own("report.html"), models, job.published);
    return { models, out };
  });
}

/** What an evaluation reads on this machine. */
const inputsOf = ({ models, tasks = [], data }: EvaluateJob): Input[] => [
  ...models.flatMap((model) => fileInput("a model", model)),
  ...tasks.flatMap((task) => fileInput("a task file", task)),
  ...fileInput("the benchmark data", data),
];

/** @param run where results go, where they are kept */
async function evaluateAll(
  job: EvaluateJob,
  planned: readonly PlannedTask[],
  run: RunDirectory | undefined,
): Promise<ModelEvaluation[]> {
  const datasets = new Datasets({ directory: job.data, hub: job.hub });
  const sandbox = new PythonSandbox();
  const models: ModelEvaluation[] = [];
  try {
    for (const index of job.models.keys())
      models.push(await evaluateModel(index, planned, job, datasets, sandbox, run));
    return models;
  } finally {
    sandbox.close();
  }
}

async function evaluateModel(
  index: number,
  planned: readonly PlannedTask[],
  job: EvaluateJob,
  datasets: Datasets,
  sandbox: PythonSandbox,
  run: RunDirectory | undefined,
): Promise<ModelEvaluation> {
  const started = performance.now();
  const opened = await openEvaluatedModel(index, job);
  const name = nameOf(index, job);
  const results = new Map<PlannedTask, TaskResult>();
  const date = new Date();
  const samplesOf = ({ task, label }: PlannedTask) =>
    run && new SampleFile(run.own(folder, harnessFile(`samples_${label}`, date, "jsonl")), task);
  const folder = folderName(name);
  try {
    // those that ask for likelihoods first, so that one engine is in memory at a time
    for (const asks of ["likelihood", "generation"] as const) {
      for (const one of planned.filter(({ task }) => task.asks === asks))
        results.set(
          one,
          await evaluateOne(one, opened, job, datasets, sandbox, samplesOf(one), progressOf(one, name, planned, job)),
        );
      await opened.release();
    }
  } finally {
    await opened.release();
  }
  const tasks = planned.map((one) => results.get(one) as TaskResult);
  const evaluation: ModelEvaluation = {
    model: name,
    parameters: opened.parameters,
    ...{ tasks, groups: groupResults(TASK_GROUPS, tasks), seconds: (performance.now() - started) / 1000 },
  };
  if (run !== undefined)
    writeJson(run.own(folder, harnessFile("results", date, "json")), harnessResults(evaluation, planned, job, date));
  return evaluation;
}

const nameOf = (index: number, { models, names }: EvaluateJob): string => names?.[index] ?? models[index] ?? "";

/** Tells of a task's requests; a group's tasks are one stage. */
function progressOf(
  { task, label }: PlannedTask,
  model: string,
  planned: readonly PlannedTask[],
  job: EvaluateJob,
): (done: number, total: number) => void {
  const of = job.models.length > 1 ? `${path.basename(model)} ` : "";
  const isPlanned = (name: string) => planned.some((one) => one.task.name === name);
  const group = TASK_GROUPS.map(({ name }) => ({ name, tasks: tasksOfGroup(TASK_GROUPS, name) })).find(
    ({ tasks }) => tasks.includes(task.name) && tasks.every(isPlanned),
  );
  if (group === undefined)
    return (done, total) => job.onProgress?.({ stage: of + label, done, total, unit: "requests" });
  const before = group.tasks.indexOf(task.name);
  return (done, total) =>
    job.onProgress?.({
      ...{ stage: of + group.name, done: before + done / total, total: group.tasks.length, unit: "tasks" },
      detail: task.name,
    });
}

/** Runs programs, and tells how many of those that are known have ended. */
function countedRuns(sandbox: PythonSandbox, stage: string, job: EvaluateJob): (program: string) => Promise<boolean> {
  let [done, total] = [0, 0];
  return async (program) => {
    total++;
    const { passed } = await sandbox.run(program);
    job.onProgress?.({ stage, done: ++done, total, unit: "programs" });
    return passed;
  };
}

async function evaluateOne(
  { task, fewShot }: PlannedTask,
  opened: OpenedModel,
  job: EvaluateJob,
  datasets: Datasets,
  sandbox: PythonSandbox,
  samples: SampleFile | undefined,
  onProgress: (done: number, total: number) => void,
): Promise<TaskResult> {
  const { maxTokens, temperature, limit, signal } = job;
  const { maxLength } = opened;
  const result = await evaluateTask(task, opened.model, {
    ...{ datasets, limit, fewShot, maxTokens, maxLength, temperature, signal, samples: job.samples ?? 1 },
    tools: { passes: countedRuns(sandbox, `${task.name} tests`, job) },
    onProgress,
    onSample: samples && ((sample) => samples.add(sample)),
  });
  samples?.flush();
  return result;
}

/** Documents with their answers, a line each, in the harness's form. */
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
