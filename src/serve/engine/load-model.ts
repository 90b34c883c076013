import type { LlamaContext, LlamaModel } from "node-llama-cpp";
import { openGguf } from "../../checkpoint/gguf.js";
import { ChatTemplate } from "../../data/index.js";
import {
  checkContext,
  checkSameTokens,
  fastestThreads,
  loadModel,
  openRunnable,
  type Runnable,
} from "../../generate/index.js";
import type { DeviceKind } from "../../ggml/index.js";
import { metadataString } from "../../models/gguf-config.js";
import { FormatError } from "../../system/errors.js";
import { defined } from "./defined.js";
import { FLASH_TRIAL_TOKENS, flashAttentionIsFaster } from "./flash-attention.js";
import { Slots } from "./slots.js";

export interface HostOptions {
  readonly device?: DeviceKind | "auto" | undefined;
  readonly threads?: number | undefined;
  /** Tokens of prompt and answer of each request. */
  readonly contextSize?: number | undefined;
  /** Requests that are computed together. */
  readonly slots: number;
  /** Prompt tokens that are computed at once. */
  readonly batchSize?: number | undefined;
  /**
   * A smaller GGUF model of the same tokenizer that guesses several tokens ahead, which the model then checks at once. Texts with a seed
   * are written without it.
   */
  readonly draft?: string | undefined;
  /** LoRA adapters (GGUF) and how strongly they apply. */
  readonly lora?: readonly { readonly file: string; readonly scale: number }[] | undefined;
  /** Called with what the user should know although the model is served. */
  readonly onNote?: ((note: string) => void) | undefined;
}

/** A model with the context that it computes in. */
export interface ModelContext {
  readonly model: LlamaModel;
  readonly context: LlamaContext;
}

/** A model that is ready to serve, and the parts that it is served with. */
export interface LoadedParts extends ModelContext {
  readonly draft: ModelContext | undefined;
  readonly slots: Slots;
  /** Tokens of prompt and answer that a request may have. */
  readonly contextSize: number;
  readonly template: ChatTemplate | undefined;
  /** For conversations with tools, where the model has another for them. */
  readonly toolTemplate: ChatTemplate | undefined;
  readonly vocabSize: number;
  readonly threads: number | undefined;
}

const [DEFAULT_CONTEXT, MAX_CONTEXT] = [2048, 8192];
const DEFAULT_BATCH = 512;
/** Without flash attention, the attention scores of a whole batch are in memory. */
const MAX_SCORE_BYTES = 256 << 20;

/** @throws FormatError when a file is not what it claims, CoppiceError when llama.cpp cannot run it */
export async function loadHosted(file: string, options: HostOptions): Promise<LoadedParts> {
  const target = await openRunnable(file);
  const draftTarget = options.draft === undefined ? undefined : await openRunnable(options.draft);
  const contextSize = options.contextSize ?? Math.min(MAX_CONTEXT, target.contextLength || DEFAULT_CONTEXT);
  checkContext(target, contextSize, options.onNote);
  if (draftTarget !== undefined) checkContext(draftTarget, contextSize, options.onNote);
  const { device = "auto" } = options;
  const model = await loadModel(target.file, { device, threads: options.threads });
  let draftModel: LlamaModel | undefined;
  try {
    const threads = options.threads ?? (await fastestThreads(model));
    const slots = new Slots(contextSize);
    const context = await createContext(model, target, { ...options, contextSize, threads }, slots);
    if (draftTarget !== undefined) {
      draftModel = await loadModel(draftTarget.file, { device, threads: options.threads });
      checkSameTokens(model, draftModel);
    }
    const draft = draftModel && {
      model: draftModel,
      context: await draftModel.createContext(defined({ contextSize, sequences: options.slots, threads })),
    };
    slots.fill(context, draft?.context, options.slots);
    const listed = target.metadata.get("tokenizer.ggml.tokens");
    const vocabSize = listed?.kind === "array" ? listed.value.length : 0;
    const template = chatTemplate("tokenizer.chat_template", target, model, file);
    const toolTemplate = chatTemplate("tokenizer.chat_template.tool_use", target, model, file);
    return { model, context, draft, slots, contextSize, template, toolTemplate, vocabSize, threads };
  } catch (error) {
    await model.dispose();
    await draftModel?.dispose();
    throw error;
  }
}

type ContextOptions = Pick<HostOptions, "slots" | "batchSize" | "lora" | "threads"> & { readonly contextSize: number };

async function createContext(
  model: LlamaModel,
  target: Runnable,
  { slots: sequences, batchSize, lora = [], threads, contextSize }: ContextOptions,
  { batching }: Slots,
): Promise<LlamaContext> {
  const adapters = lora.map(({ file, scale }) => ({ filePath: checkAdapter(file), scale }));
  const heads = target.heads.reduce((a, b) => Math.max(a, b), 0);
  const scoresFit = 4 * (batchSize ?? DEFAULT_BATCH) * contextSize * heads <= MAX_SCORE_BYTES;
  const trialFits = FLASH_TRIAL_TOKENS <= (target.learnedPositions ?? FLASH_TRIAL_TOKENS);
  const mayChoose = heads > 0 && scoresFit && trialFits;
  const flashAttention = mayChoose ? await flashAttentionIsFaster(model, threads) : undefined;
  return model.createContext(
    defined({
      contextSize,
      sequences,
      threads,
      batchSize,
      flashAttention,
      batching,
      lora: adapters.length > 0 ? { adapters } : undefined,
    }),
  );
}

function chatTemplate(key: string, { metadata }: Runnable, model: LlamaModel, file: string): ChatTemplate | undefined {
  const source = metadataString(metadata, key);
  const { bosString, eosString } = model.tokens;
  return source === undefined
    ? undefined
    : new ChatTemplate(source, { bos: bosString ?? "", eos: eosString ?? "" }, file);
}

/** @throws FormatError for a file that is not a LoRA adapter in GGUF: llama.cpp checks it too little */
function checkAdapter(file: string): string {
  const { metadata } = openGguf(file);
  if (metadataString(metadata, "general.type") !== "adapter")
    throw new FormatError(`${file} is not a LoRA adapter (its general.type is not "adapter")`);
  return file;
}
