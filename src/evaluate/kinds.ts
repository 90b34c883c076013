import { FormatError } from "../system/errors.js";
import { indexOfLargest, type Metric, mean, metricKey, passAtK } from "./metrics.js";
import { length } from "./python-text.js";
import type { GenerateRequest, Likelihood, Reply } from "./requests.js";
import { defineTask, type Question, type RequestSettings, type Task, type TaskFacts } from "./task.js";

/** The kinds of benchmarks: each turns what differs between benchmarks of its kind into a task. */

const likelihoodsOf = (replies: readonly Reply[]): number[] =>
  replies.map((reply) => (reply as Likelihood).logLikelihood);
const textOf = (reply: Reply | undefined): string => (typeof reply === "string" ? reply : "");

/** One of several texts that is to be the most probable one. */
export interface Option {
  readonly context: string;
  /** Follows the context after a space. */
  readonly continuation: string;
}

export interface MultipleChoice<Row> extends TaskFacts<Row> {
  readonly options: (row: Row) => readonly Option[];
  /** The numbers of the right options; the first is the answer of worked examples. */
  readonly right: (row: Row) => readonly number[];
  readonly metrics: readonly ChoiceMetric[];
}

/**
 * How a choice is judged: `acc` whether the most probable option is right, `acc_norm` the most probable one per character,
 * `mc2` the share of probability of the right ones (which the harness calls acc as well).
 */
export type ChoiceMetric = "acc" | "acc_norm" | "mc2";

const CHOICE_METRICS: Record<
  ChoiceMetric,
  {
    readonly name: string;
    readonly of: (likelihoods: readonly number[], lengths: readonly number[], right: readonly number[]) => number;
  }
> = {
  acc: { name: "acc", of: (likelihoods, _, right) => (indexOfLargest(likelihoods) === right[0] ? 1 : 0) },
  acc_norm: {
    name: "acc_norm",
    of: (likelihoods, lengths, right) =>
      indexOfLargest(likelihoods.map((value, i) => value / (lengths[i] ?? 1))) === right[0] ? 1 : 0,
  },
  /** Lin et al. 2022, section 3.2.2. */
  mc2: {
    name: "acc",
    of: (likelihoods, _, right) => {
      const probabilities = likelihoods.map(Math.exp);
      const total = probabilities.reduce((sum, p) => sum + p, 0);
      return right.reduce((sum, i) => sum + (probabilities[i] ?? 0) / total, 0);
    },
  },
};

/** The options of a question whose context is one for all. */
export const choices = (context: string, continuations: readonly string[]): Option[] =>
  continuations.map((continuation) => ({ context, continuation }));

/** The option with the highest log-likelihood is taken. */
export function multipleChoice<Row>(task: MultipleChoice<Row>): Task {
  const question = (row: Row): Question => {
    const options = task.options(row);
    const right = task.right(row);
    const answer = options[right[0] ?? -1];
    if (answer === undefined) throw new FormatError(`its answer is none of its ${options.length} options`);
    return {
      shot: `${answer.context} ${answer.continuation}`,
      target: right[0] ?? 0,
      requests: (prefix) =>
        options.map(({ context, continuation }) => ({
          ...{ kind: "log-likelihood", context: prefix + context, continuation: ` ${continuation}` },
        })),
      score: (replies) => {
        const lengths = options.map(({ continuation }) => length(continuation));
        const values = task.metrics.map((metric) => {
          const { name, of } = CHOICE_METRICS[metric];
          return [`${name},none`, of(likelihoodsOf(replies), lengths, right)];
        });
        return Object.fromEntries(values);
      },
    };
  };
  return defineTask(task, {
    asks: "likelihood",
    metrics: task.metrics.map((metric) => mean(CHOICE_METRICS[metric].name)),
    question,
  });
}

export interface Generation<Row> extends TaskFacts<Row> {
  readonly prompt: (row: Row) => string;
  /** What a worked example has after the prompt and a space. */
  readonly answer: (row: Row) => string;
  readonly until: readonly string[];
  readonly maxTokens?: number | undefined;
  readonly metrics: readonly Metric[];
  /** The metrics' values, in their order. */
  readonly judge: (text: string, row: Row) => readonly number[];
}

/** The harness's longest generated text. */
const DEFAULT_MAX_TOKENS = 256;

/** How long a text may get. The harness ends where the task's own length leaves no room; ours then writes half. */
function longestText(own: number = DEFAULT_MAX_TOKENS, { maxTokens, maxLength }: RequestSettings): number {
  return maxTokens ?? (maxLength !== undefined && own >= maxLength ? Math.floor(maxLength / 2) : own);
}

/** A text is written and compared with the right one. */
export function generation<Row>(task: Generation<Row>): Task {
  const question = (row: Row): Question => ({
    shot: `${task.prompt(row)} ${task.answer(row)}`,
    target: task.answer(row),
    requests: (prefix, settings) => [
      {
        ...{ kind: "generate", context: prefix + task.prompt(row), until: task.until },
        maxTokens: longestText(task.maxTokens, settings),
      },
    ],
    score: ([reply]) => {
      const values = task.judge(textOf(reply), row);
      return Object.fromEntries(task.metrics.map((metric, i) => [metricKey(metric), values[i] ?? 0]));
    },
  });
  return defineTask(task, { asks: "generation", metrics: task.metrics, question });
}

export interface Programming<Row> extends TaskFacts<Row> {
  readonly prompt: (row: Row) => string;
  /** What a worked example has after the prompt. */
  readonly answer: (row: Row) => string;
  /** The whole program to run: what was written, with the tests. */
  readonly program: (text: string, row: Row) => string;
  readonly until: readonly string[];
  readonly maxTokens?: number | undefined;
  /** The harness's name of the metric, for some k. */
  readonly metric: (k: number) => Metric;
}

/** Of so many samples pass@k is given, where there are as many. */
const PASS_AT = [1, 2, 5, 8, 10, 16, 32, 64, 100];
/** The harness's settings where several samples are drawn (humaneval_64). */
const [SAMPLING_TEMPERATURE, SAMPLING_TOP_P] = [0.2, 0.95];

/** A program is written and run against tests. */
export function programming<Row>(task: Programming<Row>): Task {
  const request = (context: string, settings: RequestSettings, sample: number) => {
    const { samples, temperature } = settings;
    const settled = temperature ?? (samples > 1 ? SAMPLING_TEMPERATURE : 0);
    return {
      ...{ kind: "generate", context, until: task.until },
      maxTokens: longestText(task.maxTokens, settings),
      ...(settled > 0 && { temperature: settled, topP: SAMPLING_TOP_P, sample }),
    } satisfies GenerateRequest;
  };
  const question = (row: Row): Question => ({
    shot: task.prompt(row) + task.answer(row),
    target: task.answer(row),
    requests: (prefix, settings) =>
      Array.from({ length: settings.samples }, (_, i) => request(prefix + task.prompt(row), settings, i)),
    score: async (replies, { passes }) => {
      const verdicts = await Promise.all(replies.map((reply) => passes(task.program(textOf(reply), row))));
      const right = verdicts.filter(Boolean).length;
      const sizes = PASS_AT.filter((k) => k <= replies.length);
      return Object.fromEntries(sizes.map((k) => [metricKey(task.metric(k)), passAtK(replies.length, right, k)]));
    },
  });
  return defineTask(task, { asks: "generation", metrics: PASS_AT.map(task.metric), question });
}

export interface LastWord<Row> extends TaskFacts<Row> {
  readonly context: (row: Row) => string;
  readonly continuation: (row: Row) => string;
}

/** A given continuation is to be the most probable one: `acc`, and its perplexity. */
export function lastWord<Row>(task: LastWord<Row>): Task {
  const question = (row: Row): Question => ({
    shot: `${task.context(row)} ${task.continuation(row)}`,
    target: task.continuation(row),
    requests: (prefix) => [
      { kind: "log-likelihood", context: prefix + task.context(row), continuation: task.continuation(row) },
    ],
    score: ([reply]) => {
      const { logLikelihood, isGreedy } = reply as Likelihood;
      return { "perplexity,none": logLikelihood, "acc,none": isGreedy ? 1 : 0 };
    },
  });
  const perplexity: Metric = { name: "perplexity", filter: "none", aggregation: "perplexity", higherIsBetter: false };
  return defineTask(task, { asks: "likelihood", metrics: [perplexity, mean("acc")], question });
}

export interface WholeText<Row> extends TaskFacts<Row> {
  readonly text: (row: Row) => string;
  readonly words: (row: Row) => number;
  readonly bytes: (row: Row) => number;
}

/** How well a whole text is predicted, per word and per byte. */
export function wholeText<Row>(task: WholeText<Row>): Task {
  const question = (row: Row): Question => ({
    shot: task.text(row),
    target: task.text(row),
    requests: () => [{ kind: "rolling", text: task.text(row) }],
    score: ([reply]) => {
      const { logLikelihood } = reply as Likelihood;
      const [words, bytes] = [task.words(row), task.bytes(row)];
      return {
        "word_perplexity,none": [logLikelihood, words],
        "byte_perplexity,none": [logLikelihood, bytes],
        "bits_per_byte,none": [logLikelihood, bytes],
      };
    },
  });
  const metric = (name: string, aggregation: Metric["aggregation"]): Metric => ({
    ...{ name, filter: "none", aggregation, higherIsBetter: false },
  });
  const metrics = [
    metric("word_perplexity", "weighted_perplexity"),
    metric("byte_perplexity", "weighted_perplexity"),
    metric("bits_per_byte", "bits_per_byte"),
  ];
  return defineTask(task, { asks: "likelihood", metrics, question });
}
