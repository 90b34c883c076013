import type { MetricsRecord, RunDirectory } from "../distill/index.js";
import type { FileKind } from "../quantize/index.js";
import { pathsBelow, writeFileAtomic, writeJson } from "../system/files.js";
import { formatBytes, formatCount } from "../system/format.js";
import { escapeHtml, page, table } from "../system/html.js";
import type { BytesByKind } from "./bytes-by-kind.js";
import { cutChart, lossChart } from "./charts.js";
import type { EvaluateOutcome } from "./evaluation.js";
import { comparisonTable } from "./evaluation-table.js";
import type { Measurement } from "./measure.js";
import type { PlanSummary } from "./plan-summary.js";
import type { StageRecord } from "./stages.js";

export interface ReportContent {
  /** By role: teacher, pruned, student. */
  readonly models: Readonly<Record<string, Measurement>>;
  readonly plan?: PlanSummary | undefined;
  readonly tokens: number;
  readonly seconds: number;
  readonly tokensPerSecond: number;
  readonly stages: readonly StageRecord[];
  /** The report's title. */
  readonly name: string;
  /** Scores on benchmarks. */
  readonly evaluation?: EvaluateOutcome | undefined;
  /** The models' sizes in files of the same kinds, by role. */
  readonly bytesByKind?: Readonly<Record<string, BytesByKind>> | undefined;
}

/** The share of the loss that pruning cost which distillation won back: (pruned - student) / (pruned - teacher). */
export function recoveredShare(models: Readonly<Record<string, Measurement>>): number | undefined {
  const { teacher, pruned, student } = models;
  if (teacher === undefined || pruned === undefined || student === undefined) return undefined;
  return (pruned.loss - student.loss) / (pruned.loss - teacher.loss);
}

/** Writes `report.json` and the self-contained `report.html` of a finished run. */
export function writeReport(run: RunDirectory, content: ReportContent): void {
  const stages = content.stages.map(({ name, seconds, peakMemoryBytes }) => ({ name, seconds, peakMemoryBytes }));
  const summary = { ...content, stages, recoveredShare: recoveredShare(content.models) };
  // with relative paths, because the run may have moved when the report is read
  writeJson(run.own("report.json"), summary, pathsBelow(run.path, "./"));
  writeFileAtomic(run.own("report.html"), renderReport(content, run.readMetrics()));
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
      Object.entries(models).map(([role, { parameters, bytes, loss, perplexity }]) => [
        role,
        formatCount(parameters),
        formatBytes(bytes),
        ...kinds.map((kind) => formatBytes(bytesByKind[role]?.[kind] ?? bytes)),
        loss.toFixed(4),
        perplexity.toFixed(3),
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
