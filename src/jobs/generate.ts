import { type CompletionOptions, Engine, type EngineOptions, type Generation } from "../generate/index.js";
import type { FileKind } from "../quantize/index.js";
import type { JobOptions } from "./environment.js";
import { runnableGguf } from "./export.js";

export interface OpenEngineJob extends JobOptions, Omit<EngineOptions, "device" | "threads" | "draft"> {
  readonly model: string;
  /** A smaller MODEL of the same tokenizer that guesses ahead. */
  readonly draftModel?: string | undefined;
  /** The type to export a directory to; as stored by default. */
  readonly kind?: FileKind | undefined;
}

/**
 * Makes a MODEL ready to write, exporting it to the cache first where it is no GGUF file.
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
  const { device, threads, contextSize, draftTokens } = job;
  return Engine.open(file, {
    ...(device && { device }),
    threads,
    contextSize,
    draftTokens,
    draft,
  });
}

export interface GenerateJob extends OpenEngineJob {
  readonly prompt: string;
  readonly sampling?: CompletionOptions | undefined;
}

export interface GenerateOutcome extends Generation {
  /** With a draft: the speed without it, on the same number of tokens. */
  readonly withoutDraft?: { readonly tokensPerSecond: number; readonly speedUp: number } | undefined;
}

const DEFAULT_TOKENS = 256;

/**
 * Continues a text. With a draft model it is written a second time without, to tell what the draft gained.
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
  const sampling: CompletionOptions = {
    maxTokens: DEFAULT_TOKENS,
    ...job.sampling,
    ...(job.signal && { signal: job.signal }),
  };
  const engine = await openEngine(job);
  const written = await engine.complete(job.prompt, sampling).finally(() => engine.dispose());
  if (job.draftModel === undefined) return written;
  const { draftModel: _, ...alone } = job;
  const plain = await openEngine(alone);
  const { onText: __, ...silent } = sampling;
  const again = await plain
    .complete(job.prompt, { ...silent, maxTokens: written.tokens })
    .finally(() => plain.dispose());
  const { tokensPerSecond } = again;
  return { ...written, withoutDraft: { tokensPerSecond, speedUp: written.tokensPerSecond / tokensPerSecond } };
}
