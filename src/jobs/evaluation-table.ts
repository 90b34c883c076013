import type { MetricResult } from "../evaluate/index.js";
import { type Metric, metricKey } from "../evaluate/metrics.js";
import { PUBLISHED } from "../evaluate/published.js";
import { TASK_GROUPS, tasksOfGroup } from "../evaluate/tasks/index.js";
import { table } from "../system/html.js";
import type { ModelEvaluation } from "./evaluation.js";

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
const QUOTED = ["acc_norm,none", "exact_match,strict-match", "word_perplexity,none", "acc,none"];

const quoted = (metrics: readonly MetricResult[]): MetricResult | undefined =>
  QUOTED.map((key) => metrics.find(({ metric }) => metricKey(metric) === key)).find((found) => found !== undefined) ??
  metrics[0];

/** A line of a model's results: a task, or a group whose tasks were all measured. */
export interface ResultLine {
  readonly name: string;
  readonly fewShot: number;
  readonly metrics: readonly MetricResult[];
  readonly documents: string;
  readonly requests: number;
  readonly cached: number;
  readonly seconds: number;
}

/** A model's results, those of a group's members only together. */
export function resultLines({ tasks, groups }: ModelEvaluation): ResultLine[] {
  const lines = new Map<string, ResultLine>();
  for (const one of tasks) {
    const group = groups.find(({ group: name }) => tasksOfGroup(TASK_GROUPS, name).includes(one.task));
    const name = group?.group ?? one.task;
    const key = `${name} ${one.fewShot}`;
    const before = lines.get(key);
    lines.set(key, {
      ...{ name, fewShot: one.fewShot, metrics: group?.metrics ?? one.metrics },
      documents: group === undefined ? `${one.documents.measured} of ${one.documents.all}` : `${group.documents}`,
      requests: (before?.requests ?? 0) + one.requests,
      cached: (before?.cached ?? 0) + one.cached,
      seconds: (before?.seconds ?? 0) + one.seconds,
    });
  }
  return [...lines.values()];
}

/**
 * The number of each line that stands for it.
 * @example
 * ```ts
 * import { evaluate, headlines } from "coppice";
 *
 * const { models } = await evaluate({ models: ["./model"], tasks: ["piqa"] });
 * for (const model of models)
 *   for (const { name, value, standardError } of headlines(model)) console.log(name, value, standardError);
 * ```
 */
export const headlines = (model: ModelEvaluation): Headline[] =>
  resultLines(model).flatMap(({ name, fewShot, metrics }) => {
    const found = quoted(metrics);
    return found === undefined ? [] : [{ name, fewShot, ...found }];
  });

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

/** Models side by side on benchmarks. */
export function comparisonTable(models: readonly ModelEvaluation[], withPublished = false): string {
  const { head, rows } = comparison(models, withPublished);
  // a row for each task: pages are narrower than there are tasks
  return table(
    ["", ...rows.map(([model = ""]) => model)],
    head.slice(1).map((title, i) => [title.replace("\n", ", "), ...rows.map((row) => row[i + 1] ?? "")]),
  );
}
