import type { ControlledEvaluateInputItem, LlamaEmbeddingContext, Token } from "node-llama-cpp";
import { type ChatTemplate, ConversationError, type TemplateMessage, type TemplateOptions } from "../../data/index.js";
import { promptTokens, type SpecialTokens, tokenize } from "../../generate/index.js";
import { ApiError, contextExceeded } from "../errors.js";
import { defined } from "./defined.js";
import { generateText } from "./generate-text.js";
import { type HostOptions, type LoadedParts, loadHosted } from "./load-model.js";
import { CONTEXT_TOKENS, TokenDecoder } from "./token-decoder.js";
import { checkTokenIds } from "./token-ids.js";
import { TokenLogprobs } from "./token-logprobs.js";
import type { TextChunk, WriteRequest, WriteResult, WrittenToken } from "./writing.js";

export type { HostOptions } from "./load-model.js";

export interface ChatPromptOptions {
  /** Tools as the template takes them. */
  readonly tools?: readonly unknown[] | undefined;
  /** The beginning of the answer. */
  readonly opening?: string | undefined;
  /** More variables of the template. */
  readonly variables?: Readonly<Record<string, unknown>> | undefined;
}

/** Tokens of a text to embed. */
const MAX_EMBEDDED = 8192;

/** @throws ApiError 400 when the template does not take the messages */
function rendered(template: ChatTemplate, messages: readonly TemplateMessage[], options: TemplateOptions): string {
  try {
    return template.render(messages, options);
  } catch (error) {
    if (!(error instanceof ConversationError)) throw error;
    throw new ApiError(400, error.message, { param: error.fault === "messages" ? "messages" : "model" });
  }
}

/** A model in memory that writes for several requests at once; llama.cpp computes them together. */
export class HostedModel {
  private embedder: Promise<LlamaEmbeddingContext> | undefined;
  private readonly logprobs: TokenLogprobs;

  private constructor(private readonly parts: LoadedParts) {
    this.logprobs = new TokenLogprobs(parts.model);
  }

  /** @throws FormatError when the file is not what it claims, CoppiceError when llama.cpp cannot run it */
  static async open(file: string, options: HostOptions): Promise<HostedModel> {
    return new HostedModel(await loadHosted(file, options));
  }

  /** Tokens of prompt and answer that a request may have. */
  get contextSize(): number {
    return this.parts.contextSize;
  }

  /** The model's chat template (Jinja), if it has one. */
  get templateSource(): string | undefined {
    return this.parts.template?.source;
  }

  /** The template for a conversation with these tools. */
  templateFor(tools: readonly unknown[]): ChatTemplate | undefined {
    const { template, toolTemplate } = this.parts;
    return tools.length > 0 ? (toolTemplate ?? template) : template;
  }

  /** The file's metadata, without lists and the chat template. */
  get scalars(): Readonly<Record<string, string | number | boolean>> {
    const found: Record<string, string | number | boolean> = {};
    const walk = (value: unknown, at: string) => {
      if (typeof value === "bigint") found[at] = Number(value);
      else if (typeof value === "string" || typeof value === "number" || typeof value === "boolean") found[at] = value;
      else if (typeof value === "object" && value !== null && !Array.isArray(value))
        for (const [key, inner] of Object.entries(value)) walk(inner, at === "" ? key : `${at}.${key}`);
    };
    walk(this.parts.model.fileInfo.metadata, "");
    return Object.fromEntries(Object.entries(found).filter(([key]) => !key.startsWith("tokenizer.chat_template")));
  }

  /** Architecture, size and type of weights, as llama.cpp names them. */
  get facts(): { readonly architecture: string; readonly parameters: number; readonly dtype: string } {
    const { fileInfo, typeDescription } = this.parts.model;
    const parameters = (fileInfo.fullTensorInfo ?? []).reduce(
      (sum, { dimensions }) => sum + dimensions.reduce<number>((product, size) => product * Number(size), 1),
      0,
    );
    const dtype = typeDescription.split(" ").slice(2).join(" ") || "unknown"; // llama 1B Q4_K - Medium
    return { architecture: fileInfo.metadata.general.architecture, parameters, dtype };
  }

  get weightBytes(): number {
    return this.parts.model.size;
  }

  /** Tokens that a text to embed may have. */
  get maxEmbedded(): number {
    return Math.min(this.contextSize, MAX_EMBEDDED) - 1;
  }

  /** Share of the cache that is in use. */
  get cacheUse(): number {
    return this.parts.slots.use;
  }

  /** Bytes of the model, its draft and their caches. */
  get memoryBytes(): number {
    const { draft } = this.parts;
    return (draft === undefined ? [this.parts] : [this.parts, draft]).reduce((sum, { model, context }) => {
      const { ram, vram } = context.memoryUsage;
      return sum + model.size + ram + vram;
    }, 0);
  }

  /** @param special whether special tokens that are written out mean themselves */
  tokenize(text: string, special = false): Token[] {
    return tokenize(this.parts.model, text, special);
  }

  /** @param param the request's field that the ids come from @throws ApiError 400 for an id outside the vocabulary */
  tokensOf(ids: readonly number[], param: string): Token[] {
    return checkTokenIds(ids, this.parts.vocabSize, param);
  }

  /** @throws ApiError 400 for an id outside the vocabulary */
  detokenize(ids: readonly number[]): string {
    return this.parts.model.detokenize(this.tokensOf(ids, "tokens"), false);
  }

  /** Tokens of a text to be continued. Special tokens that are written out mean themselves by default. */
  promptOf(text: string, special: SpecialTokens = {}): Token[] {
    return promptTokens(this.parts.model, text, special);
  }

  /** Whether a prompt begins with the begin token. */
  begins(prompt: readonly Token[]): boolean {
    return prompt[0] !== undefined && prompt[0] === this.parts.model.tokens.bos;
  }

  /**
   * Tokens of a conversation in the form of the model's chat template; in a plain form where it has none.
   * @throws ApiError 400 when the template does not take the messages
   */
  chatPrompt(messages: readonly TemplateMessage[], options: ChatPromptOptions = {}): Token[] {
    const { tools = [], opening = "", variables = {} } = options;
    const { model } = this.parts;
    const template = this.templateFor(tools);
    if (template === undefined) {
      const turns = messages.map(({ role, content }) => `${role}: ${content}\n`);
      return this.promptOf(`${turns.join("")}assistant:${opening}`, { parseSpecial: false }); // the form has none
    }
    const tokens = this.tokenize(rendered(template, messages, { tools, variables, begunAnswer: true }) + opening, true);
    const { bos, shouldPrependBosToken } = model.tokens;
    return shouldPrependBosToken && bos !== null && tokens[0] !== bos ? [bos, ...tokens] : tokens;
  }

  /** Embeds a text. @returns a vector of length 1: [hidden] @throws ApiError 400 when it is empty or too long */
  async embedding(tokens: readonly Token[], signal: AbortSignal): Promise<readonly number[]> {
    const contextSize = Math.min(this.contextSize, MAX_EMBEDDED);
    if (tokens.length === 0) throw new ApiError(400, "an input is empty", { param: "input" });
    if (tokens.length >= contextSize) throw contextExceeded(tokens.length, contextSize, "input");
    const { model, threads } = this.parts;
    this.embedder ??= model.createEmbeddingContext(defined({ contextSize, batchSize: contextSize, threads }));
    const embedder = await this.embedder.catch((error: unknown) => {
      this.embedder = undefined; // there may be memory for it later
      throw error;
    });
    signal.throwIfAborted();
    const { vector } = await embedder.getEmbeddingFor([...tokens]);
    const length = Math.hypot(...vector);
    return vector.map((value) => value / (length || 1));
  }

  /**
   * Continues a prompt. What a free slot has already computed of it is not computed again.
   * @throws ApiError 400 when the prompt does not fit; the signal's reason when it is aborted
   */
  async *write(request: WriteRequest): AsyncGenerator<TextChunk, WriteResult> {
    const { prompt } = request;
    this.checkLength(prompt);
    const room = this.contextSize - prompt.length;
    const limit = Math.min(request.maxTokens ?? room, room);
    const { slots } = this.parts;
    const slot = slots.take(prompt);
    try {
      return yield* generateText({ ...this.parts, logprobs: this.logprobs }, slot, request, limit);
    } finally {
      slot.busy = false;
    }
  }

  /**
   * Log-probabilities of a prompt's tokens, each given those before it; null for the first, which follows nothing. The prompt is
   * then in the cache.
   * @param top how many of the most probable tokens to report in each place
   */
  async promptLogprobs(prompt: readonly Token[], top: number, signal: AbortSignal): Promise<WrittenToken[]> {
    this.checkLength(prompt);
    const slot = this.parts.slots.take(prompt);
    const { sequence } = slot;
    try {
      await sequence.clearHistory();
      const options = { temperature: 1, topK: 0, topP: 1, minP: 0 };
      const input = prompt.map((token, i): ControlledEvaluateInputItem => {
        const next = prompt[i + 1];
        if (next === undefined) return token;
        const filter = { tokens: [next], includeTop: Math.max(1, top) };
        return [token, { generateNext: { logits: { filter }, totalLogitWeight: true, options } }];
      });
      const outputs = await sequence.controlledEvaluate(input);
      signal.throwIfAborted();
      const decoder = new TokenDecoder(this.parts.model, []);
      return prompt.map((token, i) => {
        const placed = { token, before: prompt.slice(Math.max(0, i - CONTEXT_TOKENS), i), text: decoder.push(token) };
        const { logits, totalLogitWeight = 1 } = outputs[i - 1]?.next ?? {};
        if (logits === undefined) return this.logprobs.first(placed);
        const shift = Math.max(...logits.values()) + Math.log(totalLogitWeight);
        const probabilities = new Map([...logits].map(([id, logit]) => [id, Math.exp(logit - shift)]));
        return this.logprobs.of(placed, probabilities, top);
      });
    } finally {
      slot.busy = false;
    }
  }

  private checkLength(prompt: readonly Token[]): void {
    if (prompt.length === 0) throw new ApiError(400, "the prompt is empty", { param: "prompt" });
    if (prompt.length >= this.contextSize) throw contextExceeded(prompt.length, this.contextSize, "prompt");
  }

  async dispose(): Promise<void> {
    const { model, context, draft } = this.parts;
    await (await this.embedder?.catch(() => undefined))?.dispose();
    await context.dispose();
    await model.dispose();
    await draft?.context.dispose();
    await draft?.model.dispose();
  }
}
