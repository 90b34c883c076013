import { DEVICES } from "../devices/profiles.js";
import { DIVERGENCES, type Divergence } from "../distill/divergences.js";
import { DEVICE_KINDS, type DeviceKind } from "../ggml/device-kinds.js";
import type { DataOptions, JobOptions, TargetOptions, TrainSettings } from "../jobs/index.js";
import { DEPTH_METHODS, type DepthMethod } from "../prune/depth-methods.js";
import { largestOf, parseSizes } from "../prune/sizes.js";
import { START_METHODS, type StartMethod } from "../refit/start-methods.js";
import { UsageError } from "../system/errors.js";
import type { OptimizerState } from "../tensor/index.js";
import { type OptionGroup, option } from "./command.js";
import {
  parseAtLeastOne,
  parseBytes,
  parseCount,
  parseNames,
  parseNonNegative,
  parsePositive,
  parseSeparator,
  parseShare,
  parseWhole,
} from "./parse.js";
import type { ProgressDisplay } from "./progress.js";

/** The MODEL argument, as every command describes it. */
export const MODEL = "model directory, .gguf file or hub id (org/name)";

type Defined<T> = { [Name in keyof T]: Exclude<T[Name], undefined> };

/** The options that have a value, for what tells an absent one from an undefined one. */
export const defined = <T extends object>(options: T): Partial<Defined<T>> =>
  Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as Partial<Defined<T>>;

/** Options that every command has. */
export interface CommonFlags {
  readonly device: DeviceKind | "auto";
  readonly threads?: number | undefined;
  readonly json?: boolean | undefined;
  readonly verbose?: boolean | undefined;
  readonly offline?: boolean | undefined;
  readonly revision?: string | undefined;
  readonly lora?: string[] | undefined;
  readonly memory?: number | undefined;
  readonly devices?: number | "all" | undefined;
}

/** How a command's result is printed, and how much else is. */
export const output: OptionGroup = (command) =>
  command
    .option("--json", "print the result as JSON on standard output, and nothing else there")
    .option("--verbose", "log what is done as lines of JSON on standard error (COPPICE_LOG=debug does, too)");

export const common: OptionGroup = (command) =>
  command
    .addOption(
      option("--device <kind>", "where to compute")
        .choices(["auto", ...DEVICE_KINDS])
        .default("auto"),
    )
    .option("--threads <n>", "CPU threads (default: COPPICE_THREADS, or as many as are fastest)", parseAtLeastOne)
    .option("--revision <name>", "branch, tag or commit of a hub id")
    .option("--offline", "use only what was downloaded before")
    .with(output);

/** For commands that compute on GPUs with our own engine. */
export const devices: OptionGroup = (command) =>
  command.option("--devices <n>", "GPUs to divide the layers over: a number, or all (default: 1)", (text) =>
    text === "all" ? text : parseAtLeastOne(text),
  );

/** For commands that send data through models. */
export const memory: OptionGroup = (command) =>
  command
    .with(devices)
    .option(
      "--memory <size>",
      "memory for a model's weights and activations, for example 4GiB; larger models are read layer by layer (default: what is free)",
      parseBytes,
    );

/** For commands that take one model, or several. */
export const adapters: OptionGroup = (command) =>
  command.option(
    "--lora <adapters...>",
    "LoRA adapters to merge into the model: PEFT directories or hub ids, also ADAPTER=SCALE",
  );

/** Job options from the common ones. */
export function commonJobOptions(flags: CommonFlags, display: ProgressDisplay): JobOptions {
  const { device, devices, threads, memory: memoryBytes, offline, revision } = flags;
  return {
    device,
    devices,
    threads,
    memoryBytes,
    hub: { offline, revision },
    onProgress: display.update,
    onNote: display.note,
  };
}

export interface DataFlags {
  readonly data?: string[] | undefined;
  readonly validation?: string[] | undefined;
  readonly field?: string | undefined;
  readonly separator?: string | undefined;
}

const addData = (mandatory: boolean): OptionGroup => {
  const paths =
    "files, directories, globs or hf://datasets/org/name: text, JSON, CSV, TSV or Parquet, also compressed by gzip or zstd";
  return (command) =>
    command
      .addOption(option("--data <paths...>", paths).makeOptionMandatory(mandatory))
      .option(
        "--field <name>",
        "field or column with texts or conversations, or a path to it like body.content (default: text, else messages or conversations)",
      )
      .option(
        "--separator <text>",
        "what separates documents in plain text, \\n for a line's end (default: <|endoftext|>)",
        parseSeparator,
      );
};

export const data = addData(true);
export const optionalData = addData(false);

export const validation: OptionGroup = (command) =>
  command.option("--validation <paths...>", "held-out data (default: 2 % of the documents)");

export const dataOptions = ({ data = [], validation, field, separator }: DataFlags): DataOptions => ({
  data,
  validation,
  ...defined({ field, separator }),
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
  readonly start?: StartMethod | undefined;
  readonly refitSamples?: number | undefined;
  readonly perLayer?: boolean | undefined;
  readonly candidates?: number | undefined;
  readonly searchTokens?: number | undefined;
  readonly samples?: number | undefined;
  readonly scores?: string | undefined;
  readonly rounds?: number | undefined;
}

const addTarget = (mandatory: boolean): OptionGroup => {
  const forms =
    "8.4B (parameters), 0.67x (share), 4GiB (weights), a device (phone-8gb) or sizes: hidden=4096,ffn=11520; for each layer ffn=400/300/200, for one layers.2.ffn=128 (0: without)";
  const starts =
    "how the smaller model starts: refit mends the cut in closed form (default of compress), minitron only cuts (default of plan and prune)";
  const depths = "how layers to cut are chosen (default: contiguous-loss)";
  return (command) =>
    command
      .addOption(
        option("--target <target>", forms)
          .makeOptionMandatory(mandatory)
          .completes(() => DEVICES.map(({ id }) => id)),
      )
      .option("--bits <n>", "bits per weight of a target in bytes (default: 16)", parsePositive)
      .option(
        "--axes <list>",
        "sizes that may change: hidden,ffn,heads,kvHeads,layers (default: hidden,ffn)",
        parseNames,
      )
      .option("--divisors <sizes>", "what sizes are multiples of, for example hidden=256,ffn=512")
      .option("--max-width-cut <share>", "largest cut of a width (default: 0.4; of ffn 0.6)", parseShare)
      .option("--max-depth-cut <share>", "largest cut of the depth (default: 0.2)", parseShare)
      .option("--tolerance <share>", "how far from the target (default: 0.05)", parseShare)
      .addOption(option("--depth <method>", depths).choices(DEPTH_METHODS))
      .addOption(option("--start <method>", starts).choices(START_METHODS))
      .option("--refit-samples <n>", "sequences of 256 tokens to refit on (default: 192)", parseAtLeastOne)
      .option(
        "--per-layer",
        "also try sizes that differ from layer to layer, or none, chosen by what each layer's cut costs",
      )
      .option("--candidates <n>", "how many architectures to measure at most (default: 12)", parseAtLeastOne)
      .option(
        "--search-tokens <n>",
        "rank the best candidates again after distilling each on this many tokens",
        parseCount,
      )
      .option("--samples <n>", "calibration sequences (default: 1024)", parseAtLeastOne)
      .option("--scores <file>", "importance scores to use, or where to keep them");
};

export const target = addTarget(true);
export const optionalTarget = addTarget(false);

const parseDivisors = (text: string): Record<string, number> =>
  Object.fromEntries(Object.entries(parseSizes(text)).map(([axis, size]) => [axis, largestOf(size)]));

/** @throws UsageError for options that choose among sizes, where the target names them */
function checkChoice({ target, axes, divisors, maxWidthCut, maxDepthCut, tolerance, ...flags }: TargetFlags): void {
  if (!target.includes("=") || (flags.rounds ?? 1) > 1) return;
  const choosing = {
    "--axes": axes,
    "--divisors": divisors,
    "--max-width-cut": maxWidthCut,
    "--max-depth-cut": maxDepthCut,
    "--tolerance": tolerance,
    "--candidates": flags.candidates,
    "--search-tokens": flags.searchTokens,
  };
  const given = Object.entries(choosing).flatMap(([name, value]) => (value === undefined ? [] : [name]));
  if (given.length > 0)
    throw new UsageError(`the target ${target} names the sizes: ${given.join(" and ")} would change nothing`);
}

export function targetOptions(flags: TargetFlags): TargetOptions {
  checkChoice(flags);
  const { axes, maxWidthCut, maxDepthCut, tolerance } = flags;
  const divisors = flags.divisors === undefined ? undefined : parseDivisors(flags.divisors);
  return {
    target: flags.target,
    space: defined({ axes, divisors, maxWidthCut, maxDepthCut, tolerance }),
    bitsPerWeight: flags.bits,
    depthMethod: flags.depth,
    start: flags.start,
    refitSamples: flags.refitSamples,
    perLayer: flags.perLayer,
    maxCandidates: flags.candidates,
    searchTokens: flags.searchTokens,
    calibrationSamples: flags.samples,
    scoresFile: flags.scores,
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
  readonly optimizerState?: OptimizerState | undefined;
  readonly freeGradients?: boolean | undefined;
}

/** What the optimizer keeps in memory. */
export const optimizerMemory: OptionGroup = (command) =>
  command
    .addOption(
      option(
        "--optimizer-state <type>",
        "how moments are kept: 8bit takes 2 bytes a parameter, not 8 (default: f32)",
      ).choices(["f32", "8bit"]),
    )
    .option(
      "--free-gradients",
      "update each weight as soon as its gradient is known: 4 bytes a parameter less; clips by the norm of the step before",
    );

/** Tokens to train on by default. */
export const DEFAULT_TOKENS = 2e6;

export const training: OptionGroup = (command) =>
  command
    .option("--tokens <n>", "tokens to train on (default: 2M)", parseCount)
    .option("--sequence-length <n>", "tokens per sequence (default: 256, or the model's limit)", parseAtLeastOne)
    .option(
      "--batch-size <n>",
      "sequences per step (default: as many as make 200 steps, of 256 to 4096 tokens)",
      parseAtLeastOne,
    )
    .option("--micro-batch-size <n>", "sequences computed at once (default: the batch)", parseAtLeastOne)
    .option(
      "--learning-rate <x>",
      "peak (default: 1e-4 at width 4096, more for narrower models; compress takes half after a refit)",
      parsePositive,
    )
    .option("--minimum-learning-rate <x>", "at the end (default: a tenth of the peak)", parsePositive)
    .addOption(
      option("--schedule <kind>", "how the learning rate falls (default: cosine)").choices([
        "cosine",
        "linear",
        "constant",
      ]),
    )
    .option("--warmup-steps <n>", "steps of rising learning rate (default: a tenth, at most 40)", parseWhole)
    .option("--weight-decay <x>", "decoupled decay of matrices (default: 0.1)", parseNonNegative)
    .option("--clip-norm <x>", "largest global gradient norm (default: 1)", parsePositive)
    .option("--seed <n>", "order of the data and random weights (default: 0)", parseWhole)
    .option(
      "--save-every <steps>",
      "steps between checkpoints, beside one every ten minutes (default: a twentieth of the run, at least 10)",
      parseAtLeastOne,
    )
    .option("--validate-every <steps>", "steps between validation losses (default: none)", parseWhole)
    .addOption(option("--compute <type>", "number type of matrix products (default: bf16)").choices(["f32", "bf16"]))
    .option("--recompute", "compute activations again instead of keeping them: less memory, more time")
    .with(optimizerMemory)
    .option("--restart", "discard what a run in --out has done");

export function trainSettings(flags: TrainFlags): Partial<TrainSettings> {
  const { tokens, sequenceLength, batchSize, microBatchSize, learningRate, minimumLearningRate } = flags;
  const { schedule, warmupSteps, weightDecay, clipNorm, seed, recompute, optimizerState, freeGradients } = flags;
  return defined({
    tokens,
    sequenceLength,
    batchSize,
    microBatchSize,
    learningRate,
    minimumLearningRate,
    schedule,
    warmupSteps,
    weightDecay,
    clipNorm,
    seed,
    saveEverySteps: flags.saveEvery,
    validateEverySteps: flags.validateEvery,
    computeType: flags.compute,
    recompute,
    optimizerState: optimizerState === "f32" ? undefined : optimizerState, // as if it had not been said
    freeGradients,
  });
}

export interface LossFlags {
  readonly loss?: Divergence | undefined;
  readonly temperature?: number | undefined;
  readonly crossEntropyWeight?: number | undefined;
  readonly topK?: number | undefined;
  readonly sampledLogits?: number | true | undefined;
  readonly teacherCache?: boolean | undefined;
}

export const loss: OptionGroup = (command) =>
  command
    .addOption(
      option("--loss <kind>", "how far the student is from the teacher (default: forward-kl)").choices(DIVERGENCES),
    )
    .option("--temperature <x>", "softens both distributions (default: 1)", parsePositive)
    .option("--cross-entropy-weight <x>", "weight of the data's own loss beside it (default: 0)", parseNonNegative)
    .option(
      "--top-k <n>",
      "match the teacher's n most probable tokens and the rest's mass (default with --teacher-cache: 64)",
      parseAtLeastOne,
    )
    .option(
      "--sampled-logits [n]",
      "match n samples of the teacher's distribution, an unbiased estimate of forward KL (default: 32)",
      parseAtLeastOne,
    )
    .option("--teacher-cache", "compute the teacher's top-k or sampled logits once and keep them on disk");

export function lossOptions(flags: LossFlags) {
  const { loss, temperature, crossEntropyWeight, topK, sampledLogits, teacherCache } = flags;
  return {
    distillation: defined({ divergence: loss, temperature, crossEntropyWeight }),
    teacherOptions: { topK, sampledLogits, cache: teacherCache },
  };
}
