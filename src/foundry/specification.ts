import { z } from "zod";
import { DEVICES, THIS_MACHINE } from "../devices/index.js";
import { DEVICE_KINDS } from "../ggml/index.js";
import { isBenchmark } from "../jobs/index.js";
import { FILE_KINDS } from "../quantize/index.js";
import { storedText } from "./store/storable.js";

/** What jobs can do. Unknown fields are refused. */

const MAX_TOKENS = 1e12;
const id = z.uuid();
export const fileKind = z.enum(FILE_KINDS as [string, ...string[]]);
export const deviceId = z.enum([THIS_MACHINE, ...DEVICES.map((device) => device.id)]);
/** The name that a user gives to a job, model or data set. */
export const displayName = z
  .string()
  .min(1)
  .max(120)
  .refine((name) => storedText(name) === name, "contains the character U+0000");
/** Tokens of prompt and answer on a device. */
export const contextLength = z
  .number()
  .int()
  .min(16)
  .max(1 << 20);
/** Names only: the library also takes task files, which can be programs. */
const benchmark = z
  .string()
  .regex(/^[\w.-]{1,64}(:\d{1,3})?$/, "is not a benchmark")
  .refine(isBenchmark, "is not a benchmark: choose minitron, mmlu, arc_easy, piqa and so on, also as NAME:EXAMPLES");
const tasks = z.array(benchmark).min(1).max(80);

const evaluation = z.strictObject({
  tasks: tasks.describe("benchmarks or groups, for example minitron"),
  limit: z.number().gt(0).max(1e6).optional().describe("documents of each benchmark; below 1, that share of them"),
});

/** What a job asks of the worker that does it. */
const requirements = z.strictObject({
  device: z.enum(DEVICE_KINDS).optional().describe("where it computes"),
  memory_bytes: z
    .number()
    .int()
    .min(1)
    .max(2 ** 50)
    .optional()
    .describe("memory of that device"),
  ranks: z.number().int().min(1).max(65_536).optional().describe("processes that share the job, started by MPI"),
});
const requires = requirements.optional().describe("what a worker must have to take the job; it waits for one that has");

/** Makes a model smaller. */
export const compressSpec = z.strictObject({
  kind: z.literal("compress").default("compress"),
  name: displayName.optional(),
  model: id.describe("the model to make smaller"),
  dataset: id.optional().describe("the data to distill on; the built-in stories by default"),
  device: deviceId
    .optional()
    .describe("the device to fit; it decides on target and quantization where they are left out"),
  context_length: contextLength.optional().describe("tokens of prompt and answer on the device"),
  target: z
    .string()
    .regex(/^[\w.=,/]{1,2000}$/)
    .optional()
    .describe("8.4B (parameters), 0.67x (share), 4GiB (weights), sizes: hidden=4096,ffn=11520, or 1x to cut nothing"),
  quantization: z
    .array(fileKind)
    .min(1)
    .max(6)
    .optional()
    .describe("types of the GGUF files; by default what suits the device, or q8_0"),
  tokens: z.number().int().min(1).max(MAX_TOKENS).default(2_000_000).describe("tokens to distill on"),
  sequence_length: z
    .number()
    .int()
    .min(8)
    .max(1 << 17)
    .optional(),
  batch_size: z.number().int().min(1).max(4096).optional(),
  learning_rate: z.number().gt(0).max(1).optional(),
  seed: z
    .number()
    .int()
    .min(0)
    .max(2 ** 31 - 1)
    .optional(),
  calibration_samples: z
    .number()
    .int()
    .min(1)
    .max(1 << 20)
    .optional()
    .describe("sequences by which the importance of each channel is judged"),
  refit_samples: z
    .number()
    .int()
    .min(1)
    .max(1 << 20)
    .optional()
    .describe("sequences that the cut is refitted on"),
  candidates: z.number().int().min(1).max(100).optional().describe("how many architectures to measure at most"),
  teacher_correction: z.boolean().optional().describe("adapt the teacher to the data before distillation"),
  evaluate: evaluation.optional().describe("benchmarks for teacher, pruned model and student"),
  requires,
});
export type CompressSpec = z.infer<typeof compressSpec>;

/** Measures a model on benchmarks. */
export const evaluateSpec = z.strictObject({
  kind: z.literal("evaluate"),
  name: displayName.optional(),
  model: id,
  ...evaluation.shape,
  requires,
});
export type EvaluateSpec = z.infer<typeof evaluateSpec>;

export const jobSpec = z.union([compressSpec, evaluateSpec]);
export type JobSpec = z.infer<typeof jobSpec>;
