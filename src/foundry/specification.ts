import { z } from "zod";
import { DEVICES, THIS_MACHINE } from "../devices/index.js";
import { isBenchmark } from "../jobs/index.js";
import { FILE_KINDS } from "../quantize/index.js";

/** What a job may be asked for. Every field is named here; one that is not is refused. */

const MOST_TOKENS = 1e12;
const id = z.uuid();
export const fileKind = z.enum(FILE_KINDS as [string, ...string[]]);
export const deviceId = z.enum([THIS_MACHINE, ...DEVICES.map((device) => device.id)]);
const name = z.string().min(1).max(120);
/** Never a file: those that the library takes, too, may be programs. */
const benchmark = z
  .string()
  .regex(/^[\w.-]{1,64}(:\d{1,3})?$/, "is no benchmark")
  .refine(isBenchmark, "is no benchmark: known are minitron, mmlu, arc_easy, piqa and so on, also NAME:EXAMPLES");
const tasks = z.array(benchmark).min(1).max(80);

const evaluation = z.strictObject({
  tasks: tasks.describe("benchmarks or groups of them, for example minitron"),
  limit: z.number().gt(0).max(1e6).optional().describe("documents of each, or that share of them where below 1"),
});

/** Makes a smaller model of a model. */
export const compressSpec = z.strictObject({
  kind: z.literal("compress").default("compress"),
  name: name.optional(),
  model: id.describe("which model is made smaller"),
  dataset: id.optional().describe("what the smaller model learns from; little stories where it is left out"),
  device: deviceId.optional().describe("what it must fit: architecture and type are chosen where they are not given"),
  context_length: z
    .number()
    .int()
    .min(16)
    .max(1 << 20)
    .optional()
    .describe("tokens of prompt and answer on the device"),
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
    .describe("types of GGUF files; what suits the device, or q8_0"),
  tokens: z.number().int().min(1).max(MOST_TOKENS).default(2_000_000).describe("tokens to distil on"),
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
    .optional(),
  candidates: z.number().int().min(1).max(100).optional().describe("architectures that are measured at most"),
  teacher_correction: z.boolean().optional().describe("adapt the teacher to the data first"),
  evaluate: evaluation.optional().describe("benchmarks for teacher, pruned model and student"),
});
export type CompressSpec = z.infer<typeof compressSpec>;

/** Measures a model on benchmarks. */
export const evaluateSpec = z.strictObject({
  kind: z.literal("evaluate"),
  name: name.optional(),
  model: id,
  ...evaluation.shape,
});
export type EvaluateSpec = z.infer<typeof evaluateSpec>;

export const jobSpec = z.union([compressSpec, evaluateSpec]);
export type JobSpec = z.infer<typeof jobSpec>;
