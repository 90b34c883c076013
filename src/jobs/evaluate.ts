import { appendFileSync, mkdirSync } from "node:fs";
import path from "node:path";
import { Tokenizer } from "../data/index.js";
import type { RunDirectory } from "../distill/index.js";
import {
  CompletionServer,
  Datasets,
  EngineLikelihoods,
  type EvaluatedModel,
  evaluateTask,
  type GenerationModel,
  type GroupResult,
  groupResults,
  type LikelihoodModel,
  loadTaskFile,
  PythonSandbox,
  ReplyCache,
  type Sample,
  SUITES,
  TASK_GROUPS,
  TASKS,
  type Task,
  type TaskResult,
  tasksOfGroup,
} from "../evaluate/index.js";
import { LlamaCppModel } from "../generate/index.js";
import { Backend } from "../ggml/index.js";
import { loadWeights, summariseGguf } from "../models/index.js";
import { CoppiceError, FormatError, UsageError } from "../system/errors.js";
import { cacheDirectory, writeJson } from "../system/files.js";
import type { Input } from "../system/places.js";
import type { ComputeType } from "../tensor/index.js";
import { findModel, type JobOptions, type OpenModel, type RunOnlyModel } from "./environment.js";
import { writeEvaluationReport } from "./evaluation-report.js";
import { identityOf, originOf, runnableGguf } from "./gguf.js";
import { folderName, harnessFile, harnessResults, harnessSample } from "./harness-results.js";
import { claim, fileInput, inRun } from "./output.js";
import { checkLength } from "./sanity.js";

/** What answers requests for likelihoods: our own engine, or llama.cpp for GGUF files. Text is always written by llama.cpp. */
export const EVALUATION_ENGINES = ["coppice", "llama.cpp"] as const;
export type EvaluationEngine = (typeof EVALUATION_ENGINES)[number];

export interface EvaluateJob extends JobOptions {
  /** Directories, .gguf files, hub ids, or `http://host/v1[#name]` of an OpenAI-compatible server. */
  readonly models: readonly string[];
  /** What they are called in results, in their order; as they are given by default. */
  readonly names?: readonly string[] | undefined;
  /**
   * Where answers are kept, and what is to be unchanged of each model for them to hold, for an evaluation that goes on elsewhere; in the
   * cache and by the models' files by default.
   */
  readonly answers?: { readonly directory: string; readonly identities: readonly string[] } | undefined;
  /** Names of tasks, groups and suites (`minitron`, the default), also `name:SHOTS`, and task files. */
  readonly tasks?: readonly string[] | undefined;
  /** At most so many documents of each task, or that share of them where below 1. */
  readonly limit?: number | undefined;
  /** Worked examples before each question; each task's own number by default. */
  readonly fewShot?: number | undefined;
  readonly maxLength?: number | undefined;
  readonly maxTokens?: number | undefined;
  /** Programs drawn for each programming problem, for pass@k. */
  readonly samples?: number | undefined;
  readonly temperature?: number | undefined;
  /** A directory of benchmark data that is looked at before the hub. */
  readonly data?: string | undefined;
  readonly engine?: EvaluationEngine | undefined;
  readonly computeType?: ComputeType | undefined;
  /** Put published scores beside the models' in the report. */
  readonly published?: boolean | undefined;
  /** Where results, samples in the harness's layout and the report go; nowhere by default. */
  readonly out?: string | undefined;
  readonly cacheDir?: string | undefined;
  /** Ask everything again, whatever was answered before. */
  readonly restart?: boolean | undefined;
}

/** A task, and how it is to be asked. */
export interface PlannedTask {
  readonly task: Task;
  readonly fewShot: number | undefined;
  /** Its name in the results: with the number of examples where the task is measured with several. */
  readonly label: string;
}

export interface ModelEvaluation {
  readonly model: string;
  readonly parameters?: number;
  readonly tasks: readonly TaskResult[];
  readonly groups: readonly GroupResult[];
  readonly seconds: number;
}

export interface EvaluateOutcome {
  readonly models: readonly ModelEvaluation[];
  readonly out?: string;
}

/** Measures models on benchmarks. What was answered is kept on disk, so that a stopped evaluation goes on. */
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

async function plannedTasks(names: readonly string[], fewShot: number | undefined): Promise<PlannedTask[]> {
  const planned: Omit<PlannedTask, "label">[] = [];
  for (const name of names) planned.push(...(await tasksOf(name, fewShot)));
  const byLabel = new Map(
    planned.map((one) => {
      const { name } = one.task;
      const shots = (other: typeof one) => other.fewShot ?? other.task.fewShot.count;
      const twice = planned.some((other) => other.task.name === name && shots(other) !== shots(one));
      const label = twice ? `${name}_${shots(one)}shot` : name;
      return [label, { ...one, label }] as const;
    }),
  );
  return [...byLabel.values()];
}

/** The name of a task and the number of its examples: `NAME:SHOTS`. */
function nameAndShots(given: string, fewShot?: number): { readonly name: string; readonly fewShot?: number } {
  const [, name = given, shots] = /^(.*?)(?::(\d+))?$/.exec(given) ?? [];
  const own = shots === undefined ? fewShot : Number(shots);
  return { name, ...(own !== undefined && { fewShot: own }) };
}

/** Whether a name means a task, group or suite that is brought along: no file is looked at. */
export function isBenchmark(given: string): boolean {
  const { name } = nameAndShots(given);
  return Object.hasOwn(SUITES, name) || [...TASK_GROUPS, ...TASKS].some((known) => known.name === name);
}

/** @throws UsageError for a name that means nothing, listing those that do */
async function tasksOf(given: string, fewShot: number | undefined): Promise<Omit<PlannedTask, "label">[]> {
  const { name, fewShot: own } = nameAndShots(given, fewShot);
  const suite = Object.hasOwn(SUITES, name) ? SUITES[name] : undefined;
  if (suite !== undefined)
    return (await Promise.all(suite.map((entry) => tasksOf(entry.task, own ?? entry.fewShot)))).flat();
  const group = TASK_GROUPS.find((known) => known.name === name);
  if (group !== undefined) return (await Promise.all(group.members.map((member) => tasksOf(member, own)))).flat();
  const task = TASKS.find((known) => known.name === name) ?? (await loadTaskFile(name));
  if (task !== undefined) return [{ task, fewShot: own }];
  const known = [...Object.keys(SUITES), "mmlu", ...TASKS.map((one) => one.name)].filter((one) => !/^mmlu_/.test(one));
  throw new UsageError(
    `there is no task ${name}; known are ${known.join(", ")}, mmlu_SUBJECT, and task files (.json, .js, .ts)`,
  );
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
  const opened = await open(index, job);
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
    ...(opened.parameters !== undefined && { parameters: opened.parameters }),
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

interface OpenedModel {
  readonly model: EvaluatedModel;
  readonly parameters: number | undefined;
  /** Its longest sequence, where it is known. */
  readonly maxLength: number | undefined;
  /** Gives memory back; what is needed again is opened again. */
  release(): Promise<void>;
}

/** Changes when the same request would get another answer. */
const ANSWERS_VERSION = 1;

async function open(index: number, job: EvaluateJob): Promise<OpenedModel> {
  const name = job.models[index] ?? "";
  const cacheOf = (identity: unknown) =>
    ReplyCache.open(
      job.answers?.directory ?? path.join(cacheDirectory(job.cacheDir), "evaluations"),
      [ANSWERS_VERSION, identity],
      job.restart === true,
    );
  if (/^https?:\/\//.test(name)) {
    const [url = name, model] = name.split("#");
    const server = await CompletionServer.connect(url, model === undefined ? {} : { model });
    const cache = cacheOf([url, server.model]);
    return {
      model: { likelihood: server, generation: server, cache },
      parameters: undefined,
      maxLength: undefined,
      release: async () => {},
    };
  }
  const found = await findModel(name, job);
  const { parameters } = found;
  if (job.engine === "llama.cpp" && found.file === undefined)
    throw new UsageError(`--engine llama.cpp is for .gguf files; ${name} is a directory`);
  const longest = longestSequence(found);
  checkLength(job.maxLength, { maxPositions: longest }, name, "--max-length");
  const maxLength = job.maxLength ?? longest;
  if (maxLength < 2) throw new UsageError(`a longest sequence of ${maxLength} tokens leaves nothing to predict`);
  const lazy = new LazyModel(found, name, { ...job, maxLength });
  if (job.computeType === "bf16" && job.engine === "llama.cpp") throw new UsageError("--compute is for our own engine");
  const { engine = "coppice", computeType = "f32" } = job;
  const cache = cacheOf([
    job.answers?.identities[index] ?? identityOf(originOf(found)),
    engine,
    computeType,
    maxLength,
  ]);
  return { model: { likelihood: lazy, generation: lazy, cache }, parameters, maxLength, release: () => lazy.release() };
}

/** Of a model that does not say what it was made for. */
const DEFAULT_LENGTH = 2048;

const longestSequence = (found: OpenModel | RunOnlyModel): number =>
  found.checkpoint === undefined ? summariseGguf(found.file).contextLength || DEFAULT_LENGTH : found.model.maxPositions;

/** Larger models write with the weights as they are stored, rather than in f32. */
const EXACT_PARAMETERS = 1e9;

/** Opens the engines when they are first asked. */
class LazyModel implements LikelihoodModel, GenerationModel {
  private likelihood: (LikelihoodModel & { release(): Promise<void> | void }) | undefined;
  private writer: LlamaCppModel | undefined;

  constructor(
    private readonly found: OpenModel | RunOnlyModel,
    private readonly name: string,
    private readonly job: EvaluateJob,
  ) {}

  logLikelihoods: LikelihoodModel["logLikelihoods"] = async (...asked) => {
    this.likelihood ??= await this.openLikelihood();
    return this.likelihood.logLikelihoods(...asked);
  };

  generate: GenerationModel["generate"] = async (...asked) => {
    this.writer ??= await this.openLlamaCpp();
    return this.writer.generate(...asked);
  };

  private async openLikelihood() {
    const { job, found } = this;
    if (job.engine === "llama.cpp") {
      const model = await this.openLlamaCpp();
      return Object.assign(model, { release: () => model.dispose() });
    }
    if (found.checkpoint === undefined)
      throw new FormatError(`${found.reason}. With --engine llama.cpp, likelihoods are llama.cpp's too`);
    const tokenizer = await Tokenizer.load(found.checkpoint.directory);
    const { computeType = "f32", maxLength } = job;
    const backend = Backend.open(job);
    try {
      const dtype = computeType === "f32" ? "f32" : "bf16";
      const weights = loadWeights(backend, found.model, found.checkpoint.source, { dtype, trainable: false });
      const engine = new EngineLikelihoods(backend, weights, tokenizer, { maxLength, computeType });
      return Object.assign(engine, {
        release: () => {
          engine.free();
          weights.free();
          backend.free();
        },
      });
    } catch (error) {
      backend.free();
      throw error;
    }
  }

  private async openLlamaCpp(): Promise<LlamaCppModel> {
    const { job, found, name } = this;
    const exact = found.parameters <= EXACT_PARAMETERS;
    const asStored = found.file !== undefined || !exact;
    const tokenizer = found.checkpoint && (await Tokenizer.load(found.checkpoint.directory));
    const file = await runnableGguf(name, asStored ? job : { ...job, kind: "f32" });
    const { device, threads, maxLength } = job;
    try {
      return await LlamaCppModel.open(file, tokenizer, {
        ...{ exact, maxLength },
        ...(device && { device }),
        ...(threads !== undefined && { threads }),
      });
    } catch (error) {
      throw new CoppiceError(`text cannot be written: ${error instanceof Error ? error.message : error}`);
    }
  }

  async release(): Promise<void> {
    const { likelihood, writer } = this;
    this.likelihood = undefined;
    this.writer = undefined;
    await likelihood?.release();
    await writer?.dispose();
  }
}
