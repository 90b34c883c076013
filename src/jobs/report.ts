import type { MetricsRecord, RunDirectory } from "../distill/index.js";
import type { FileKind } from "../quantize/index.js";
import { pathsBelow, writeFileAtomic, writeJson } from "../system/files.js";
import type { EvaluateOutcome, ModelEvaluation } from "./evaluate.js";
import { comparison } from "./evaluation-table.js";
import type { BytesByKind } from "./like-with-like.js";
import type { Measurement } from "./measure.js";
import type { PlanSummary } from "./pruning.js";
import type { StageRecord } from "./stages.js";

/** What a report is about. */
export interface ReportContent {
  /** By role: teacher, pruned, student. */
  readonly models: Readonly<Record<string, Measurement>>;
  readonly plan?: PlanSummary;
  readonly tokens: number;
  readonly seconds: number;
  readonly tokensPerSecond: number;
  readonly stages: readonly StageRecord[];
  /** What it is about. */
  readonly name: string;
  /** Scores on benchmarks. */
  readonly evaluation?: EvaluateOutcome;
  /** How large models would be in files of the same kinds, by role. */
  readonly bytesByKind?: Readonly<Record<string, BytesByKind>>;
}

/** Share of the loss that pruning cost which distillation won back: (pruned - student) / (pruned - teacher). */
export function recoveredShare(models: Readonly<Record<string, Measurement>>): number | undefined {
  const { teacher, pruned, student } = models;
  if (teacher === undefined || pruned === undefined || student === undefined) return undefined;
  return (pruned.loss - student.loss) / (pruned.loss - teacher.loss);
}

/** Writes `report.json` and the self-contained `report.html` of a finished run. */
export function writeReport(run: RunDirectory, content: ReportContent): void {
  const stages = content.stages.map(({ name, seconds, peakMemoryBytes }) => ({ name, seconds, peakMemoryBytes }));
  const recovered = recoveredShare(content.models);
  const summary = { ...content, stages, ...(recovered !== undefined && { recoveredShare: recovered }) };
  // it may lie elsewhere when it is read
  writeJson(run.own("report.json"), summary, pathsBelow(run.path, "./"));
  writeFileAtomic(run.own("report.html"), renderReport({ ...content, stages: content.stages }, run.readMetrics()));
}

export const escapeHtml = (text: string): string =>
  text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c] ?? c);

const threeDigits = (value: number): string => (value >= 100 ? value.toFixed(0) : value.toPrecision(3));

export const formatCount = (value: number): string => {
  for (const [unit, size] of [
    ["B", 1e9],
    ["M", 1e6],
    ["K", 1e3],
  ] as const)
    if (value >= size) return `${threeDigits(value / size)} ${unit}`;
  return String(Math.round(value));
};

export const formatBytes = (bytes: number): string => {
  for (const [unit, size] of [
    ["GiB", 2 ** 30],
    ["MiB", 2 ** 20],
    ["KiB", 2 ** 10],
  ] as const)
    if (bytes >= size) return `${threeDigits(bytes / size)} ${unit}`;
  return `${bytes} B`;
};

/** A table in HTML. */
export const table = (head: readonly string[], rows: readonly (readonly string[])[]): string =>
  `<table><thead><tr>${head.map((cell) => `<th>${escapeHtml(cell)}</th>`).join("")}</tr></thead><tbody>${rows
    .map((row) => `<tr>${row.map((cell) => `<td>${escapeHtml(cell)}</td>`).join("")}</tr>`)
    .join("")}</tbody></table>`;

/** Models side by side on benchmarks. */
export function comparisonTable(models: readonly ModelEvaluation[], withPublished = false): string {
  const { head, rows } = comparison(models, withPublished);
  // a row for each task: pages are narrower than there are tasks
  return table(
    ["", ...rows.map(([model = ""]) => model)],
    head.slice(1).map((title, i) => [title.replace("\n", ", "), ...rows.map((row) => row[i + 1] ?? "")]),
  );
}

function renderReport(content: ReportContent, metrics: readonly MetricsRecord[]): string {
  const { models, plan, stages, bytesByKind = {} } = content;
  const kinds = Object.keys(Object.values(bytesByKind)[0] ?? {}) as FileKind[];
  const recovered = recoveredShare(models);
  const sections = [
    `<h1>${escapeHtml(content.name)}</h1>`,
    `<p>Trained on ${formatCount(content.tokens)} tokens at ${formatCount(content.tokensPerSecond)} tokens/s; ${content.seconds.toFixed(0)} s in all.${
      recovered === undefined
        ? ""
        : ` Distillation won back <strong>${(100 * recovered).toFixed(0)} %</strong> of the loss that pruning cost.`
    }</p>`,
    "<h2>Models</h2>",
    table(
      ["", "parameters", "as stored", ...kinds.map((kind) => `as ${kind}`), "loss (nats/token)", "perplexity"],
      Object.entries(models).map(([role, m]) => [
        role,
        formatCount(m.parameters),
        formatBytes(m.bytes),
        ...kinds.map((kind) => formatBytes(bytesByKind[role]?.[kind] ?? m.bytes)),
        m.loss.toFixed(4),
        m.perplexity.toFixed(3),
      ]),
    ),
    ...(content.evaluation === undefined ? [] : ["<h2>Benchmarks</h2>", comparisonTable(content.evaluation.models)]),
    ...(plan === undefined ? [] : ["<h2>What was cut</h2>", cutChart(plan)]),
    ...(metrics.length > 1 ? ["<h2>Training</h2>", lossChart(metrics)] : []),
    "<h2>Stages</h2>",
    table(
      ["stage", "seconds", "peak resident memory"],
      stages.map((stage) => [stage.name, stage.seconds.toFixed(1), formatBytes(stage.peakMemoryBytes)]),
    ),
  ];
  return page("Coppice report", sections);
}

/** A self-contained page. */
export const page = (title: string, sections: readonly string[]): string =>
  `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,"><title>${escapeHtml(title)}</title><style>${STYLE}</style><main>${sections.join("\n")}</main></html>\n`;

const STYLE = `:root{color-scheme:light dark;--line:#2a7de1;--soft:#8886}body{font:15px/1.5 system-ui,sans-serif;margin:0}
main{max-width:52rem;margin:2rem auto;padding:0 1rem}h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}th,td{text-align:right;padding:.3rem .6rem;border-bottom:1px solid var(--soft)}
th:first-child,td:first-child{text-align:left}svg{width:100%;height:auto}text{font:11px system-ui,sans-serif;fill:currentColor}
.grid{stroke:var(--soft);stroke-width:1}.loss{fill:none;stroke:var(--line);stroke-width:1.5}.validation{fill:#d9480f}
.before{fill:var(--soft)}.after{fill:var(--line)}`;

/** Bars of each size before and after. */
function cutChart(plan: PlanSummary): string {
  const rows = Object.entries(plan).flatMap(cutRows);
  const height = rows.length * 26;
  const bars = rows.map(({ axis, from, to }, i) => {
    const y = i * 26 + 4;
    return `<text x="0" y="${y + 12}">${escapeHtml(axis)}</text><rect class="before" x="80" y="${y}" width="420" height="16"/><rect class="after" x="80" y="${y}" width="${((420 * to) / from).toFixed(1)}" height="16"/><text x="510" y="${y + 12}">${from === to ? `${from}` : `${from} to ${to} (-${(100 * (1 - to / from)).toFixed(0)} %)`}</text>`;
  });
  return `<svg viewBox="0 0 660 ${height}" role="img" aria-label="Sizes before and after">${bars.join("")}</svg>`;
}

/** An axis, or each layer of it where layers differ. */
function cutRows([axis, { from, to }]: [string, PlanSummary[string]]): { axis: string; from: number; to: number }[] {
  const [before, after] = [[from].flat(), [to].flat()];
  const length = Math.max(before.length, after.length);
  const at = (sizes: readonly number[], i: number): number => sizes[i] ?? sizes[0] ?? 0;
  if (length === 1) return [{ axis, from: at(before, 0), to: at(after, 0) }];
  return Array.from({ length }, (_, i) => ({ axis: `${axis} ${i}`, from: at(before, i), to: at(after, i) }));
}

const MAX_POINTS = 600;

/** The training loss over tokens, with validation losses as points. */
function lossChart(metrics: readonly MetricsRecord[]): string {
  const stride = Math.ceil(metrics.length / MAX_POINTS);
  const points = metrics.filter((_, i) => i % stride === 0 || i === metrics.length - 1);
  const validation = metrics.flatMap(({ tokens, validationLoss }) =>
    validationLoss === undefined ? [] : [{ tokens, loss: validationLoss }],
  );
  const top = Math.max(...points.map(({ loss }) => loss), ...validation.map(({ loss }) => loss));
  const last = metrics.at(-1)?.tokens ?? 1;
  const x = (tokens: number) => (50 + (590 * tokens) / last).toFixed(1);
  const y = (loss: number) => (230 - (210 * loss) / top).toFixed(1);
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => {
    const at = y(share * top);
    return `<line class="grid" x1="50" x2="640" y1="${at}" y2="${at}"/><text x="4" y="${Number(at) + 4}">${(share * top).toFixed(2)}</text>`;
  });
  const line = points.map(({ tokens, loss }) => `${x(tokens)},${y(loss)}`).join(" ");
  const dots = validation.map(
    ({ tokens, loss }) => `<circle class="validation" r="3" cx="${x(tokens)}" cy="${y(loss)}"/>`,
  );
  return `<svg viewBox="0 0 660 260" role="img" aria-label="Training loss over tokens">${ticks.join("")}<polyline class="loss" points="${line}"/>${dots.join("")}<text x="50" y="252">0</text><text x="640" y="252" text-anchor="end">${formatCount(last)} tokens</text><text x="330" y="252" text-anchor="middle">line: training loss; dots: validation loss</text></svg>`;
}
