import { elementAt } from "../system/arrays.js";
import { CoppiceError, FormatError, InterruptedError, required } from "../system/errors.js";
import type { Datasets } from "./datasets.js";
import { aggregate, type Metric, type MetricValue, metricKey, pooledStandardError, type Score } from "./metrics.js";
import { FewShotPrompts, fewShotSplit, limited, testSplit } from "./prompts.js";
import { ReplyCache } from "./reply-cache.js";
import type { GenerateRequest, GenerationModel, LikelihoodModel, Reply, Request } from "./requests.js";
import type { MetricValues, Question, RequestSettings, ScoringTools, Task } from "./task.js";
import { type TaskGroup, tasksOfGroup } from "./tasks/index.js";

/** A model under evaluation. Tasks that need a part that is missing are refused. */
export interface EvaluatedModel {
  readonly likelihood?: LikelihoodModel | undefined;
  readonly generation?: GenerationModel | undefined;
  readonly cache?: ReplyCache | undefined;
}

export interface EvaluateOptions extends Partial<RequestSettings> {
  readonly datasets: Datasets;
  readonly tools: ScoringTools;
  /** How many documents of each task at most, or which share of them when below 1. */
  readonly limit?: number | undefined;
  /** Worked examples before each question; the task's own number by default. */
  readonly fewShot?: number | undefined;
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
  /** Called with each document once it is scored. */
  readonly onSample?: ((sample: Sample) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A document with its requests, replies and scores. */
export interface Sample {
  readonly id: number;
  readonly row: unknown;
  readonly target: string | number;
  readonly requests: readonly Request[];
  readonly replies: readonly Reply[];
  readonly scores: MetricValues;
}

/** A metric's result. */
export interface MetricResult extends Score {
  readonly metric: Metric;
}

/** A model's scores on a task. */
export interface TaskResult {
  readonly task: string;
  readonly version: number;
  readonly fewShot: number;
  readonly metrics: readonly MetricResult[];
  /** How many documents the split has, and how many of them were measured. */
  readonly documents: { readonly all: number; readonly measured: number };
  readonly requests: number;
  /** How many requests were answered from the cache. */
  readonly cached: number;
  readonly seconds: number;
  /** Versions of the splits used: hub commits, or hashes of local files. */
  readonly data: Readonly<Record<string, string>>;
}

/**
 * Measures a model on a task.
 * @throws CoppiceError when data is missing or the model cannot answer, FormatError when a row is malformed, InterruptedError
 * when stopped (replies so far are in the cache)
 */
export async function evaluateTask(task: Task, model: EvaluatedModel, options: EvaluateOptions): Promise<TaskResult> {
  const startedAt = performance.now();
  const fewShot = options.fewShot ?? task.fewShot.count;
  const [test, examples] = await Promise.all([
    options.datasets.split(task.dataset, testSplit(task)),
    fewShot === 0 ? undefined : options.datasets.split(task.dataset, fewShotSplit(task)),
  ]);
  if (test.rows.length === 0) throw new FormatError(`${task.name}: the split ${testSplit(task)} has no rows`);
  const measured = limited(test.rows.length, options.limit ?? task.limit);
  const pool = {
    rows: examples?.rows.map(({ record }) => record) ?? [],
    holdsQuestions: examples?.files.join() === test.files.join(),
  };
  const prompts = new FewShotPrompts(task, pool, fewShot);
  const settings: RequestSettings = { samples: 1, ...options };
  const questions = test.rows.slice(0, measured).map(({ record, where }) => {
    const prefix = prompts.before(record);
    const question = readQuestion(task, record, where);
    return { record, question, requests: question.requests(prefix, settings) };
  });
  const requests = questions.flatMap((question) => question.requests);
  const { replies, cached } = await ask(task, model, requests, options);
  const metrics = await scoreAll(task, questions, replies, options);
  const data: Record<string, string> = { [testSplit(task)]: test.version };
  if (examples !== undefined) data[fewShotSplit(task)] = examples.version;
  return {
    task: task.name,
    version: task.version,
    fewShot,
    metrics,
    documents: { all: test.rows.length, measured },
    requests: requests.length,
    cached,
    seconds: (performance.now() - startedAt) / 1000,
    data,
  };
}

interface AskedQuestion {
  readonly record: unknown;
  readonly question: Question;
  readonly requests: readonly Request[];
}

/** Scores the replies to all questions. Metrics that no question has a value for are left out. */
async function scoreAll(
  task: Task,
  questions: readonly AskedQuestion[],
  replies: readonly Reply[],
  { tools, onSample }: EvaluateOptions,
): Promise<MetricResult[]> {
  let first = 0;
  // all are started before any is awaited: programs are run side by side
  const scored = questions.map(({ record, question, requests }) => {
    const own = replies.slice(first, first + requests.length);
    first += requests.length;
    return { record, question, requests, replies: own, pending: question.score(own, tools) };
  });
  const values = new Map<string, MetricValue[]>(task.metrics.map((metric) => [metricKey(metric), []]));
  for (const [id, { record, question, requests, replies: own, pending }] of scored.entries()) {
    const scores = await pending;
    for (const [key, value] of Object.entries(scores)) values.get(key)?.push(value);
    onSample?.({ id, row: record, target: question.target, requests, replies: own, scores });
  }
  const metrics: MetricResult[] = [];
  for (const metric of task.metrics) {
    const own = values.get(metricKey(metric)) ?? [];
    if (own.length > 0) metrics.push({ metric, ...(await aggregate(metric, own)) });
  }
  return metrics;
}

function readQuestion(task: Task, record: unknown, where: string): Question {
  try {
    return task.read(record);
  } catch (error) {
    throw error instanceof FormatError ? new FormatError(`${task.name}: ${where}: ${error.message}`) : error;
  }
}

/** Answers from the cache, and asks the model what is not there. Equal requests are asked once. */
async function ask(task: Task, model: EvaluatedModel, requests: readonly Request[], options: EvaluateOptions) {
  const { onProgress, signal } = options;
  const cache = model.cache ?? ReplyCache.inMemory();
  const keys = requests.map(ReplyCache.key);
  const missing = new Map<string, Request>();
  requests.forEach((request, i) => {
    const key = elementAt(keys, i);
    if (cache.get(key) === undefined) missing.set(key, request);
  });
  const cached = keys.filter((key) => !missing.has(key)).length;
  const missingKeys = [...missing.keys()];
  const occurrences = new Map<string, number>();
  for (const key of keys) occurrences.set(key, (occurrences.get(key) ?? 0) + 1);
  let done = cached;
  const onReply = (index: number, reply: Reply) => {
    const key = elementAt(missingKeys, index);
    cache.set(key, reply);
    done += required(occurrences.get(key), `${task.name}: a reply without a request`);
    onProgress?.(done, requests.length);
  };
  onProgress?.(done, requests.length);
  try {
    if (missing.size > 0) await askModel(task, model, [...missing.values()], onReply, signal);
  } finally {
    cache.flush();
  }
  const replies = keys.map((key) => cache.get(key));
  const unanswered = replies.filter((reply) => reply === undefined).length;
  if (unanswered > 0)
    throw new InterruptedError(
      `${task.name}: stopped with ${requests.length - unanswered} of ${requests.length} requests answered; run the same command again to continue`,
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
    if (generation === undefined) throw new CoppiceError(`${task.name}: this model cannot generate text`);
    return generation.generate(requests as GenerateRequest[], onReply, { signal });
  }
  if (likelihood === undefined) throw new CoppiceError(`${task.name}: this model cannot give likelihoods`);
  const likelihoods = requests.filter((request) => request.kind !== "generate");
  return likelihood.logLikelihoods(likelihoods, onReply, { signal });
}

/** A group's scores: means of its tasks' scores, weighted by their numbers of documents. */
export interface GroupResult {
  readonly group: string;
  /** Of each task; undefined where they have not all the same number of worked examples. */
  readonly fewShot?: number | undefined;
  readonly version: number;
  readonly members: readonly string[];
  readonly metrics: readonly MetricResult[];
  readonly documents: number;
}

/**
 * Scores of those groups whose every member was measured: where a member was measured with several numbers of worked examples, once for
 * each of these that all members have.
 */
export function groupResults(groups: readonly TaskGroup[], tasks: readonly TaskResult[]): GroupResult[] {
  return groups.flatMap((group) => {
    const own = tasksOfGroup(groups, group.name).map((member) => tasks.filter(({ task }) => task === member));
    if (own.some((results) => results.length === 0)) return [];
    const counts = [...new Set(own.flat().map(({ fewShot }) => fewShot))];
    if (own.every((results) => results.length === 1))
      return [groupResult(group, own.flat(), counts.length === 1 ? counts[0] : undefined)];
    return counts.flatMap((count) => {
      const results = own.flatMap((each) => each.find(({ fewShot }) => fewShot === count) ?? []);
      return results.length === own.length ? [groupResult(group, results, count)] : [];
    });
  });
}

function groupResult(
  { name, version, members }: TaskGroup,
  results: readonly TaskResult[],
  fewShot: number | undefined,
): GroupResult {
  const documents = results.reduce((sum, result) => sum + result.documents.measured, 0);
  const metrics = (results[0]?.metrics ?? []).map(({ metric }) => {
    const parts = results.map(({ metrics: own, documents: { measured: size } }) => {
      const key = metricKey(metric);
      const found = own.find((result) => metricKey(result.metric) === key);
      const { value, standardError } = required(found, `a task of the group ${name} has no metric ${key}`);
      return { size, value, error: standardError };
    });
    const errors = parts.flatMap(({ size, error }) => (error === undefined ? [] : [{ size, error }]));
    return {
      metric,
      value: parts.reduce((sum, { size, value }) => sum + size * value, 0) / documents,
      standardError: errors.length === parts.length ? pooledStandardError(errors) : undefined,
    };
  });
  return { group: name, fewShot, version, members, metrics, documents };
}
