import type { PlanSummary } from "../jobs/plan-summary.js";
import { describeSize } from "../prune/index.js";
import { formatBytes, formatCount } from "../system/format.js";
import type { JobSpec } from "./specification.js";

/** What a card says: measurements, and the job's own settings. */
export interface CardFacts {
  readonly name: string;
  readonly base: string;
  readonly baseReference: string | undefined;
  readonly licence: string | null;
  readonly dataset: string;
  readonly spec: JobSpec;
  readonly device: string | undefined;
  readonly models: Readonly<
    Record<
      string,
      { readonly parameters: number; readonly bytes: number; readonly loss: number; readonly perplexity: number }
    >
  >;
  readonly plan: PlanSummary | undefined;
  readonly tokens: number | undefined;
  readonly files: readonly { readonly name: string; readonly bytes: number; readonly sha256: string }[];
  /** Scores by benchmark, then by model. */
  readonly scores: Readonly<Record<string, Readonly<Record<string, string>>>> | undefined;
  readonly version: string;
}

const row = (cells: readonly string[]): string => `| ${cells.join(" | ")} |`;
const table = (head: readonly string[], rows: readonly (readonly string[])[]): string =>
  [row(head), row(head.map((_, i) => (i === 0 ? "---" : "---:"))), ...rows.map(row)].join("\n");
/** Text from users, which must not end a table cell or the header. */
const escaped = (text: string): string => text.replace(/[\r\n|<>`]/g, " ");

/** The card of a model that a job has made: README.md, with the header that the hub reads. */
export function modelCard(facts: CardFacts): string {
  const { name, base, baseReference, licence, models, plan, scores, files, tokens, device, dataset, version } = facts;
  const header = [
    "---",
    ...(licence === null ? [] : [`license: ${JSON.stringify(escaped(licence))}`]),
    ...(baseReference === undefined ? [] : [`base_model: ${JSON.stringify(escaped(baseReference))}`]),
    "library_name: gguf",
    "tags: [pruning, distillation, coppice]",
    "---",
  ].join("\n");
  const cuts = Object.entries(plan ?? {})
    .map(([axis, { from, to }]) => ({ axis, from: describeSize(from), to: describeSize(to) }))
    .filter(({ from, to }) => from !== to);
  const recipe = [
    `- Base model: ${escaped(base)}${licence === null ? "" : ` (licence: ${escaped(licence)}, which applies to this model too)`}`,
    `- Data: ${escaped(dataset)}`,
    ...(device === undefined ? [] : [`- Target device: ${device}`]),
    ...(cuts.length === 0
      ? ["- Cut: nothing"]
      : [`- Cut: ${cuts.map(({ axis, from, to }) => `${axis} ${from} to ${to}`).join(", ")}`]),
    ...(tokens === undefined
      ? []
      : [
          `- Distilled on ${formatCount(tokens)} tokens: forward KL divergence on the logits, every position (arXiv 2407.14679)`,
        ]),
  ].join("\n");
  const measured = table(
    ["", "parameters", "size", "loss, nats/token", "perplexity"],
    Object.entries(models).map(([role, { parameters, bytes, loss, perplexity }]) => [
      role,
      formatCount(parameters),
      formatBytes(bytes),
      loss.toFixed(4),
      perplexity.toFixed(3),
    ]),
  );
  const roles = [...new Set(Object.values(scores ?? {}).flatMap((byModel) => Object.keys(byModel)))];
  const benchmarks =
    scores === undefined
      ? ""
      : `\n## Benchmarks\n\n${table(
          ["", ...roles],
          Object.entries(scores).map(([task, byModel]) => [task, ...roles.map((role) => byModel[role] ?? "-")]),
        )}\n`;
  const list = table(
    ["file", "bytes", "SHA-256"],
    files.map((file) => [file.name, String(file.bytes), `\`${file.sha256}\``]),
  );
  return `${header}\n\n# ${escaped(name)}\n\n${recipe}\n\n## Measured\n\nOn held-out data.\n\n${measured}\n${benchmarks}\n## Files\n\n${list}\n\nMade with coppice ${version}.\n`;
}
