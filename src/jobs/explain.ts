import { existsSync, readFileSync, statSync } from "node:fs";
import path from "node:path";
import { z } from "zod";
import { type MetricsRecord, parseMetrics } from "../distill/index.js";
import { FormatError } from "../system/errors.js";
import { LOCK_FILE } from "../system/lock.js";
import { readRun } from "../system/run-files.js";
import { describeSchemaError } from "../system/schema.js";
import { type Invocation, originSchema } from "./invocation.js";
import { joinMetrics, roundFolder } from "./rounds.js";
import { RANKING_FILE } from "./search.js";
import { type ExplainedSetting, settingsOf } from "./settings.js";
import { finishedStages } from "./stages.js";

export interface ExplainedFile {
  readonly name: string;
  /** Undefined where it is gone. */
  readonly bytes: number | undefined;
}

/** What a run's directory says about the run. */
export interface Explanation {
  readonly directory: string;
  /** `compress`, `distill`, `pretrain`, `prune`, `export` or `evaluate`. */
  readonly command: string;
  readonly state: "finished" | "running" | "unfinished";
  readonly version: string | undefined;
  readonly startedAt: string | undefined;
  /** As typed in a POSIX shell; undefined where a program started the run. */
  readonly commandLine: string | undefined;
  /** The digest of each input's content. */
  readonly inputs: Readonly<Record<string, string>>;
  readonly settings: readonly ExplainedSetting[];
  /** The latest, where there are several rounds. */
  readonly search: ExplainedSearch | undefined;
  readonly report: ExplainedReport | undefined;
  readonly training: ExplainedTraining | undefined;
  readonly stages: readonly z.infer<typeof stageSchema>[];
  readonly files: readonly ExplainedFile[];
  /** What to do next. */
  readonly next: readonly string[];
}

export interface ExplainedTraining {
  readonly steps: number;
  readonly tokens: number;
  readonly seconds: number;
  readonly tokensPerSecond: number;
  /** Training losses: of the first step, halfway, and of the last. */
  readonly losses: readonly MetricsRecord[];
  readonly validation: readonly { readonly tokens: number; readonly loss: number }[];
}

const size = z.union([z.number(), z.array(z.number())]);

const candidateSchema = z.object({
  sizes: z.record(z.string(), size),
  parameters: z.number(),
  keptLayers: z.array(z.number()),
  loss: z.number(),
  refittedLoss: z.number().optional(),
  distilledLoss: z.number().optional(),
});
export type RankedSizes = z.infer<typeof candidateSchema>;

const rankingSchema = z.object({
  /** The beginning of the validation data, on which candidates are measured as pruned. */
  measuredOn: z.object({ tokens: z.number(), sequenceLength: z.number(), computeType: z.string() }),
  /** Best first: the first was taken. */
  candidates: z.array(candidateSchema),
});
export type ExplainedSearch = z.infer<typeof rankingSchema>;

const stageSchema = z.object({
  name: z.string(),
  seconds: z.number(),
  peakMemoryBytes: z.number(),
  unfinished: z.boolean().optional(),
});

const planSchema = z.record(z.string(), z.object({ from: size, to: size }));
const lossSchema = z.object({ loss: z.number() });

const reportSchema = z.object({
  models: z.record(
    z.string(),
    z.object({
      parameters: z.number(),
      bytes: z.number(),
      loss: z.number(),
      perplexity: z.number(),
      /** How many tokens were predicted. */
      tokens: z.number(),
    }),
  ),
  plan: planSchema.optional(),
  rounds: z
    .array(z.object({ plan: planSchema, pruned: lossSchema, student: lossSchema, tokens: z.number() }))
    .optional(),
  keptLayers: z.array(z.number()).optional(),
  recoveredShare: z.number().nullish(),
  tokens: z.number(),
  seconds: z.number(),
});
export type ExplainedReport = z.infer<typeof reportSchema>;

const configurationSchema = z.looseObject({
  command: z.string(),
  inputs: z.record(z.string(), z.string()).default({}),
  rounds: z.number().int().min(1).optional(),
});

/**
 * Reads what a run did from the files in its directory. Nothing is changed, and the run may be going on.
 * @throws UsageError when the directory is no run's, FormatError naming the file that is damaged
 */
export function explain(directory: string): Explanation {
  const record = readRun(directory);
  const at = (...names: readonly string[]) => path.join(directory, ...names);
  if (record.configuration === undefined)
    throw new FormatError(`${at("run.json")} does not say what the run is: it ended before it began`);
  const configuration = checked(configurationSchema, record.configuration, at("run.json"));
  const origin = record.origin === undefined ? undefined : checked(originSchema, record.origin, at("run.json"));
  const invocation = origin?.invocation;
  const state = record.finished ? "finished" : existsSync(at(LOCK_FILE)) ? "running" : "unfinished";
  // the last round's files lie in the run's directory itself
  const folders = [...Array((configuration.rounds ?? 1) - 1).keys()].map((i) => roundFolder(i + 1)).concat("");
  const ranking = folders.map((folder) => at(folder, RANKING_FILE)).findLast((file) => existsSync(file));
  const commandLine = invocation && shellLine(invocation);
  return {
    directory,
    command: configuration.command,
    state,
    version: origin?.version,
    startedAt: origin?.startedAt,
    commandLine,
    inputs: configuration.inputs,
    settings: settingsOf(configuration, invocation),
    search: ranking === undefined ? undefined : readJson(ranking, rankingSchema),
    report: readJson(at("report.json"), reportSchema),
    training: trainingOf(joinMetrics(folders.map((folder) => metricsIn(at(folder, "metrics.jsonl"))))),
    stages: finishedStages(readJson(at("stages.json"), z.array(stageSchema)) ?? []),
    files: record.files.map((name) => ({ name, bytes: statSync(at(name), { throwIfNoEntry: false })?.size })),
    next: nextSteps(state, directory, commandLine),
  };
}

/** A file of JSON; undefined where there is none. @throws FormatError when it is not what the run writes */
function readJson<T extends z.ZodType>(file: string, schema: T): z.infer<T> | undefined {
  if (!existsSync(file)) return undefined;
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(file, "utf8"));
  } catch (error) {
    throw new FormatError(`${file} is damaged: it is not JSON (${error instanceof Error ? error.message : error})`);
  }
  return checked(schema, value, file);
}

function checked<T extends z.ZodType>(schema: T, value: unknown, file: string): z.infer<T> {
  const parsed = schema.safeParse(value);
  if (!parsed.success) throw new FormatError(`${file} is damaged: ${describeSchemaError(parsed.error, value)}`);
  return parsed.data;
}

const metricsIn = (file: string): MetricsRecord[] => (existsSync(file) ? parseMetrics(readFileSync(file, "utf8")) : []);

function trainingOf(metrics: readonly MetricsRecord[]): ExplainedTraining | undefined {
  const last = metrics.at(-1);
  if (last === undefined) return undefined;
  const { tokens, seconds } = last;
  const positions = new Set([0, Math.floor((metrics.length - 1) / 2), metrics.length - 1]);
  return {
    steps: last.step,
    tokens,
    seconds,
    tokensPerSecond: seconds > 0 ? tokens / seconds : last.tokensPerSecond,
    losses: metrics.filter((_, i) => positions.has(i)),
    validation: metrics.flatMap((one) =>
      one.validationLoss === undefined ? [] : [{ tokens: one.tokens, loss: one.validationLoss }],
    ),
  };
}

const quoted = (word: string): string => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`);

/** A command line as one types it, from wherever one is. */
const shellLine = ({ words, directory }: Invocation): string =>
  `cd ${quoted(directory)} && coppice ${words.map(quoted).join(" ")}`;

function nextSteps(state: Explanation["state"], directory: string, commandLine: string | undefined): string[] {
  const command = commandLine ?? "the call that started it";
  if (state === "running") return [`the run is going on; if it was killed, this continues it: ${command}`];
  if (state === "unfinished") return [`to continue where it stopped: ${command}`];
  const again = `to run it again: ${command}${commandLine === undefined ? " with restart" : " --restart"}`;
  const isModel = existsSync(path.join(directory, "config.json"));
  return isModel ? [`to try the model: coppice chat ${quoted(directory)}`, again] : [again];
}
