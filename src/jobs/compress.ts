import { Sequences } from "../data/index.js";
import { isDevice, quantizableDivisors } from "../devices/index.js";
import type { TrainOptions } from "../distill/index.js";
import type { Model } from "../models/index.js";
import { cutTo } from "../prune/index.js";
import { elementAt } from "../system/arrays.js";
import { UsageError } from "../system/errors.js";
import type { CompressJob, CompressOutcome } from "./compress-job.js";
import { Compression } from "./compression.js";
import { bestFit } from "./device-plan.js";
import { planEvaluation } from "./evaluate.js";
import { dataInputs, modelIdentity, modelInput, outsideInput } from "./inputs.js";
import { onDevice } from "./job.js";
import { openData } from "./open-data.js";
import { checkInLlamaCpp, openModel } from "./open-model.js";
import { checkCacheFile, claim, inRun } from "./output.js";
import { checkPerLayer } from "./per-layer.js";
import { candidatesOfRounds, trainingOfRounds } from "./rounds.js";
import { noteTraining } from "./sanity.js";
import { OTHER_CUTS } from "./search.js";
import { checkShared } from "./shared/training.js";
import { checkStart } from "./start.js";
import { candidatesFor, checkCuts, isForLlamaCpp } from "./target.js";
import { checkTeacherOptions } from "./teacher-options.js";
import { trainOptionsFor } from "./training.js";

const DEFAULT_TOKENS = 2e6;

/**
 * Makes a model smaller: measures it, corrects the teacher if requested, calibrates, searches, prunes, distills and measures again.
 * `out` becomes a model directory with a report. If the process is killed at any moment, the same call continues where it stopped.
 * @throws UsageError for a target that cannot be met, and for settings or places that do not fit
 * @example
 * ```ts
 * import { compress } from "coppice";
 *
 * const { teacher, pruned, student } = await compress({
 *   model: "./model", // a directory, a .gguf file or a hub id
 *   target: "0.67x", // or "8.4B", "4GiB", "phone-8gb"
 *   data: ["corpus.jsonl"],
 *   settings: { tokens: 100e6 },
 *   gguf: ["q4_k_m"],
 *   out: "./smaller",
 *   onProgress: ({ stage, done, total }) => console.error(stage, done / total),
 * });
 * console.log(teacher.loss, pruned.loss, student.loss); // nats per token of held-out text
 * ```
 */
export async function compress(requested: CompressJob): Promise<CompressOutcome> {
  checkTeacherOptions(requested.teacherOptions ?? {}, requested.distillation ?? {}, requested.intermediate);
  const original = await openModel(requested.model, requested);
  const { checkpoint, model } = original;
  const planned = requested.evaluate === undefined ? [] : await planEvaluation(requested.evaluate);
  const generating = planned.find(({ task }) => task.asks === "generation");
  if (generating !== undefined)
    checkInLlamaCpp(
      model,
      `llama.cpp generates the answers of ${generating.label}: name tasks without, such as hellaswag and mmlu`,
    );
  const quantized = forQuantization(forDevice(requested, model), model);
  const job = generating === undefined ? quantized : { ...quantized, forLlamaCpp: true };
  if (job.gguf !== undefined && job.gguf.length > 0) checkInLlamaCpp(model);
  const { rounds: roundCount = 1 } = job;
  const start = job.start ?? "refit";
  checkStart(job, start);
  checkPerLayer(model, job, start);
  if (job.perLayer === true && roundCount > 1)
    throw new UsageError("--per-layer chooses all sizes at once: do without --rounds, or without --per-layer");
  const candidates = candidatesOfRounds(model, job, roundCount); // report a target that cannot be met before anything that takes long
  checkCuts(checkpoint, requested, elementAt(candidates, roundCount - 1));
  const [named] = elementAt(candidates, roundCount - 1);
  if (isForLlamaCpp(job) && job.target.includes("=") && named?.sizes.layers === undefined)
    checkInLlamaCpp(cutTo(model, named?.sizes ?? {}).model, OTHER_CUTS);
  if (job.scoresFile !== undefined) checkCacheFile(job.scoresFile, "--scores");
  const inputs = [
    ...modelInput("the model", checkpoint),
    ...(await dataInputs(job)),
    ...outsideInput(job.out, "the scores", job.scoresFile),
    ...outsideInput(job.out, "the benchmark data", job.evaluate?.data),
  ];
  return inRun(job, inputs, async (directory) => {
    const settings = studentSettings(model, job);
    const trainings = trainingOfRounds(settings, roundCount);
    const rounds = trainings.map((training, i) => ({ training, candidates: elementAt(candidates, i) }));
    const { train: tokens, validation } = await openData({ directory: checkpoint.directory, model }, job, job);
    new Sequences(tokens, settings.sequenceLength); // too little data is refused before anything that takes long
    checkShared(settings, job);
    noteTraining(settings, tokens, job);
    const identity = job.modelName ?? (await modelIdentity(checkpoint, job.cacheDir));
    const identities = { model: identity, data: tokens.id, validation: validation.id };
    claim(directory, job, configurationOf(job, settings, identities));
    return onDevice(job, (backend) =>
      new Compression({ backend, job, original, tokens, validation, settings, rounds, directory }).run(),
    );
  });
}

/** A refitted start is already near its teacher: half the learning rate of a plain cut was best. */
const REFITTED_RATE_SHARE = 0.5;

function studentSettings(model: Model, { settings, start }: CompressJob): TrainOptions {
  const wanted = { ...settings, tokens: settings?.tokens ?? DEFAULT_TOKENS };
  const plain = trainOptionsFor(model, wanted);
  if (start === "minitron" || wanted.learningRate !== undefined) return plain;
  return trainOptionsFor(model, { ...wanted, learningRate: plain.learningRate * REFITTED_RATE_SHARE });
}

/** For a device, also requests the kind of file that fits it best. */
const forDevice = (job: CompressJob, model: Model): CompressJob =>
  isDevice(job.target) ? { ...job, gguf: job.gguf ?? [bestFit(model, job.target, { space: job.space }).kind] } : job;

/**
 * If GGUF files are wanted, keeps widths to multiples of quantized blocks: rows that do not fill blocks could not be quantized, or
 * only to larger types.
 */
function forQuantization(job: CompressJob, model: Model): CompressJob {
  const kinds = job.gguf ?? [];
  if (kinds.length === 0) return job;
  const withDivisors = (divisors: ReturnType<typeof quantizableDivisors>): CompressJob => ({
    ...job,
    space: { ...job.space, divisors: { ...divisors, ...job.space?.divisors } },
    forLlamaCpp: true,
  });
  const preferred = withDivisors(quantizableDivisors(model, kinds));
  return hasCandidates(model, preferred) ? preferred : withDivisors(quantizableDivisors(model));
}

function hasCandidates(model: Model, job: CompressJob): boolean {
  try {
    return candidatesFor(model, job).length > 0;
  } catch (error) {
    if (error instanceof UsageError) return false; // reported later, if no other divisors help
    throw error;
  }
}

/** Identifies a run: everything that its results depend on. */
function configurationOf(job: CompressJob, settings: TrainOptions, inputs: Readonly<Record<string, string>>) {
  const { target, bitsPerWeight, space, depthMethod, maxCandidates, calibrationSamples, distillation } = job;
  const { teacherOptions, teacherCorrection, searchTokens, intermediate } = job;
  const { start, refitSamples, perLayer, rounds } = job;
  return {
    command: "compress",
    inputs,
    settings,
    target,
    bitsPerWeight,
    space,
    depthMethod,
    maxCandidates,
    calibrationSamples,
    distillation,
    teacherOptions,
    teacherCorrection,
    searchTokens,
    intermediate,
    start,
    refitSamples,
    perLayer,
    rounds: rounds === 1 ? undefined : rounds,
    gguf: isDevice(target) ? job.gguf : undefined, // they decide how much is cut
  };
}
