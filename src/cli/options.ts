import { type Command, InvalidArgumentError, Option } from "commander";
import { DIVERGENCES, type Divergence } from "../distill/divergences.js";
import { DEVICE_KINDS, type DeviceKind } from "../ggml/device-kinds.js";
import type { DataOptions, JobOptions, TargetOptions, TrainSettings } from "../jobs/index.js";
import { DEPTH_METHODS, type DepthMethod } from "../prune/depth-methods.js";
import { largestOf, parseSizes } from "../prune/sizes.js";
import { UsageError } from "../system/errors.js";
import { byteCount } from "../system/units.js";
import type { ProgressDisplay } from "./progress.js";

/** A positive number, with the units K, M, B, T. */
export function parseCount(text: string): number {
  const match = /^(\d+(?:\.\d+)?(?:e\d+)?)([kmbt]?)$/i.exec(text);
  const value = Number(match?.[1]) * ({ k: 1e3, m: 1e6, b: 1e9, t: 1e12 }[match?.[2]?.toLowerCase() ?? ""] ?? 1);
  if (!(value > 0 && value <= Number.MAX_SAFE_INTEGER))
    throw new InvalidArgumentError("a positive number is needed, for example 2M.");
  return value;
}

/** A number of bytes, with or without a unit. */
export function parseBytes(text: string): number {
  const value = byteCount(text) ?? (/^\d+$/.test(text) ? Number(text) : 0);
  if (!(value >= 1 && value <= Number.MAX_SAFE_INTEGER))
    throw new InvalidArgumentError("a size is needed, for example 4GiB or 500MB.");
  return Math.floor(value);
}

export function parsePositive(text: string): number {
  const value = Number(text);
  if (!(value > 0 && Number.isFinite(value))) throw new InvalidArgumentError("a positive number is needed.");
  return value;
}

/** A number from 0 up. */
export function parseNonNegative(text: string): number {
  const value = text.trim() === "" ? Number.NaN : Number(text);
  if (!(value >= 0 && Number.isFinite(value))) throw new InvalidArgumentError("a number from 0 up is needed.");
  return value;
}

/** A part of something: more than 0, less than 1. */
export function parseShare(text: string): number {
  const value = Number(text);
  if (!(value > 0 && value < 1)) throw new InvalidArgumentError("a share between 0 and 1 is needed, for example 0.4.");
  return value;
}

export function parseWhole(text: string): number {
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(Number(text)))
    throw new InvalidArgumentError("a whole number is needed.");
  return Number(text);
}

/** A whole number of things of which there must be one. */
export function parseAtLeastOne(text: string): number {
  const value = parseWhole(text);
  if (value < 1) throw new InvalidArgumentError("a whole number from 1 up is needed.");
  return value;
}

/** Names, comma-separated. */
export const parseNames = (text: string): string[] => text.split(",").map((name) => name.trim());

/** The MODEL argument, as every command describes it. */
export const MODEL = "model directory, .gguf file or hub id (org/name)";

/** Options that every command has. */
export interface CommonFlags {
  readonly device: DeviceKind | "auto";
  readonly threads?: number | undefined;
  readonly json?: boolean | undefined;
  readonly offline?: boolean | undefined;
  readonly revision?: string | undefined;
  readonly lora?: string[] | undefined;
}

/** Commands that take no model, or adapters of their own. */
const WITHOUT_LORA = ["serve", "doctor", "foundry"];

export const addCommon = (command: Command): Command => {
  command
    .addOption(new Option("--device <kind>", "where to compute").choices(["auto", ...DEVICE_KINDS]).default("auto"))
    .option("--threads <n>", "CPU threads (default: COPPICE_THREADS, or all cores)", parseAtLeastOne)
    .option("--revision <name>", "branch, tag or commit of a hub id")
    .option("--offline", "use only what was downloaded before")
    .option("--json", "print the result as JSON on standard output, and nothing else there");
  if (WITHOUT_LORA.includes(command.name())) return command;
  return command.option(
    "--lora <adapters...>",
    "LoRA adapters to merge into the model: PEFT directories or hub ids, also ADAPTER=SCALE",
  );
};

/** What a job function takes of the common options. */
export function commonJobOptions(flags: CommonFlags, display: ProgressDisplay, signal: AbortSignal): JobOptions {
  return {
    device: flags.device,
    ...(flags.threads !== undefined && { threads: flags.threads }),
    hub: {
      ...(flags.offline === true && { offline: true }),
      ...(flags.revision !== undefined && { revision: flags.revision }),
    },
    onProgress: display.update,
    onNote: display.note,
    signal,
  };
}

export interface DataFlags {
  readonly data?: string[] | undefined;
  readonly validation?: string[] | undefined;
  readonly field?: string | undefined;
  readonly separator?: string | undefined;
}

export const addData = (command: Command, required: boolean): Command => {
  const data = new Option(
    "--data <paths...>",
    "files, directories, globs or hf://datasets/org/name: text, JSON, CSV, TSV or Parquet, also by gzip or zstd",
  );
  return command
    .addOption(required ? data.makeOptionMandatory() : data)
    .option("--field <name>", "field or column with the text, or a path to it like messages.content (default: text)")
    .option("--separator <text>", "what separates documents in plain text (default: <|endoftext|>)");
};

export const addValidation = (command: Command): Command =>
  command.option("--validation <paths...>", "held-out data (default: 2 % of the documents)");

export const dataOptions = (flags: DataFlags): DataOptions => ({
  data: flags.data ?? [],
  ...(flags.validation && { validation: flags.validation }),
  ...(flags.field !== undefined && { field: flags.field }),
  ...(flags.separator !== undefined && { separator: flags.separator }),
});

export interface TargetFlags {
  readonly target: string;
  readonly bits?: number | undefined;
  readonly axes?: string[] | undefined;
  readonly divisors?: string | undefined;
  readonly maxWidthCut?: number | undefined;
  readonly maxDepthCut?: number | undefined;
  readonly tolerance?: number | undefined;
  readonly depth?: DepthMethod | undefined;
  readonly candidates?: number | undefined;
  readonly searchTokens?: number | undefined;
  readonly samples?: number | undefined;
  readonly scores?: string | undefined;
}

export const addTarget = (command: Command, required = true): Command =>
  command
    .addOption(
      new Option(
        "--target <target>",
        "8.4B (parameters), 0.67x (share), 4GiB (weights), a device (phone-8gb) or sizes: hidden=4096,ffn=11520; of each layer ffn=400/300/200, of one layers.2.ffn=128",
      ).makeOptionMandatory(required),
    )
    .option("--bits <n>", "bits per weight of a target in bytes (default: 16)", parsePositive)
    .option("--axes <list>", "sizes that may change: hidden,ffn,heads,kvHeads,layers (default: hidden,ffn)", parseNames)
    .option("--divisors <sizes>", "what sizes are multiples of, for example hidden=256,ffn=512")
    .option("--max-width-cut <share>", "largest cut of a width (default: 0.4)", parseShare)
    .option("--max-depth-cut <share>", "largest cut of the depth (default: 0.2)", parseShare)
    .option("--tolerance <share>", "how far from the target (default: 0.05)", parseShare)
    .addOption(
      new Option("--depth <method>", "how layers to cut are chosen (default: contiguous-loss)").choices(DEPTH_METHODS),
    )
    .option("--candidates <n>", "how many architectures to measure at most (default: 12)", parseAtLeastOne)
    .option("--search-tokens <n>", "rank the best candidates again after distilling each on so many tokens", parseCount)
    .option("--samples <n>", "calibration sequences (default: 1024)", parseAtLeastOne)
    .option("--scores <file>", "importance scores to use, or where to keep them");

const parseDivisors = (text: string): Record<string, number> =>
  Object.fromEntries(Object.entries(parseSizes(text)).map(([axis, size]) => [axis, largestOf(size)]));

export function targetOptions(flags: TargetFlags): TargetOptions {
  const space = {
    ...(flags.axes && { axes: flags.axes }),
    ...(flags.divisors !== undefined && { divisors: parseDivisors(flags.divisors) }),
    ...(flags.maxWidthCut !== undefined && { maxWidthCut: flags.maxWidthCut }),
    ...(flags.maxDepthCut !== undefined && { maxDepthCut: flags.maxDepthCut }),
    ...(flags.tolerance !== undefined && { tolerance: flags.tolerance }),
  };
  return {
    target: flags.target,
    space,
    ...(flags.bits !== undefined && { bitsPerWeight: flags.bits }),
    ...(flags.depth && { depthMethod: flags.depth }),
    ...(flags.candidates !== undefined && { maxCandidates: flags.candidates }),
    ...(flags.searchTokens !== undefined && { searchTokens: flags.searchTokens }),
    ...(flags.samples !== undefined && { calibrationSamples: flags.samples }),
    ...(flags.scores !== undefined && { scoresFile: flags.scores }),
  };
}

export interface TrainFlags {
  readonly tokens?: number | undefined;
  readonly sequenceLength?: number | undefined;
  readonly batchSize?: number | undefined;
  readonly microBatchSize?: number | undefined;
  readonly learningRate?: number | undefined;
  readonly minimumLearningRate?: number | undefined;
  readonly schedule?: "cosine" | "linear" | "constant" | undefined;
  readonly warmupSteps?: number | undefined;
  readonly weightDecay?: number | undefined;
  readonly clipNorm?: number | undefined;
  readonly seed?: number | undefined;
  readonly saveEvery?: number | undefined;
  readonly validateEvery?: number | undefined;
  readonly compute?: "f32" | "bf16" | undefined;
  readonly recompute?: boolean | undefined;
}

export const addTraining = (command: Command, defaultTokens: string): Command =>
  command
    .option("--tokens <n>", `tokens to train on (default: ${defaultTokens})`, parseCount)
    .option("--sequence-length <n>", "tokens per sequence (default: 256, or the model's limit)", parseAtLeastOne)
    .option("--batch-size <n>", "sequences per step (default: 4096 tokens' worth)", parseAtLeastOne)
    .option("--micro-batch-size <n>", "sequences computed at once (default: the batch)", parseAtLeastOne)
    .option("--learning-rate <x>", "peak (default: 1e-4 at width 4096, more for narrower models)", parsePositive)
    .option("--minimum-learning-rate <x>", "at the end (default: a tenth of the peak)", parsePositive)
    .addOption(
      new Option("--schedule <kind>", "how the learning rate falls (default: cosine)").choices([
        "cosine",
        "linear",
        "constant",
      ]),
    )
    .option("--warmup-steps <n>", "steps of rising learning rate (default: a tenth, at most 40)", parseWhole)
    .option("--weight-decay <x>", "decoupled decay of matrices (default: 0.1)", parseNonNegative)
    .option("--clip-norm <x>", "largest global gradient norm (default: 1)", parsePositive)
    .option("--seed <n>", "order of the data and random weights (default: 0)", parseWhole)
    .option("--save-every <steps>", "steps between checkpoints (default: a twentieth of the run)", parseAtLeastOne)
    .option("--validate-every <steps>", "steps between validation losses (default: none)", parseWhole)
    .addOption(
      new Option("--compute <type>", "number type of matrix products (default: bf16)").choices(["f32", "bf16"]),
    )
    .option("--recompute", "compute activations again instead of keeping them: less memory, more time")
    .option("--restart", "discard what a run in --out has done");

export function trainSettings(flags: TrainFlags): Partial<TrainSettings> {
  const { saveEvery, validateEvery, compute, recompute, ...rest } = flags;
  const names = [
    ...(["tokens", "sequenceLength", "batchSize", "microBatchSize", "learningRate", "minimumLearningRate"] as const),
    ...(["schedule", "warmupSteps", "weightDecay", "clipNorm", "seed"] as const),
  ];
  return {
    ...Object.fromEntries(names.flatMap((name) => (rest[name] === undefined ? [] : [[name, rest[name]]]))),
    ...(saveEvery !== undefined && { saveEverySteps: saveEvery }),
    ...(validateEvery !== undefined && { validateEverySteps: validateEvery }),
    ...(compute && { computeType: compute }),
    ...(recompute === true && { recompute }),
  };
}

export interface LossFlags {
  readonly loss?: Divergence | undefined;
  readonly temperature?: number | undefined;
  readonly crossEntropyWeight?: number | undefined;
  readonly topK?: number | undefined;
  readonly teacherCache?: boolean | undefined;
}

export const addLoss = (command: Command): Command =>
  command
    .addOption(
      new Option("--loss <kind>", "how far the student is from the teacher (default: forward-kl)").choices(DIVERGENCES),
    )
    .option("--temperature <x>", "softens both distributions (default: 1)", parsePositive)
    .option("--cross-entropy-weight <x>", "weight of the data's own loss beside it (default: 0)", parseNonNegative)
    .option(
      "--top-k <n>",
      "match the teacher's n most probable tokens and the rest's mass (default with --teacher-cache: 64)",
      parseWhole,
    )
    .option("--teacher-cache", "compute the teacher's logits once and keep them on disk");

export function lossOptions(flags: LossFlags) {
  if (flags.topK === 0) throw new UsageError("--top-k must be at least 1");
  return {
    distillation: {
      ...(flags.loss && { divergence: flags.loss }),
      ...(flags.temperature !== undefined && { temperature: flags.temperature }),
      ...(flags.crossEntropyWeight !== undefined && { crossEntropyWeight: flags.crossEntropyWeight }),
    },
    teacherOptions: {
      ...(flags.topK !== undefined && { topK: flags.topK }),
      ...(flags.teacherCache === true && { cache: true }),
    },
  };
}
