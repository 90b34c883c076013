import path from "node:path";
import { describeCut } from "../jobs/describe-cut.js";
import { comparison } from "../jobs/evaluation-table.js";
import type { CompressOutcome, Measurement, ModelEvaluation, TrainingOutcome } from "../jobs/index.js";
import { recoveryText } from "../jobs/recovery.js";
import type { FileKind } from "../quantize/index.js";
import { formatBytes, formatCount } from "../system/format.js";
import { renderNotes, table } from "./table.js";

/** How a training run ended. */
export const renderTraining = ({ student, tokens, seconds, tokensPerSecond, out }: TrainingOutcome): string =>
  [
    `loss ${student.loss.toFixed(4)} nats/token, perplexity ${student.perplexity.toFixed(3)} on ${student.tokens} validation tokens`,
    `trained on ${formatCount(tokens)} tokens in ${seconds.toFixed(0)} s (${formatCount(tokensPerSecond)} tokens/s)`,
    `model and report in ${out} (open ${path.join(out, "report.html")})`,
  ].join("\n");

/** Teacher, pruned and student side by side. */
export function renderCompression(outcome: CompressOutcome): string {
  const {
    teacher,
    correctedTeacher,
    pruned,
    student,
    plan,
    rounds = [],
    tokens,
    seconds,
    tokensPerSecond,
    out,
    gguf,
    evaluation,
  } = outcome;
  const corrected = correctedTeacher === undefined ? {} : { correctedTeacher };
  const models = { teacher, ...corrected, pruned, student };
  const kinds = Object.keys(outcome.bytesByKind.teacher ?? {}) as FileKind[];
  const changes = describeCut(plan).join(", ") || "nothing";
  return [
    table(
      ["", "parameters", "as stored", ...kinds.map((kind) => `as ${kind}`), "loss", "perplexity"],
      [
        ...Object.entries(models).map(([role, model]) =>
          modelRow(
            role,
            model,
            kinds.map((kind) => formatBytes(outcome.bytesByKind[role]?.[kind] ?? 0)),
          ),
        ),
        ...(gguf?.files ?? []).map(({ name, measured }) =>
          modelRow(
            `student, ${name}`,
            measured,
            kinds.map(() => ""),
          ),
        ),
      ],
    ),
    `cut: ${changes}; ${keptShare(models)} of the parameters are left`,
    ...rounds.map(
      (round, i) =>
        `round ${i + 1} of ${rounds.length}: ${describeCut(round.plan).join(", ") || "nothing cut"}; loss ${round.pruned.loss.toFixed(4)} as cut, ${round.student.loss.toFixed(4)} distilled`,
    ),
    `${recoveryText(models, rounds.length > 0)}, on ${formatCount(tokens)} tokens (${formatCount(tokensPerSecond)} tokens/s, ${seconds.toFixed(0)} s in all)`,
    `model and report in ${out} (open ${path.join(out, "report.html")})`,
    ...(gguf === undefined ? [] : renderGguf(gguf)),
    ...(evaluation === undefined ? [] : [renderComparison(evaluation.models, false)]),
  ].join("\n");
}

/** How near the result is to its target. */
const keptShare = ({ teacher, student }: Record<"teacher" | "student", Measurement>): string =>
  `${((100 * student.parameters) / teacher.parameters).toFixed(1)} %`;

const modelRow = (role: string, model: Measurement, sizes: readonly string[]): string[] => [
  role,
  formatCount(model.parameters),
  formatBytes(model.bytes),
  ...sizes,
  model.loss.toFixed(4),
  model.perplexity.toFixed(3),
];

/** Models side by side on benchmarks. */
export function renderComparison(models: readonly ModelEvaluation[], withPublished: boolean): string {
  const { head, rows } = comparison(models, withPublished);
  return table(head, rows);
}

function renderGguf({ files, prompt, sentence }: NonNullable<CompressOutcome["gguf"]>): string[] {
  const [first] = files;
  return [
    ...files.map(({ files: names, fileBytes }) => `${names.join(", ")} (${formatBytes(fileBytes)})`),
    ...renderNotes([...new Set(files.flatMap(({ notes }) => notes))]),
    `${first?.name ?? ""} writes after "${prompt}": ${sentence.trim()}`,
  ];
}
