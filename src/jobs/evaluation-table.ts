import type { MetricResult } from "../evaluate/index.js";
import { type Metric, metricKey } from "../evaluate/metrics.js";
import { PUBLISHED } from "../evaluate/published.js";
import { TASK_GROUPS, tasksOfGroup } from "../evaluate/tasks/index.js";
import { table } from "../system/html.js";
import type { ModelEvaluation } from "./evaluation.js";

/** The one score that represents a task or a group. */
export interface Headline {
  /** The task's or group's name. */
  readonly name: string;
  readonly fewShot: number;
  readonly metric: Metric;
  readonly value: number;
  readonly standardError: number | undefined;
}

/** The metrics that are usually quoted, in order of preference. */
const QUOTED = ["acc_norm,none", "exact_match,strict-match", "word_perplexity,none", "acc,none"];

function quoted(metrics: readonly MetricResult[]): MetricResult | undefined {
  const byKey = new Map(metrics.map((result) => [metricKey(result.metric), result]));
  const key = QUOTED.find((each) => byKey.has(each));
  return key === undefined ? metrics[0] : byKey.get(key);
}

/** A line of a model's results: a task, or a group of which all tasks were evaluated. */
export interface ResultLine {
  readonly name: string;
  readonly fewShot: number;
  readonly metrics: readonly MetricResult[];
  readonly documents: string;
  readonly requests: number;
  readonly cached: number;
  readonly seconds: number;
}

/** A model's results, with the members of a group combined. */
export function resultLines({ tasks, groups }: ModelEvaluation): ResultLine[] {
  const lines = new Map<string, ResultLine>();
  for (const { task, fewShot, metrics, documents, requests, cached, seconds } of tasks) {
    const group = groups.find(
      ({ group: name, fewShot: count = fewShot }) =>
        count === fewShot && tasksOfGroup(TASK_GROUPS, name).includes(task),
    );
    const name = group?.group ?? task;
    const key = `${name} ${fewShot}`;
    const sums = lines.get(key) ?? { requests: 0, cached: 0, seconds: 0 };
    lines.set(key, {
      name,
      fewShot,
      metrics: group?.metrics ?? metrics,
      documents: group === undefined ? `${documents.measured} of ${documents.all}` : `${group.documents}`,
      requests: sums.requests + requests,
      cached: sums.cached + cached,
      seconds: sums.seconds + seconds,
    });
  }
  return [...lines.values()];
}

/**
 * The score that represents each line of a model's results.
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
    const score = quoted(metrics);
    return score === undefined ? [] : [{ name, fewShot, ...score }];
  });

/** Whether a score is a share, which is shown in percent, unlike perplexities. */
export const isShare = ({ aggregation }: Metric): boolean => aggregation === "mean";

export function formatScore({ metric, value, standardError }: Omit<Headline, "name" | "fewShot">): string {
  const factor = isShare(metric) ? 100 : 1;
  const error = standardError === undefined ? "" : ` ± ${(factor * standardError).toFixed(2)}`;
  return `${(factor * value).toFixed(2)}${error}`;
}

/** Compares models: one row each, followed by published scores if requested, and one column for each task. */
export function comparison(
  models: readonly ModelEvaluation[],
  withPublished: boolean,
): { readonly head: string[]; readonly rows: string[][] } {
  const perModel = models.map((model) => headlines(model));
  const keyOf = ({ name, fewShot }: Headline) => `${name} ${fewShot}`;
  const columns = new Map(perModel.flat().map((headline) => [keyOf(headline), headline]));
  const head = [
    "",
    ...[...columns.values()].map(({ name, fewShot, metric }) => `${name} (${fewShot})\n${metric.name}`),
  ];
  const rows = models.map(({ model }, i) => [
    model,
    ...[...columns.keys()].map((key) => {
      const score = perModel[i]?.find((headline) => keyOf(headline) === key);
      return score === undefined ? "-" : formatScore(score);
    }),
  ]);
  const published = PUBLISHED.map(({ model, scores }) => [
    `${model} (published)`,
    ...[...columns.values()].map(({ name }) => scores[name]?.toFixed(2) ?? "-"),
  ]);
  return { head, rows: withPublished ? [...rows, ...published] : rows };
}

/** An HTML table that compares models on benchmarks. */
export function comparisonTable(models: readonly ModelEvaluation[], withPublished = false): string {
  const { head, rows } = comparison(models, withPublished);
  // one row for each task, because a page is too narrow for a column each
  return table(
    ["", ...rows.map(([model = ""]) => model)],
    head.slice(1).map((title, i) => [title.replace("\n", ", "), ...rows.map((row) => row[i + 1] ?? "")]),
  );
}
