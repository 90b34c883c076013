import type { MetricsRecord, RunDirectory } from "../distill/index.js";
import type { FileKind } from "../quantize/index.js";
import { pathsBelow, writeFileAtomic, writeJson } from "../system/files.js";
import { formatBytes, formatCount } from "../system/format.js";
import { escapeHtml, page, table } from "../system/html.js";
import type { BytesByKind } from "./bytes-by-kind.js";
import { cutChart, lossChart } from "./charts.js";
import { describeCut } from "./describe-cut.js";
import type { EvaluateOutcome } from "./evaluation.js";
import { comparisonTable } from "./evaluation-table.js";
import type { Measurement } from "./measure.js";
import type { PlanSummary } from "./plan-summary.js";
import { recoveredShare, recoveryText } from "./recovery.js";
import type { RoundSummary } from "./round-summary.js";
import type { StageRecord } from "./stages.js";

export interface ReportContent {
  /** By role: teacher, pruned, student. */
  readonly models: Readonly<Record<string, Measurement>>;
  readonly plan?: PlanSummary | undefined;
  /** The original's layers that stay. */
  readonly keptLayers?: readonly number[] | undefined;
  /** What led to the plan, where it took several rounds. */
  readonly rounds?: readonly RoundSummary[] | undefined;
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

/** Writes `report.json` and the self-contained `report.html` of a finished run. @param metrics of all its training */
export function writeReport(run: RunDirectory, content: ReportContent, metrics = run.readMetrics()): void {
  const stages = content.stages.map(({ name, seconds, peakMemoryBytes }) => ({ name, seconds, peakMemoryBytes }));
  const summary = { ...content, stages, recoveredShare: recoveredShare(content.models) };
  // with relative paths, because the run may have moved when the report is read
  writeJson(run.own("report.json"), summary, pathsBelow(run.path, "./"));
  writeFileAtomic(run.own("report.html"), renderReport(content, metrics));
}

const sizeOf = (bytes: number | undefined): string => (bytes === undefined ? "" : formatBytes(bytes));

function renderReport(content: ReportContent, metrics: readonly MetricsRecord[]): string {
  const { models, plan, rounds, stages, bytesByKind = {} } = content;
  const kinds = Object.keys(Object.values(bytesByKind)[0] ?? {}) as FileKind[];
  const recovered = recoveryText(models, rounds !== undefined);
  const sections = [
    `<h1>${escapeHtml(content.name)}</h1>`,
    `<p>Trained on ${formatCount(content.tokens)} tokens at ${formatCount(content.tokensPerSecond)} tokens/s; ${content.seconds.toFixed(0)} s in all.${
      recovered === undefined ? "" : ` In the end ${recovered}.`
    }</p>`,
    "<h2>Models</h2>",
    table(
      ["", "parameters", "as stored", ...kinds.map((kind) => `as ${kind}`), "loss (nats/token)", "perplexity"],
      Object.entries(models).map(([role, { parameters, bytes, loss, perplexity }]) => [
        role,
        formatCount(parameters),
        formatBytes(bytes),
        // a file of one kind has no size as another
        ...kinds.map((kind) => sizeOf(bytesByKind[role]?.[kind])),
        loss.toFixed(4),
        perplexity.toFixed(3),
      ]),
    ),
    ...(content.evaluation === undefined ? [] : ["<h2>Benchmarks</h2>", comparisonTable(content.evaluation.models)]),
    ...(plan === undefined ? [] : ["<h2>What was cut</h2>", cutChart(plan, content.keptLayers)]),
    ...(rounds === undefined ? [] : ["<h2>Rounds</h2>", roundsTable(rounds)]),
    ...(metrics.length > 1 ? ["<h2>Training</h2>", lossChart(metrics)] : []),
    "<h2>Stages</h2>",
    table(
      ["stage", "seconds", "peak resident memory"],
      stages.map((stage) => [stage.name, stage.seconds.toFixed(1), formatBytes(stage.peakMemoryBytes)]),
    ),
  ];
  return page("Coppice report", sections);
}

/** What each round cut, and the losses before and after its distillation. */
const roundsTable = (rounds: readonly RoundSummary[]): string =>
  table(
    ["round", "cut", "parameters", "tokens", "loss as cut", "loss distilled"],
    rounds.map(({ plan, pruned, student, tokens }, i) => [
      String(i + 1),
      escapeHtml(describeCut(plan).join(", ") || "nothing"),
      formatCount(student.parameters),
      formatCount(tokens),
      pruned.loss.toFixed(4),
      student.loss.toFixed(4),
    ]),
  );
