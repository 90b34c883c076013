import { elementAt } from "../system/arrays.js";
import { CoppiceError, FormatError } from "../system/errors.js";
import { indexOfLargest, type Metric, mean, metricKey, passAtK } from "./metrics.js";
import { length } from "./python-text.js";
import type { GenerateRequest, Likelihood, Reply } from "./requests.js";
import { defineTask, type Question, type RequestSettings, type Task, type TaskFacts } from "./task.js";

/** Kinds of benchmarks: a function each, which turns what differs between benchmarks of its kind into a task. */

const likelihoodsOf = (replies: readonly Reply[]): number[] =>
  replies.map((reply) => (reply as Likelihood).logLikelihood);
function textOf(reply: Reply | undefined): string {
  if (typeof reply !== "string") throw new TypeError("a request for text was answered by something else");
  return reply;
}

/** One of the texts a model chooses between. */
export interface ChoiceOption {
  readonly context: string;
  /** Follows the context and a space. */
  readonly continuation: string;
}

/** A benchmark that asks for the most probable of several texts. */
export interface MultipleChoiceTask<Row> extends TaskFacts<Row> {
  readonly options: (row: Row) => readonly ChoiceOption[];
  /** Indices of the right options; worked examples show the first. */
  readonly right: (row: Row) => readonly number[];
  readonly metrics: readonly ChoiceMetric[];
}

/**
 * How a choice is scored: `acc`, whether the most probable option is right; `acc_norm`, the same by probability per character;
 * `mc2`, the right options' share of the probability (which the harness calls acc as well).
 */
export type ChoiceMetric = "acc" | "acc_norm" | "mc2";

/** A question's options, as the metrics see them. */
interface ScoredChoice {
  readonly logLikelihoods: readonly number[];
  /** Lengths of the continuations in characters. */
  readonly lengths: readonly number[];
  readonly right: readonly number[];
}

const CHOICE_METRICS: Record<
  ChoiceMetric,
  { readonly name: string; readonly score: (choice: ScoredChoice) => number }
> = {
  acc: {
    name: "acc",
    score: ({ logLikelihoods, right }) => (indexOfLargest(logLikelihoods) === right[0] ? 1 : 0),
  },
  acc_norm: {
    name: "acc_norm",
    score: ({ logLikelihoods, lengths, right }) =>
      indexOfLargest(logLikelihoods.map((value, i) => value / elementAt(lengths, i))) === right[0] ? 1 : 0,
  },
  /** Lin et al. 2022, section 3.2.2. */
  mc2: {
    name: "acc",
    score: ({ logLikelihoods, right }) => {
      const probabilities = logLikelihoods.map(Math.exp);
      const total = probabilities.reduce((sum, p) => sum + p, 0);
      return right.reduce((sum, i) => sum + elementAt(probabilities, i) / total, 0);
    },
  },
};

/** The options of a question that share one context. */
export const choices = (context: string, continuations: readonly string[]): ChoiceOption[] =>
  continuations.map((continuation) => ({ context, continuation }));

/** Makes a task whose answer is the option with the highest log-likelihood. */
export function multipleChoice<Row>(task: MultipleChoiceTask<Row>): Task {
  const question = (row: Row): Question => {
    const options = task.options(row);
    const right = task.right(row);
    const [target = -1] = right;
    const answer = options[target];
    if (answer === undefined) throw new FormatError(`its answer is none of its ${options.length} options`);
    return {
      shot: `${answer.context} ${answer.continuation}`,
      target,
      requests: (prefix) =>
        options.map(({ context, continuation }) => ({
          kind: "log-likelihood",
          context: prefix + context,
          continuation: ` ${continuation}`,
        })),
      score: (replies) => {
        const lengths = options.map(({ continuation }) => length(continuation));
        const logLikelihoods = likelihoodsOf(replies);
        const values = task.metrics.map((metric) => {
          const { name, score } = CHOICE_METRICS[metric];
          return [metricKey(mean(name)), score({ logLikelihoods, lengths, right })];
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

/** A benchmark that compares generated text with a reference. */
export interface GenerationTask<Row> extends TaskFacts<Row> {
  readonly prompt: (row: Row) => string;
  /** The reference; in worked examples it follows the prompt and a space. */
  readonly answer: (row: Row) => string;
  /** Generation stops at any of these. */
  readonly until: readonly string[];
  readonly maxTokens?: number | undefined;
  readonly metrics: readonly Metric[];
  /** The values of the metrics, in their order. */
  readonly judge: (text: string, row: Row) => readonly number[];
}

/** The harness's limit of generated text. */
const DEFAULT_MAX_TOKENS = 256;

/**
 * How many tokens to generate at most. Where the task's own limit leaves no room for a prompt the harness fails; half of the
 * model's length is used here.
 */
function tokenLimit(own: number = DEFAULT_MAX_TOKENS, { maxTokens, maxLength }: RequestSettings): number {
  return maxTokens ?? (maxLength !== undefined && own >= maxLength ? Math.floor(maxLength / 2) : own);
}

/** Makes a task that generates a text and compares it with a reference. */
export function generation<Row>(task: GenerationTask<Row>): Task {
  const question = (row: Row): Question => ({
    shot: `${task.prompt(row)} ${task.answer(row)}`,
    target: task.answer(row),
    requests: (prefix, settings) => [
      {
        kind: "generate",
        context: prefix + task.prompt(row),
        until: task.until,
        maxTokens: tokenLimit(task.maxTokens, settings),
      },
    ],
    score: ([reply]) => {
      const values = task.judge(textOf(reply), row);
      return Object.fromEntries(task.metrics.map((metric, i) => [metricKey(metric), elementAt(values, i)]));
    },
  });
  return defineTask(task, { asks: "generation", metrics: task.metrics, question });
}

/** A benchmark that runs generated programs against tests. */
export interface ProgrammingTask<Row> extends TaskFacts<Row> {
  readonly prompt: (row: Row) => string;
  /** A correct solution; in worked examples it follows the prompt. */
  readonly answer: (row: Row) => string;
  /** The program to run: the generated text with the tests. */
  readonly program: (text: string, row: Row) => string;
  /** Generation stops at any of these. */
  readonly until: readonly string[];
  readonly maxTokens?: number | undefined;
  /** pass@k under the harness's name. */
  readonly metric: (k: number) => Metric;
}

/** The values of k for which pass@k is given, where there are as many samples. */
const PASS_AT = [1, 2, 5, 8, 10, 16, 32, 64, 100];
/** The harness's settings for several samples (humaneval_64). */
const [SAMPLING_TEMPERATURE, SAMPLING_TOP_P] = [0.2, 0.95];

/** Makes a task that generates programs and runs them against tests. */
export function programming<Row>(task: ProgrammingTask<Row>): Task {
  const request = (context: string, settings: RequestSettings, sample: number): GenerateRequest => {
    const temperature = settings.temperature ?? (settings.samples > 1 ? SAMPLING_TEMPERATURE : 0);
    const isSampled = temperature > 0;
    return {
      kind: "generate",
      context,
      until: task.until,
      maxTokens: tokenLimit(task.maxTokens, settings),
      temperature: isSampled ? temperature : undefined,
      topP: isSampled ? SAMPLING_TOP_P : undefined,
      sample: isSampled ? sample : undefined,
    };
  };
  const question = (row: Row): Question => ({
    shot: task.prompt(row) + task.answer(row),
    target: task.answer(row),
    requests: (prefix, settings) =>
      Array.from({ length: settings.samples }, (_, i) => request(prefix + task.prompt(row), settings, i)),
    score: async (replies, { passes }) => {
      const verdicts = await Promise.all(replies.map((reply) => passes(task.program(textOf(reply), row))));
      const passed = verdicts.filter(Boolean).length;
      const sizes = PASS_AT.filter((k) => k <= replies.length);
      return Object.fromEntries(sizes.map((k) => [metricKey(task.metric(k)), passAtK(replies.length, passed, k)]));
    },
  });
  return defineTask(task, { asks: "generation", metrics: PASS_AT.map(task.metric), question });
}

/** A benchmark that asks whether a text ends as predicted. */
export interface LastWordTask<Row> extends TaskFacts<Row> {
  readonly context: (row: Row) => string;
  readonly continuation: (row: Row) => string;
}

/** Makes a task that scores one continuation: `acc`, whether it is the most probable one, and its perplexity. */
export function lastWord<Row>(task: LastWordTask<Row>): Task {
  const question = (row: Row): Question => ({
    shot: `${task.context(row)} ${task.continuation(row)}`,
    target: task.continuation(row),
    requests: (prefix) => [
      { kind: "log-likelihood", context: prefix + task.context(row), continuation: task.continuation(row) },
    ],
    score: ([reply]) => {
      const { logLikelihood, isGreedy } = reply as Likelihood;
      if (isGreedy === undefined)
        throw new CoppiceError(
          `${task.name}: the server does not say which tokens are most probable (top_logprobs), which acc is counted by`,
        );
      return { "perplexity,none": logLikelihood, "acc,none": isGreedy ? 1 : 0 };
    },
  });
  const perplexity: Metric = { name: "perplexity", filter: "none", aggregation: "perplexity", higherIsBetter: false };
  return defineTask(task, { asks: "likelihood", metrics: [perplexity, mean("acc")], question });
}

/** A benchmark of how well whole texts are predicted. */
export interface WholeTextTask<Row> extends TaskFacts<Row> {
  readonly text: (row: Row) => string;
  readonly words: (row: Row) => number;
  readonly bytes: (row: Row) => number;
}

/** Makes a task that scores whole texts, per word and per byte. */
export function wholeText<Row>(task: WholeTextTask<Row>): Task {
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
    name,
    filter: "none",
    aggregation,
    higherIsBetter: false,
  });
  const metrics = [
    metric("word_perplexity", "weighted_perplexity"),
    metric("byte_perplexity", "weighted_perplexity"),
    metric("bits_per_byte", "bits_per_byte"),
  ];
  return defineTask(task, { asks: "likelihood", metrics, question });
}
