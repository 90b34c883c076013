import type { MetricsRecord, RunDirectory } from "../distill/index.js";
import type { FileKind } from "../quantize/index.js";
import { pathsBelow, writeFileAtomic, writeJson } from "../system/files.js";
import { formatBytes, formatCount } from "../system/format.js";
import { escapeHtml, page, table } from "../system/html.js";
import { cutChart, lossChart } from "./charts.js";
import type { EvaluateOutcome } from "./evaluation.js";
import { comparisonTable } from "./evaluation-table.js";
import type { BytesByKind } from "./like-with-like.js";
import type { Measurement } from "./measure.js";
import type { PlanSummary } from "./plan-summary.js";
import type { StageRecord } from "./stages.js";

/** What a report is about. */
export interface ReportContent {
  /** By role: teacher, pruned, student. */
  readonly models: Readonly<Record<string, Measurement>>;
  readonly plan?: PlanSummary | undefined;
  readonly tokens: number;
  readonly seconds: number;
  readonly tokensPerSecond: number;
  readonly stages: readonly StageRecord[];
  /** What it is about. */
  readonly name: string;
  /** Scores on benchmarks. */
  readonly evaluation?: EvaluateOutcome | undefined;
  /** How large models would be in files of the same kinds, by role. */
  readonly bytesByKind?: Readonly<Record<string, BytesByKind>> | undefined;
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
  const summary = { ...content, stages, recoveredShare: recovered };
  // it may lie elsewhere when it is read
  writeJson(run.own("report.json"), summary, pathsBelow(run.path, "./"));
  writeFileAtomic(run.own("report.html"), renderReport({ ...content, stages: content.stages }, run.readMetrics()));
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
