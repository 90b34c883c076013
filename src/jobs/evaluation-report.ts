import { metricKey, PUBLISHED } from "../evaluate/index.js";
import { writeFileAtomic } from "../system/files.js";
import { formatCount } from "../system/format.js";
import { escapeHtml, page, table } from "../system/html.js";
import type { ModelEvaluation } from "./evaluation.js";
import { comparisonTable, formatScore, type Headline, headlines, isShare } from "./evaluation-table.js";

/** Writes the self-contained `report.html` of an evaluation. */
export function writeEvaluationReport(file: string, models: readonly ModelEvaluation[], withPublished = false): void {
  writeFileAtomic(
    file,
    page("Coppice evaluation", [
      "<h1>Evaluation</h1>",
      scoreChart(models, withPublished),
      "<h2>Models</h2>",
      comparisonTable(models, withPublished),
      ...models.flatMap(details),
    ]),
  );
}

/** Every metric of a model's tasks and groups. */
function details({ model, parameters, tasks, groups, seconds }: ModelEvaluation): string[] {
  const size = parameters === undefined ? "" : `${formatCount(parameters)} parameters, `;
  const taskRows = tasks.flatMap((result) =>
    result.metrics.map((metric) => [
      `${result.task} (${result.fewShot})`,
      metricKey(metric.metric),
      formatScore(metric),
      `${result.documents.measured} of ${result.documents.all}`,
      `${result.requests}`,
      result.seconds.toFixed(1),
    ]),
  );
  const groupRows = groups.flatMap(({ group, fewShot, metrics, documents }) =>
    metrics.map((metric) => [
      fewShot === undefined ? group : `${group} (${fewShot})`,
      metricKey(metric.metric),
      formatScore(metric),
      `${documents}`,
      "",
      "",
    ]),
  );
  return [
    `<h2>${escapeHtml(model)}</h2><p>${size}${seconds.toFixed(0)} s.</p>`,
    table(["task", "metric", "score", "documents", "requests", "seconds"], [...taskRows, ...groupRows]),
  ];
}

const COLORS = ["#2a7de1", "#d9480f", "#2b8a3e", "#862e9c", "#f2b705", "#0b7285", "#5c940d", "#868e96"];
const [LABEL, WIDTH, BAR] = [150, 460, 12];

/** A model's scores in percent, by task, with their standard errors. */
interface Series {
  readonly name: string;
  readonly scores: ReadonlyMap<string, { readonly value: number; readonly error: number }>;
}

const measuredSeries = (model: ModelEvaluation): Series => ({
  name: model.model,
  scores: new Map(
    headlines(model)
      .filter(({ metric }) => isShare(metric))
      .map((headline) => ({ ...headline, name: titleOf(headline, model) }))
      .map(({ name, value, standardError = 0 }) => [name, { value: 100 * value, error: 100 * standardError }]),
  ),
});

/** A score's name, with its number of worked examples where a task was measured with several. */
const titleOf = ({ name, fewShot }: Headline, model: ModelEvaluation): string =>
  headlines(model).filter((other) => other.name === name).length > 1 ? `${name} (${fewShot})` : name;

const publishedSeries: readonly Series[] = PUBLISHED.map(({ model, scores }) => ({
  name: `${model} (published)`,
  scores: new Map(Object.entries(scores).map(([name, value]) => [name, { value, error: 0 }])),
}));

/** Bars of all scores that are shares, in groups by task, with a whisker of one standard error. */
function scoreChart(models: readonly ModelEvaluation[], withPublished: boolean): string {
  const series = [...models.map(measuredSeries), ...(withPublished ? publishedSeries : [])];
  const titles = models.flatMap((model) => headlines(model).map((headline) => titleOf(headline, model)));
  const names = [...new Set(titles)].filter((name) => series.some(({ scores }) => scores.has(name)));
  if (names.length === 0) return "";
  const group = series.length * BAR + 12;
  const bottom = names.length * group;
  const x = (percent: number) => LABEL + (WIDTH * Math.min(100, percent)) / 100;
  const color = (i: number) => COLORS[i % COLORS.length];
  const grid = [0, 25, 50, 75, 100].map(
    (tick) =>
      `<line class="grid" x1="${x(tick)}" x2="${x(tick)}" y1="0" y2="${bottom}"/><text x="${x(tick)}" y="${bottom + 14}" text-anchor="middle">${tick} %</text>`,
  );
  const bars = names.flatMap((name, row) => [
    `<text x="0" y="${row * group + (series.length * BAR) / 2 + 8}">${escapeHtml(name)}</text>`,
    ...series.flatMap(({ name: model, scores }, i) => {
      const score = scores.get(name);
      if (score === undefined) return [];
      const y = row * group + 4 + i * BAR;
      const middle = y + BAR / 2 - 1;
      const whisker =
        score.error > 0
          ? `<line stroke="currentColor" x1="${x(Math.max(0, score.value - score.error))}" x2="${x(score.value + score.error)}" y1="${middle}" y2="${middle}"/>`
          : "";
      return [
        `<rect x="${LABEL}" y="${y}" width="${(x(score.value) - LABEL).toFixed(1)}" height="${BAR - 2}" fill="${color(i)}"><title>${escapeHtml(model)}, ${escapeHtml(name)}: ${score.value.toFixed(2)} %</title></rect>${whisker}`,
      ];
    }),
  ]);
  const legend = series.map(
    ({ name }, i) =>
      `<rect x="0" y="${bottom + 24 + i * 16}" width="10" height="10" fill="${color(i)}"/><text x="16" y="${bottom + 33 + i * 16}">${escapeHtml(name)}</text>`,
  );
  return `<svg viewBox="0 0 660 ${bottom + 30 + series.length * 16}" role="img" aria-label="Scores of each task">${grid.join("")}${bars.join("")}${legend.join("")}</svg>`;
}
