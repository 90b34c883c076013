import { describeCut } from "../jobs/describe-cut.js";
import type { ExplainedReport, ExplainedSearch, ExplainedTraining, Explanation, RankedSizes } from "../jobs/explain.js";
import { recoveryText } from "../jobs/recovery.js";
import { rankingLoss } from "../prune/candidate-losses.js";
import { describeSize } from "../prune/sizes.js";
import { formatBytes, formatCount, toTheSecond } from "../system/format.js";
import { action } from "./action.js";
import { command } from "./command.js";
import { type CommonFlags, output } from "./options.js";
import { table } from "./table.js";

export const explainCommand = command("explain", "Tell what a run did and why, from the files in its directory")
  .with(output)
  .argument("<run>", "the directory that a command was given as --out")
  .examples("coppice explain ./smaller", "coppice explain ./smaller --json")
  .action(
    action(async ({ print }, _flags: CommonFlags, run: string) => {
      const { explain } = await import("../jobs/explain.js");
      print(explain(run), render);
    }),
  );

function render(e: Explanation): string {
  const began = e.startedAt === undefined ? "" : `, begun ${toTheSecond(e.startedAt)}`;
  const sections = [
    [`${e.directory}: ${e.command}, ${e.state}${began}${e.version === undefined ? "" : `, by coppice ${e.version}`}`],
    section("Command", [e.commandLine ?? "started from a program, which recorded no command line"]),
    section("Inputs (digests of their content)", [
      ...Object.entries(e.inputs).map(([name, digest]) => `${name}: ${digest}`),
    ]),
    section("Settings", [renderSettings(e)]),
    section(
      e.settings.some(({ name }) => name === "rounds") ? "Search (of the latest round)" : "Search",
      renderSearch(e.search),
    ),
    section("Cut", renderCut(e.report)),
    section("Rounds", renderRounds(e.report)),
    section("Training", renderTraining(e.training)),
    section("Models", renderModels(e)),
    section("Stages", renderStages(e)),
    section(
      "Files",
      e.files.map(({ name, bytes }) => `${name} (${bytes === undefined ? "gone" : formatBytes(bytes)})`),
    ),
    section("Next", e.next),
  ];
  return sections
    .filter((lines) => lines.length > 0)
    .map((lines) => lines.join("\n"))
    .join("\n\n");
}

/** A heading and its lines; nothing where there are none. */
const section = (heading: string, lines: readonly string[]): string[] =>
  lines.some((line) => line !== "") ? [heading, ...lines] : [];

const renderSettings = ({ settings }: Explanation): string =>
  settings.length === 0
    ? ""
    : table(
        ["setting", "value", "from"],
        settings.map(({ name, value, source }) => [
          name,
          typeof value === "string" ? value : JSON.stringify(value),
          source ?? "not recorded",
        ]),
      );

const sizesText = ({ sizes }: RankedSizes): string =>
  Object.entries(sizes)
    .map(([axis, size]) => `${axis} ${describeSize(size)}`)
    .join(", ");

const sequencesText = (length: number): string => `in sequences of ${length} tokens`;

/** Why the first candidate was taken, and what the others lost. */
function renderSearch(search: ExplainedSearch | undefined): string[] {
  const [best, next] = search?.candidates ?? [];
  if (search === undefined || best === undefined) return [];
  const { candidates, measuredOn } = search;
  const [refitted, distilled] = [best.refittedLoss !== undefined, best.distilledLoss !== undefined];
  const how = distilled ? "after a brief distillation" : refitted ? "after a refit" : "as pruned";
  const rival =
    next === undefined
      ? "no other was measured"
      : `the next best has ${rankingLoss(next).toFixed(4)} (${sizesText(next)})`;
  return [
    `${candidates.length === 1 ? "1 candidate was" : `${candidates.length} candidates were`} measured on the validation data. Taken: ${sizesText(best)}, because its loss ${how}, ${rankingLoss(best).toFixed(4)}, is the smallest; ${rival}.`,
    table(
      ["candidate", "parameters", "loss as pruned", "refitted", "distilled briefly", ""],
      candidates.map((one) => [
        sizesText(one),
        formatCount(one.parameters),
        one.loss.toFixed(4),
        one.refittedLoss?.toFixed(4) ?? "-",
        one.distilledLoss?.toFixed(4) ?? "-",
        one === best ? "taken" : "",
      ]),
    ),
    `losses as pruned${refitted ? " and refitted" : ""}: of the first ${measuredOn.tokens} tokens of the validation data, ${sequencesText(measuredOn.sequenceLength)}, computed in ${measuredOn.computeType}`,
    ...(distilled ? ["losses after a brief distillation: of all the validation data"] : []),
  ];
}

function renderCut(report: ExplainedReport | undefined): string[] {
  if (report?.plan === undefined) return [];
  const cut = Object.entries(report.plan).filter(([, { from, to }]) => JSON.stringify(from) !== JSON.stringify(to));
  const lines = cut.map(([axis, { from, to }]) => `${axis}: ${describeSize(from)} to ${describeSize(to)}`);
  if (cut.some(([axis]) => axis === "layers") && report.keptLayers !== undefined)
    lines.push(`layers that stayed, counted from 0: ${report.keptLayers.join(", ")}`);
  return lines.length === 0 ? ["nothing"] : lines;
}

const renderRounds = (report: ExplainedReport | undefined): string[] =>
  report?.rounds === undefined
    ? []
    : [
        table(
          ["round", "cut", "tokens", "loss as cut", "loss distilled"],
          report.rounds.map(({ plan, pruned, student, tokens }, i) => [
            String(i + 1),
            describeCut(plan).join(", ") || "nothing",
            formatCount(tokens),
            pruned.loss.toFixed(4),
            student.loss.toFixed(4),
          ]),
        ),
      ];

function renderTraining(training: ExplainedTraining | undefined): string[] {
  if (training === undefined) return [];
  const { steps, tokens, seconds, tokensPerSecond, losses, validation } = training;
  const course = losses.map(({ step, loss }) => `${loss.toFixed(4)} at step ${step}`);
  return [
    `${steps} steps, ${formatCount(tokens)} tokens in ${seconds.toFixed(0)} s (${formatCount(tokensPerSecond)} tokens/s)`,
    `training loss: ${course.join(", ")}`,
    ...(validation.length === 0
      ? []
      : [
          `validation loss: ${validation.map((one) => `${one.loss.toFixed(4)} at ${formatCount(one.tokens)}`).join(", ")}`,
        ]),
  ];
}

function renderModels({ report, settings }: Explanation): string[] {
  if (report === undefined) return [];
  const rows = Object.entries(report.models).map(([name, model]) => [
    name,
    formatCount(model.parameters),
    formatBytes(model.bytes),
    model.loss.toFixed(4),
    model.perplexity.toFixed(3),
  ]);
  const recovered = recoveryText(report.models, report.rounds !== undefined);
  const [first] = Object.values(report.models);
  const length = settings.find(({ name }) => name === "sequenceLength")?.value;
  return [
    table(["", "parameters", "as stored", "loss", "perplexity"], rows),
    `losses: of all ${first?.tokens ?? 0} tokens of the validation data${typeof length === "number" ? `, ${sequencesText(length)}` : ""}, computed in f32`,
    ...(recovered === undefined ? [] : [recovered]),
  ];
}

const renderStages = ({ stages }: Explanation): string[] =>
  stages.length === 0
    ? []
    : [
        table(
          ["stage", "seconds", "peak memory"],
          stages.map(({ name, seconds, peakMemoryBytes }) => [name, seconds.toFixed(1), formatBytes(peakMemoryBytes)]),
        ),
      ];
