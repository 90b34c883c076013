import { elementAt } from "../system/arrays.js";
import { PythonRandom } from "./python-random.js";

/** A document's contribution to a metric: a number, or a log-likelihood with its number of words or bytes. */
export type MetricValue = number | readonly [logLikelihood: number, weight: number];

/** How the values of documents become one, by the harness's names. */
export interface Metric {
  readonly name: string;
  /** How answers are extracted from replies; distinguishes metrics of the same name. */
  readonly filter: string;
  readonly aggregation: Aggregation;
  readonly higherIsBetter: boolean;
}

/** The key that a metric's value has in the harness's results. */
export const metricKey = ({ name, filter }: Metric): string => `${name},${filter}`;

/** A metric that is the mean over documents. */
export const mean = (name: string, filter = "none"): Metric => ({
  name,
  filter,
  aggregation: "mean",
  higherIsBetter: true,
});

/**
 * How the values of documents become one.
 * @useDeclaredType
 */
export type Aggregation = keyof typeof AGGREGATIONS;

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);
const average = (values: readonly number[]): number => sum(values) / values.length;
/** Mean log-likelihood per word or byte. */
const perUnit = (values: readonly MetricValue[]): number => {
  const pairs = values.map((value) => (typeof value === "number" ? [value, 1] : value));
  return sum(pairs.map(([logLikelihood = 0]) => logLikelihood)) / sum(pairs.map(([, weight = 0]) => weight));
};
const numbers = (values: readonly MetricValue[]): number[] => values.filter((value) => typeof value === "number");

interface AggregationRule {
  readonly value: (values: readonly MetricValue[]) => number;
  readonly standardError: (values: readonly MetricValue[]) => number | undefined | Promise<number>;
}

const AGGREGATIONS = {
  mean: {
    value: (values) => average(numbers(values)),
    standardError: (values) => standardError(numbers(values)),
  },
  /** exp(-mean) of log-likelihoods. */
  perplexity: {
    value: (values) => Math.exp(-average(numbers(values))),
    standardError: (values) => bootstrapError(numbers(values), (total, count) => Math.exp(-total / count)),
  },
  weighted_perplexity: { value: (values) => Math.exp(-perUnit(values)), standardError: () => undefined },
  bits_per_byte: { value: (values) => -perUnit(values) / Math.LN2, standardError: () => undefined },
} as const satisfies Record<string, AggregationRule>;

/** A metric's value over documents, with its standard error where the harness gives one. */
export interface Score {
  readonly value: number;
  readonly standardError: number | undefined;
}

/** Aggregates the values of documents. */
export async function aggregate(metric: Metric, values: readonly MetricValue[]): Promise<Score> {
  const rule: AggregationRule = AGGREGATIONS[metric.aggregation];
  return {
    value: rule.value(values),
    standardError: values.length > 1 ? await rule.standardError(values) : undefined,
  };
}

/** The standard error of a mean: the sample's standard deviation over √n. */
function standardError(values: readonly number[]): number {
  const middle = average(values);
  return Math.sqrt(sum(values.map((value) => (value - middle) ** 2)) / (values.length - 1) / values.length);
}

const [BOOTSTRAP_SAMPLES, BOOTSTRAP_CHUNK] = [100_000, 1000];

/** The standard deviation of a statistic over samples drawn with replacement (Efron 1979), with the harness's seeds. */
async function bootstrapError(
  values: readonly number[],
  statistic: (total: number, count: number) => number,
): Promise<number> {
  const count = values.length;
  const results: number[] = [];
  for (let chunk = 0; chunk < BOOTSTRAP_SAMPLES / BOOTSTRAP_CHUNK; chunk++) {
    const random = new PythonRandom(chunk);
    for (let i = 0; i < BOOTSTRAP_CHUNK; i++) {
      let total = 0;
      for (let j = 0; j < count; j++) total += elementAt(values, random.choice(count));
      results.push(statistic(total, count));
    }
    await new Promise(setImmediate); // lets the event loop run
  }
  return standardError(results) * Math.sqrt(results.length);
}

/** The standard error of a mean over several sampled groups (the harness's pooled_sample_stderr). */
export function pooledStandardError(groups: readonly { readonly error: number; readonly size: number }[]): number {
  const total = sum(groups.map(({ size }) => size));
  const variance = sum(groups.map(({ error, size }) => (size - 1) * error ** 2 * size)) / (total - groups.length);
  return Math.sqrt(variance / total);
}

/** The index of the largest number, the first of several. */
export function indexOfLargest(values: readonly number[]): number {
  let best = 0;
  values.forEach((value, i) => {
    if (value > elementAt(values, best)) best = i;
  });
  return best;
}

/** Unbiased estimate of the chance that one of k samples is right, from `right` of n (Chen et al. 2021, eq. 1). */
export function passAtK(n: number, right: number, k: number): number {
  if (n - right < k) return 1;
  let allWrong = 1;
  for (let i = n - right + 1; i <= n; i++) allWrong *= 1 - k / i;
  return 1 - allWrong;
}

/**
 * ROUGE-L: F-measure of the longest common subsequence of words (Lin 2004, section 3.1), the words being runs of the letters a
 * to z and digits, in lower case, as Google's rouge_score takes them.
 */
export function rougeL(reference: string, candidate: string): number {
  const words = (text: string) => text.toLowerCase().match(/[a-z0-9]+/g) ?? [];
  const [a, b] = [words(reference), words(candidate)];
  if (a.length === 0 || b.length === 0) return 0;
  let row = new Int32Array(b.length + 1);
  for (const word of a) {
    const next = new Int32Array(b.length + 1);
    for (let j = 0; j < b.length; j++)
      next[j + 1] = word === b[j] ? elementAt(row, j) + 1 : Math.max(elementAt(row, j + 1), elementAt(next, j));
    row = next;
  }
  const common = elementAt(row, b.length);
  const [precision, recall] = [common / b.length, common / a.length];
  return common === 0 ? 0 : (2 * precision * recall) / (precision + recall);
}
