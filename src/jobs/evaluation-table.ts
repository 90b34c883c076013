import { type Metric, type MetricResult, metricKey, PUBLISHED } from "../evaluate/index.js";
import type { ModelEvaluation } from "./evaluate.js";

/** The one number that stands for a task or a group. */
export interface Headline {
  /** Task or group. */
  readonly name: string;
  readonly fewShot: number;
  readonly metric: Metric;
  readonly value: number;
  readonly standardError: number | undefined;
}

/** What a table of models shows for a task: the metric that is usually quoted. */
const QUOTED = ["acc_norm,none", "exact_match,flexible-extract", "word_perplexity,none", "acc,none"];

const quoted = (metrics: readonly MetricResult[]): MetricResult | undefined =>
  QUOTED.map((key) => metrics.find(({ metric }) => metricKey(metric) === key)).find((found) => found !== undefined) ??
  metrics[0];

/** A model's numbers: each task's, those of a group's members only together. */
export function headlines({ tasks, groups }: ModelEvaluation): Headline[] {
  const members = new Set(groups.flatMap((group) => group.members));
  const shown = groups.filter(({ group }) => !members.has(group));
  const result: Headline[] = [];
  const of = (name: string, fewShot: number, metrics: readonly MetricResult[]) => {
    const found = quoted(metrics);
    if (found !== undefined && !result.some((one) => one.name === name && one.fewShot === fewShot))
      result.push({ name, fewShot, ...found });
  };
  const within = (name: string, task: string): boolean => {
    const own = groups.find(({ group }) => group === name)?.members ?? [];
    return own.includes(task) || own.some((member) => within(member, task));
  };
  for (const { task, fewShot, metrics } of tasks) {
    const group = shown.find((one) => within(one.group, task));
    if (group === undefined) of(task, fewShot, metrics);
    else of(group.group, fewShot, group.metrics);
  }
  return result;
}

/** Scores that are shares are shown in percent, perplexities as they are. */
export const isShare = ({ aggregation }: Metric): boolean => aggregation === "mean";

export function formatScore({ metric, value, standardError }: Omit<Headline, "name" | "fewShot">): string {
  const factor = isShare(metric) ? 100 : 1;
  const error = standardError === undefined ? "" : ` ± ${(factor * standardError).toFixed(2)}`;
  return `${(factor * value).toFixed(2)}${error}`;
}

/** Models side by side: a row each, a column for each task; with published figures below where they are asked for. */
export function comparison(
  models: readonly ModelEvaluation[],
  withPublished: boolean,
): { readonly head: string[]; readonly rows: string[][] } {
  const perModel = models.map((model) => headlines(model));
  const columns = new Map(perModel.flat().map((one) => [`${one.name} ${one.fewShot}`, one]));
  const head = [
    "",
    ...[...columns.values()].map(({ name, fewShot, metric }) => `${name} (${fewShot})\n${metric.name}`),
  ];
  const rows = models.map(({ model }, i) => [
    model,
    ...[...columns.keys()].map((key) => {
      const found = perModel[i]?.find((one) => `${one.name} ${one.fewShot}` === key);
      return found === undefined ? "-" : formatScore(found);
    }),
  ]);
  const published = PUBLISHED.map(({ model, scores }) => [
    `${model} (published)`,
    ...[...columns.values()].map(({ name }) => scores[name]?.toFixed(2) ?? "-"),
  ]);
  return { head, rows: withPublished ? [...rows, ...published] : rows };
}
