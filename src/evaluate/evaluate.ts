import { CoppiceError, FormatError, InterruptedError } from "../system/errors.js";
import type { Datasets } from "./datasets.js";
import { aggregate, type Metric, metricKey, pooledStandardError, type Score, type Value } from "./metrics.js";
import { FewShotPrompts, fewShotSplit, limited, testSplit } from "./prompts.js";
import { ReplyCache } from "./reply-cache.js";
import type { GenerateRequest, GenerationModel, LikelihoodModel, Reply, Request } from "./requests.js";
import type { Question, RequestSettings, Scores, ScoringTools, Task } from "./task.js";
import type { TaskGroup } from "./tasks/index.js";
import { tasksOfGroup } from "./tasks/index.js";

/** A model that benchmarks can ask. What it cannot answer is missing. */
export interface EvaluatedModel {
  readonly likelihood?: LikelihoodModel | undefined;
  readonly generation?: GenerationModel | undefined;
  readonly cache?: ReplyCache | undefined;
}

export interface EvaluateOptions extends Partial<RequestSettings> {
  readonly datasets: Datasets;
  readonly tools: ScoringTools;
  /** At most so many documents of each task, or that share of them where below 1. */
  readonly limit?: number | undefined;
  /** Worked examples before each question; the task's own number by default. */
  readonly fewShot?: number | undefined;
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
  /** Called with each document as it is judged. */
  readonly onSample?: ((sample: Sample) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A document with all that became of it. */
export interface Sample {
  readonly id: number;
  readonly row: unknown;
  readonly target: string | number;
  readonly requests: readonly Request[];
  readonly replies: readonly Reply[];
  readonly scores: Scores;
}

/** A metric's result. */
export interface MetricResult extends Score {
  readonly metric: Metric;
}

export interface TaskResult {
  readonly task: string;
  readonly version: number;
  readonly fewShot: number;
  readonly metrics: readonly MetricResult[];
  /** Documents of the split, and how many of them were measured. */
  readonly documents: { readonly all: number; readonly measured: number };
  readonly requests: number;
  /** Requests that were answered by the cache. */
  readonly cached: number;
  readonly seconds: number;
  /** Versions of the splits used: hub commits, or hashes of local files. */
  readonly data: Readonly<Record<string, string>>;
}

/**
 * Measures a model on a task.
 * @throws CoppiceError when data is missing, when the model cannot answer, or when it was stopped (what was answered is in the cache)
 */
export async function evaluateTask(task: Task, model: EvaluatedModel, options: EvaluateOptions): Promise<TaskResult> {
  const started = performance.now();
  const fewShot = options.fewShot ?? task.fewShot.count;
  const [test, examples] = await Promise.all([
    options.datasets.split(task.dataset, testSplit(task)),
    fewShot === 0 ? undefined : options.datasets.split(task.dataset, fewShotSplit(task)),
  ]);
  if (test.rows.length === 0) throw new FormatError(`${task.name}: the split ${testSplit(task)} has no rows`);
  const measured = limited(test.rows.length, options.limit ?? task.limit);
  const prompts = new FewShotPrompts(task, examples?.rows.map(({ record }) => record) ?? [], fewShot);
  const settings: RequestSettings = { samples: 1, ...options };
  const questions = test.rows.slice(0, measured).map(({ record, where }) => {
    const prefix = prompts.before(record);
    const question = readQuestion(task, record, where);
    return { record, question, requests: question.requests(prefix, settings) };
  });
  const requests = questions.flatMap((question) => question.requests);
  const { replies, cached } = await ask(task, model, requests, options);

  const values = new Map<string, Value[]>(task.metrics.map((metric) => [metricKey(metric), []]));
  let at = 0;
  const judged = questions.map((question) => {
    const own = replies.slice(at, at + question.requests.length);
    at += question.requests.length;
    return { ...question, own, scores: question.question.score(own, options.tools) };
  });
  for (const [id, { record, question, requests: asked, own, scores: pending }] of judged.entries()) {
    const scores = await pending;
    for (const [key, value] of Object.entries(scores)) values.get(key)?.push(value);
    options.onSample?.({ id, row: record, target: question.target, requests: asked, replies: own, scores });
  }
  const metrics: MetricResult[] = [];
  for (const metric of task.metrics) {
    const own = values.get(metricKey(metric)) ?? [];
    if (own.length > 0) metrics.push({ metric, ...(await aggregate(metric, own)) });
  }
  return {
    ...{ task: task.name, version: task.version, fewShot, metrics },
    documents: { all: test.rows.length, measured },
    ...{ requests: requests.length, cached, seconds: (performance.now() - started) / 1000 },
    data: {
      [testSplit(task)]: test.version,
      ...(examples && { [fewShotSplit(task)]: examples.version }),
    },
  };
}

function readQuestion(task: Task, record: unknown, where: string): Question {
  try {
    return task.read(record);
  } catch (error) {
    throw error instanceof FormatError ? new FormatError(`${task.name}: ${where}: ${error.message}`) : error;
  }
}

/** Answers from the cache, and from the model what is not there. Equal requests are asked once. */
async function ask(task: Task, model: EvaluatedModel, requests: readonly Request[], options: EvaluateOptions) {
  const { onProgress, signal } = options;
  const cache = model.cache ?? ReplyCache.inMemory();
  const keys = requests.map(ReplyCache.key);
  const wanted = new Map<string, Request>();
  requests.forEach((request, i) => {
    const key = keys[i] ?? "";
    if (cache.get(key) === undefined) wanted.set(key, request);
  });
  const cached = keys.filter((key) => !wanted.has(key)).length;
  const missing = [...wanted.keys()];
  const times = new Map<string, number>();
  for (const key of keys) times.set(key, (times.get(key) ?? 0) + 1);
  let done = cached;
  const onReply = (index: number, reply: Reply) => {
    const key = missing[index] ?? "";
    cache.set(key, reply);
    done += times.get(key) ?? 1;
    onProgress?.(done, requests.length);
  };
  onProgress?.(done, requests.length);
  try {
    if (missing.length > 0) await askModel(task, model, [...wanted.values()], onReply, signal);
  } finally {
    cache.flush();
  }
  const replies = keys.map((key) => cache.get(key));
  const unanswered = replies.filter((reply) => reply === undefined).length;
  if (unanswered > 0)
    throw new InterruptedError(
      `${task.name}: stopped with ${requests.length - unanswered} of ${requests.length} requests answered; the same command goes on from there`,
    );
  return { replies: replies as Reply[], cached };
}

async function askModel(
  task: Task,
  { likelihood, generation }: EvaluatedModel,
  requests: readonly Request[],
  onReply: (index: number, reply: Reply) => void,
  signal: AbortSignal | undefined,
): Promise<void> {
  if (task.asks === "generation") {
    if (generation === undefined) throw new CoppiceError(`${task.name}: this model cannot be made to write text`);
    return generation.generate(requests as GenerateRequest[], onReply, { signal });
  }
  if (likelihood === undefined) throw new CoppiceError(`${task.name}: this model gives no likelihoods`);
  const likelihoods = requests.filter((request) => request.kind !== "generate");
  return likelihood.logLikelihoods(likelihoods, onReply, { signal });
}

/** A group's scores: means of its tasks', weighted by their numbers of documents. */
export interface GroupResult {
  readonly group: string;
  readonly version: number;
  readonly members: readonly string[];
  readonly metrics: readonly MetricResult[];
  readonly documents: number;
}

/** The groups of which every member was measured. */
export function groupResults(groups: readonly TaskGroup[], tasks: readonly TaskResult[]): GroupResult[] {
  const measured = new Map(tasks.map((result) => [result.task, result]));
  return groups.flatMap(({ name, version, members }) => {
    const results = tasksOfGroup(groups, name).map((member) => measured.get(member));
    if (!results.every((result) => result !== undefined)) return [];
    const documents = results.reduce((sum, result) => sum + result.documents.measured, 0);
    const metrics = (results[0]?.metrics ?? []).map(({ metric }) => {
      const parts = results.map(({ metrics: own, documents: { measured: size } }) => {
        const found = own.find((result) => metricKey(result.metric) === metricKey(metric));
        return { size, value: found?.value ?? 0, error: found?.standardError };
      });
      const errors = parts.flatMap(({ size, error }) => (error === undefined ? [] : [{ size, error }]));
      return {
        metric,
        value: parts.reduce((sum, { size, value }) => sum + size * value, 0) / documents,
        standardError: errors.length === parts.length ? pooledStandardError(errors) : undefined,
      };
    });
    return [{ group: name, version, members, metrics, documents }];
  });
}
