import { PythonRandom } from "./python-random.js";

/** What a document counts: a number, or a log-likelihood with the words or bytes that it is spread over. */
export type Value = number | readonly [logLikelihood: number, weight: number];

/** How the values of documents become one, under the harness's names for them. */
export interface Metric {
  readonly name: string;
  /** What was done to the answers before; several metrics of one name differ in it. */
  readonly filter: string;
  readonly aggregation: Aggregation;
  readonly higherIsBetter: boolean;
}

/** The key that a metric's value has in the harness's results. */
export const metricKey = ({ name, filter }: Metric): string => `${name},${filter}`;

export const mean = (name: string, filter = "none"): Metric => ({
  ...{ name, filter, aggregation: "mean", higherIsBetter: true },
});

export type Aggregation = keyof typeof AGGREGATIONS;

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);
const average = (values: readonly number[]): number => sum(values) / values.length;
/** Mean log-likelihood per word or byte. */
const perUnit = (values: readonly Value[]): number => {
  const pairs = values.map((value) => (typeof value === "number" ? [value, 1] : value));
  return sum(pairs.map(([logLikelihood = 0]) => logLikelihood)) / sum(pairs.map(([, weight = 0]) => weight));
};
const numbers = (values: readonly Value[]): number[] => values.filter((value) => typeof value === "number");

interface AggregationRule {
  readonly of: (values: readonly Value[]) => number;
  readonly error: (values: readonly Value[]) => number | undefined | Promise<number>;
}

const AGGREGATIONS = {
  mean: {
    of: (values) => average(numbers(values)),
    error: (values) => standardError(numbers(values)),
  },
  /** exp(-mean), of log-likelihoods. */
  perplexity: {
    of: (values) => Math.exp(-average(numbers(values))),
    error: (values) => bootstrapError(numbers(values), (total, count) => Math.exp(-total / count)),
  },
  weighted_perplexity: { of: (values) => Math.exp(-perUnit(values)), error: () => undefined },
  bits_per_byte: { of: (values) => -perUnit(values) / Math.LN2, error: () => undefined },
} as const satisfies Record<string, AggregationRule>;

/** A metric over documents, and its standard error where the harness gives one. */
export interface Score {
  readonly value: number;
  readonly standardError: number | undefined;
}

export async function aggregate(metric: Metric, values: readonly Value[]): Promise<Score> {
  const rule: AggregationRule = AGGREGATIONS[metric.aggregation];
  return {
    value: rule.of(values),
    standardError: values.length > 1 ? await rule.error(values) : undefined,
  };
}

/** Of a mean: the sample's standard deviation over √n. */
function standardError(values: readonly number[]): number {
  const middle = average(values);
  return Math.sqrt(sum(values.map((value) => (value - middle) ** 2)) / (values.length - 1) / values.length);
}

const [BOOTSTRAP_SAMPLES, BOOTSTRAP_CHUNK] = [100_000, 1000];

/** The standard deviation of a statistic over samples with repetition (Efron 1979), with the harness's seeds. */
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
      for (let j = 0; j < count; j++) total += values[random.choice(count)] ?? 0;
      results.push(statistic(total, count));
    }
    await new Promise(setImmediate); // the event loop goes on meanwhile
  }
  return standardError(results) * Math.sqrt(results.length);
}

/** Of a mean over groups that each were sampled (the harness's pooled_sample_stderr). */
export function pooledStandardError(groups: readonly { readonly error: number; readonly size: number }[]): number {
  const total = sum(groups.map(({ size }) => size));
  const variance = sum(groups.map(({ error, size }) => (size - 1) * error ** 2 * size)) / (total - groups.length);
  return Math.sqrt(variance / total);
}

/** The index of the largest number, the first of several. */
export function indexOfLargest(values: readonly number[]): number {
  let best = 0;
  values.forEach((value, i) => {
    if (value > (values[best] ?? 0)) best = i;
  });
  return best;
}

/** Chance that one of k samples is right, unbiased, when `right` of n are (Chen et al. 2021, eq. 1). */
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
      next[j + 1] = word === b[j] ? (row[j] ?? 0) + 1 : Math.max(row[j + 1] ?? 0, next[j] ?? 0);
    row = next;
  }
  const common = row[b.length] ?? 0;
  const [precision, recall] = [common / b.length, common / a.length];
  return common === 0 ? 0 : (2 * precision * recall) / (precision + recall);
}
