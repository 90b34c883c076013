import { type CompletionOptions, Engine, type EngineOptions, type GeneratedText } from "../generate/index.js";
import type { FileKind } from "../quantize/index.js";
import { runnableGguf } from "./export.js";
import type { JobOptions } from "./job.js";

export interface OpenEngineJob extends JobOptions, Omit<EngineOptions, "device" | "threads" | "draft" | "onNote"> {
  readonly model: string;
  /** A smaller MODEL with the same tokenizer that drafts tokens ahead. */
  readonly draftModel?: string | undefined;
  /** The kind of file to export a directory to; as stored by default. */
  readonly kind?: FileKind | undefined;
}

/**
 * Loads a MODEL for generating, exporting it to the cache first if it is not a GGUF file.
 * @example
 * ```ts
 * import { openEngine } from "coppice";
 *
 * const engine = await openEngine({ model: "./smaller.gguf", contextSize: 4096 });
 * try {
 *   const { text, tokensPerSecond } = await engine.complete("Once upon a time", { maxTokens: 64, temperature: 0.8 });
 *   console.log(text, tokensPerSecond);
 * } finally {
 *   await engine.dispose();
 * }
 * ```
 */
export async function openEngine(job: OpenEngineJob): Promise<Engine> {
  const file = await runnableGguf(job.model, job);
  const draft = job.draftModel === undefined ? undefined : await runnableGguf(job.draftModel, job);
  const { device, threads, contextSize, draftTokens, onNote } = job;
  return Engine.open(file, { device, threads, contextSize, draftTokens, draft, onNote });
}

export interface GenerateJob extends OpenEngineJob {
  readonly prompt: string;
  readonly sampling?: CompletionOptions | undefined;
}

export interface GenerateOutcome extends GeneratedText {
  /** With a draft model: the speed without it, for the same number of tokens. */
  readonly withoutDraft?: { readonly tokensPerSecond: number; readonly speedUp: number } | undefined;
}

const DEFAULT_TOKENS = 256;

/**
 * Continues a text. With a draft model the text is generated again without it, to measure what it gains.
 * @example
 * ```ts
 * import { generate } from "coppice";
 *
 * const { text, withoutDraft } = await generate({
 *   model: "./model.gguf",
 *   draftModel: "./smaller.gguf",
 *   prompt: "Once upon a time",
 *   sampling: { maxTokens: 64 },
 * });
 * console.log(text, withoutDraft?.speedUp);
 * ```
 */
export async function generate(job: GenerateJob): Promise<GenerateOutcome> {
  const signal = job.signal ?? job.sampling?.signal;
  const sampling: CompletionOptions = { maxTokens: DEFAULT_TOKENS, ...job.sampling, signal };
  const generated = await complete(job, sampling);
  if (job.draftModel === undefined || signal?.aborted) return generated;
  const again = { ...sampling, onText: undefined, maxTokens: generated.tokens };
  const { tokensPerSecond } = await complete({ ...job, draftModel: undefined, onNote: undefined }, again);
  return { ...generated, withoutDraft: { tokensPerSecond, speedUp: generated.tokensPerSecond / tokensPerSecond } };
}

async function complete(job: GenerateJob, sampling: CompletionOptions): Promise<GeneratedText> {
  const engine = await openEngine(job);
  try {
    return await engine.complete(job.prompt, sampling);
  } finally {
    await engine.dispose();
  }
}
