import {
  type ControlledEvaluateInputItem,
  type LlamaContext,
  type LlamaEmbeddingContext,
  LlamaGrammarEvaluationState,
  type LlamaModel,
  type Token,
  TokenBias,
} from "node-llama-cpp";
import { openGguf } from "../../checkpoint/gguf.js";

import {
  checkContext,
  checkSameTokens,
  fastestThreads,
  loadModel,
  openRunnable,
  promptTokens,
  type SpecialTokens,
} from "../../generate/index.js";

import type { DeviceKind } from "../../ggml/index.js";
import { metadataString } from "../../models/gguf-config.js";
import { FormatError } from "../../system/errors.js";
import { ApiError, contextExceeded } from "../errors.js";
import { checkGrammar } from "../grammar/index.js";
import { ChatTemplate } from "./chat-template.js";
import { FLASH_TRIAL_TOKENS, flashAttentionIsFaster } from "./flash-attention.js";
import { ALONE, type Slot, Slots } from "./slots.js";
import { StopTexts } from "./stop-texts.js";
import { TokenBytes, tokenText } from "./token-bytes.js";
import { DETOKENIZE_AFTER, TokenDecoder } from "./token-decoder.js";
import { TokenTrail } from "./token-trail.js";
import type { TemplateMessage } from "./tools.js";
import type { Piece, TokenLogprob, WriteRequest, Written, WrittenToken } from "./written.js";

export interface HostOptions {
  readonly device?: DeviceKind | "auto" | undefined;
  readonly threads?: number | undefined;
  /** Tokens of prompt and answer of each request. */
  readonly contextSize?: number | undefined;
  /** Requests that are computed together. */
  readonly slots: number;
  /** Tokens of prompts that are computed at once. */
  readonly batchSize?: number | undefined;
  /** A smaller GGUF model of the same tokenizer that guesses several tokens ahead, which the model then checks at once. */
  readonly draft?: string | undefined;
  /** LoRA adapters (GGUF) and how strong they are. */
  readonly lora?: readonly { readonly file: string; readonly scale: number }[] | undefined;
}

export interface ChatPromptOptions {
  /** Tools as the template takes them. */
  readonly tools?: readonly unknown[] | undefined;
  /** What the answer begins with. */
  readonly opening?: string | undefined;
  /** More that the template reads. */
  readonly variables?: Readonly<Record<string, unknown>> | undefined;
}

interface Sampled {
  readonly token: Token;
  readonly probabilities?: Map<Token, number> | undefined;
}

const [DEFAULT_CONTEXT, MOST_CONTEXT] = [2048, 8192];
const DEFAULT_BATCH = 512;
/** Below, the most probable token is taken: logits divided by less overflow. */
const LEAST_TEMPERATURE = 1e-4;
/** Without flash attention, the scores of a batch are held whole. */
const MOST_SCORE_BYTES = 256 << 20;
/** Tokens that an embedding is made of. */
const MOST_EMBEDDED = 8192;

/** A model in memory that writes for several at once. llama.cpp computes what they ask for together. */
export class HostedModel {
  private embedder: Promise<LlamaEmbeddingContext> | undefined;
  private readonly bytes: TokenBytes;

  private constructor(
    private readonly model: LlamaModel,
    private readonly context: LlamaContext,
    private readonly draft: { readonly model: LlamaModel; readonly context: LlamaContext } | undefined,
    private readonly slots: Slots,
    /** Tokens of prompt and answer that a request may have. */
    readonly contextSize: number,
    private readonly template: ChatTemplate | undefined,
    private readonly vocabSize: number,
    private readonly threads: number | undefined,
  ) {
    this.bytes = new TokenBytes(model);
  }

  /** @throws FormatError when the file is not what it claims, CoppiceError when llama.cpp cannot run it */
  static async open(file: string, options: HostOptions): Promise<HostedModel> {
    const target = await openRunnable(file);
    const draftTarget = options.draft === undefined ? undefined : await openRunnable(options.draft);
    const { metadata } = target;
    const { device = "auto", slots: sequences, batchSize, lora = [] } = options;
    const contextSize = options.contextSize ?? Math.min(MOST_CONTEXT, target.contextLength || DEFAULT_CONTEXT);
    for (const of of [target, draftTarget]) if (of !== undefined) checkContext(of, contextSize);
    const loading = { device, ...(options.threads !== undefined && { threads: options.threads }) };
    const model = await loadModel(target.file, loading);
    let draftModel: LlamaModel | undefined;
    try {
      const threads = options.threads ?? (await fastestThreads(model));
      const shared = { contextSize, sequences, ...(threads !== undefined && { threads }) };
      const adapters = lora.map(({ file: filePath, scale }) => ({ filePath: checkAdapter(filePath), scale }));
      const heads = target.heads.reduce((a, b) => Math.max(a, b), 0);
      const mayHoldScores = 4 * (batchSize ?? DEFAULT_BATCH) * contextSize * heads <= MOST_SCORE_BYTES;
      const mayTry = heads > 0 && FLASH_TRIAL_TOKENS <= (target.learntPositions ?? FLASH_TRIAL_TOKENS);
      const flashAttention = mayTry && mayHoldScores ? await flashAttentionIsFaster(model, threads) : undefined;
      const slots = new Slots(contextSize);
      const context = await model.createContext({
        ...shared,
        ...(batchSize !== undefined && { batchSize }),
        ...(flashAttention !== undefined && { flashAttention }),
        batching: slots.batching,
        ...(adapters.length > 0 && { lora: { adapters } }),
      });
      if (draftTarget !== undefined) {
        draftModel = await loadModel(draftTarget.file, loading);
        checkSameTokens(model, draftModel);
      }
      const draft = draftModel && { model: draftModel, context: await draftModel.createContext(shared) };
      slots.fill(context, draft?.context, sequences);
      const source = metadataString(metadata, "tokenizer.chat_template");
      const listed = metadata.get("tokenizer.ggml.tokens");
      const vocabSize = listed?.kind === "array" ? listed.value.length : 0;
      const { bosString: bos, eosString: eos } = model.tokens;
      const specials = { bos: bos ?? "", eos: eos ?? "" };
      const template = source === undefined ? undefined : new ChatTemplate(source, specials, file);
      return new HostedModel(model, context, draft, slots, contextSize, template, vocabSize, threads);
    } catch (error) {
      await model.dispose();
      await draftModel?.dispose();
      throw error;
    }
  }

  /** How the model was taught to read conversations (Jinja), where it was. */
  get templateSource(): string | undefined {
    return this.template?.source;
  }

  /** What its file says of it, but lists. */
  get scalars(): Readonly<Record<string, string | number | boolean>> {
    const found: Record<string, string | number | boolean> = {};
    const walk = (value: unknown, at: string) => {
      if (typeof value === "bigint") found[at] = Number(value);
      else if (typeof value === "string" || typeof value === "number" || typeof value === "boolean") found[at] = value;
      else if (typeof value === "object" && value !== null && !Array.isArray(value))
        for (const [key, inner] of Object.entries(value)) walk(inner, at === "" ? key : `${at}.${key}`);
    };
    walk(this.model.fileInfo.metadata, "");
    delete found["tokenizer.chat_template"];
    return found;
  }

  /** What kind of model it is, as llama.cpp describes it. */
  get facts(): { readonly architecture: string; readonly parameters: number; readonly dtype: string } {
    const { fileInfo, typeDescription } = this.model;
    const parameters = (fileInfo.fullTensorInfo ?? []).reduce(
      (sum, { dimensions }) => sum + dimensions.reduce<number>((product, size) => product * Number(size), 1),
      0,
    );
    const dtype = typeDescription.split(" ").slice(2).join(" ") || "unknown"; // llama 1B Q4_K - Medium
    return { architecture: fileInfo.metadata.general.architecture, parameters, dtype };
  }

  /** Bytes of its weights. */
  get weightBytes(): number {
    return this.model.size;
  }

  /** Tokens that an embedding can be made of. */
  get mostEmbedded(): number {
    return Math.min(this.contextSize, MOST_EMBEDDED) - 1;
  }

  /** Share of the cache that holds something. */
  get cacheUse(): number {
    return this.slots.use;
  }

  /** Bytes that the model, its cache and its draft take. */
  get memoryBytes(): number {
    const own = { model: this.model, context: this.context };
    return (this.draft === undefined ? [own] : [own, this.draft]).reduce((sum, { model, context }) => {
      const { ram, vram } = context.memoryUsage;
      return sum + model.size + ram + vram;
    }, 0);
  }

  /** @param special whether special tokens that are written out mean themselves */
  tokenize(text: string, special = false): Token[] {
    return this.model.tokenize(text, special);
  }

  /** Ids as tokens: llama.cpp must see none that it does not have. @throws ApiError 400 */
  tokensOf(ids: readonly number[], param: string): Token[] {
    const beyond = ids.find((id) => id >= this.vocabSize);
    if (beyond !== undefined)
      throw new ApiError(400, `${param}: there is no token ${beyond}, the model has ${this.vocabSize}`, { param });
    return ids as Token[];
  }

  /** @throws ApiError 400 for an id that is no token's */
  detokenize(ids: readonly number[]): string {
    const tokens = this.tokensOf(ids, "tokens");
    return this.model.detokenize(tokens, false);
  }

  /** Tokens of a text to be continued. Special tokens that are written out mean themselves unless told otherwise. */
  promptOf(text: string, special: SpecialTokens = {}): Token[] {
    return promptTokens(this.model, text, special);
  }

  /** Whether a prompt begins with the token that {@link promptOf} puts there. */
  begins(prompt: readonly Token[]): boolean {
    return prompt[0] !== undefined && prompt[0] === this.model.tokens.bos;
  }

  /**
   * Tokens of a conversation in the form that the model was taught; a plain one where it was taught none.
   * @throws ApiError 400 when the model's template does not take the messages
   */
  chatPrompt(messages: readonly TemplateMessage[], given: ChatPromptOptions = {}): Token[] {
    const { tools = [], opening = "", variables = {} } = given;
    if (this.template === undefined) {
      const turns = messages.map(({ role, content }) => `${role}: ${content}\n`);
      return this.promptOf(`${turns.join("")}assistant:${opening}`, { parseSpecial: false }); // there are none in such a form
    }
    const tokens = this.tokenize(this.template.render(messages, tools, variables) + opening, true);
    const { bos, shouldPrependBosToken: begins } = this.model.tokens;
    return begins && bos !== null && tokens[0] !== bos ? [bos, ...tokens] : tokens;
  }

  /** What a text means, as a vector of length 1. @throws ApiError when it does not fit */
  async embedding(tokens: readonly Token[], signal: AbortSignal): Promise<readonly number[]> {
    const contextSize = Math.min(this.contextSize, MOST_EMBEDDED);
    if (tokens.length === 0) throw new ApiError(400, "an input is empty", { param: "input" });
    if (tokens.length >= contextSize) throw contextExceeded(tokens.length, contextSize, "input");
    const { threads } = this;
    this.embedder ??= this.model.createEmbeddingContext({
      contextSize,
      batchSize: contextSize,
      ...(threads !== undefined && { threads }),
    });
    const embedder = await this.embedder;
    signal.throwIfAborted();
    const { vector } = await embedder.getEmbeddingFor([...tokens]);
    const length = Math.hypot(...vector);
    return vector.map((value) => value / (length || 1));
  }

  /**
   * Writes after a prompt. What it has in common with what a free slot computed before is not computed again.
   * @throws ApiError when the prompt does not fit; the signal's reason when it is aborted
   */
  async *write(request: WriteRequest): AsyncGenerator<Piece, Written> {
    const { prompt, signal } = request;
    this.checkLength(prompt);
    const room = this.contextSize - prompt.length;
    const limit = Math.min(request.maxTokens ?? room, room);
    const slot = this.slots.take(prompt);
    try {
      return yield* this.writeIn(slot, request, limit, signal);
    } finally {
      slot.busy = false;
    }
  }

  /**
   * How probable each token of a prompt is after those before it; the first comes after nothing. A prompt that is then written
   * after is found in the cache.
   */
  async promptLogprobs(prompt: readonly Token[], top: number, signal: AbortSignal): Promise<WrittenToken[]> {
    this.checkLength(prompt);
    const slot = this.slots.take(prompt);
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
      const decoder = new TokenDecoder(this.model, []);
      return prompt.map((token, i) => {
        const text = decoder.push(token);
        const before = prompt.slice(Math.max(0, i - DETOKENIZE_AFTER), i);
        const { logits, totalLogitWeight = 1 } = outputs[i - 1]?.next ?? {};
        if (logits === undefined) return { ...this.named(token, before, null), top: null, width: [...text].length };
        const shift = Math.max(...logits.values()) + Math.log(totalLogitWeight);
        const probabilities = new Map([...logits].map(([id, logit]) => [id, Math.exp(logit - shift)]));
        return this.logprobs(token, probabilities, top, before, text);
      });
    } finally {
      slot.busy = false;
    }
  }

  private checkLength(prompt: readonly Token[]): void {
    if (prompt.length === 0) throw new ApiError(400, "the prompt is empty", { param: "prompt" });
    if (prompt.length >= this.contextSize) throw contextExceeded(prompt.length, this.contextSize, "prompt");
  }

  private async *writeIn(
    slot: Slot,
    request: WriteRequest,
    limit: number,
    signal: AbortSignal,
  ): AsyncGenerator<Piece, Written> {
    const prompt = [...request.prompt];
    const grammar = request.grammar && (await this.grammarState(request.grammar));
    const { sequence } = slot;
    let computed = () => {};
    const done = new Promise<void>((resolve) => {
      computed = resolve;
    });
    try {
      const before = this.slots.takeOver(slot, prompt, signal);
      slot.prefill = { prompt, done };
      await before;
      await sequence.adaptStateToTokens(prompt.slice(0, -1), false);
      const cachedTokens = sequence.nextTokenIndex;
      slot.alone = request.seed !== undefined;
      // what is computed alone begins with the prompt's last token, whether the others were cached or not
      if (slot.alone) await sequence.evaluateWithoutGeneratingNewTokens(prompt.slice(cachedTokens, -1));
      const wantsTop = request.topLogprobs !== undefined;
      const all: Token[] = [];
      const generated = sequence.evaluateWithMetadata(
        prompt.slice(sequence.nextTokenIndex),
        { probabilities: wantsTop },
        {
          ...this.samplingOf(request, all, limit),
          ...(slot.alone && { evaluationPriority: ALONE }),
          yieldEogToken: true,
          ...(grammar && { grammarEvaluationState: () => grammar.current as LlamaGrammarEvaluationState }),
        },
      );
      const stops = new StopTexts(request.stops);
      const decoder = new TokenDecoder(this.model, all, request.special);
      const trail = new TokenTrail();
      let finishReason: Written["finishReason"] = "length";
      const next = () => {
        slot.awaiting = true;
        const result = generated.next();
        result.catch(() => {}); // it may fail before it is waited for
        return result;
      };
      let coming = limit > 0 ? next() : undefined;
      try {
        while (coming !== undefined) {
          const { done, value } = await coming;
          coming = undefined;
          slot.awaiting = false;
          computed();
          slot.prefill = undefined;
          signal.throwIfAborted();
          if (done) break;
          const { token, probabilities = new Map() } = value as Sampled;
          if (this.model.isEogToken(token) && !request.ignoreEnd) {
            finishReason = "stop";
            break;
          }
          const last = all.slice(-DETOKENIZE_AFTER);
          const text = decoder.push(token);
          grammar?.push(text);
          if (wantsTop) trail.push(this.logprobs(token, probabilities, request.topLogprobs ?? 0, last, text), text);
          const shown = stops.push(text);
          if (stops.found !== undefined) finishReason = "stop";
          // the next token is computed while this one is on its way
          else if (all.length < limit) coming = next();
          if (shown !== "") yield { text: shown, tokens: trail.show(shown) };
        }
      } finally {
        await coming?.catch(() => {});
        slot.awaiting = false;
        await generated.return();
      }
      const isStopped = stops.found !== undefined;
      const rest = isStopped ? "" : stops.push(decoder.end()) + stops.end();
      const tokens = [...trail.show(rest), ...trail.end(isStopped)];
      if (rest !== "" || tokens.length > 0) yield { text: rest, tokens };
      return {
        finishReason,
        stoppedAt: stops.found,
        promptTokens: prompt.length,
        cachedTokens,
        completionTokens: all.length,
      };
    } finally {
      slot.prefill = undefined;
      computed();
    }
  }

  /** A grammar that is followed from the beginning, or from where a text was written. */
  private async grammarState({ text, param, after }: NonNullable<WriteRequest["grammar"]>) {
    checkGrammar(text, param);
    const grammar = await this.model.llama.createGrammar({ grammar: text }).catch(() => {
      throw new ApiError(400, "the grammar begins a rule with itself: llama.cpp cannot follow that", { param });
    });
    const state = new LlamaGrammarEvaluationState({ model: this.model, grammar });
    let seen = "";
    const follow = {
      current: after === undefined ? state : undefined,
      push: (written: string) => {
        if (after === undefined || follow.current !== undefined) return;
        seen = (seen + written).slice(-after.length - written.length);
        const at = seen.lastIndexOf(after);
        // what stands behind it in the same token is not followed
        if (at >= 0 && seen.slice(at + after.length).trim() === "") follow.current = state;
      },
    };
    return follow;
  }

  private samplingOf(request: WriteRequest, written: Token[], limit: number) {
    const { topP = 1, topK = 0, minP = 0, seed, logitBias } = request;
    const temperature = request.temperature < LEAST_TEMPERATURE ? 0 : request.temperature;
    const { presencePenalty, frequencyPenalty, repetitionPenalty: penalty = 1, penaltyWindow = limit } = request;
    const bias = logitBias === undefined ? undefined : new TokenBias(this.model.tokenizer);
    const biased = this.tokensOf(Object.keys(logitBias ?? {}).map(Number), "logit_bias");
    for (const token of biased) bias?.set(token, { logit: logitBias?.[token] ?? 0 });
    const isSaid = presencePenalty !== undefined || frequencyPenalty !== undefined || penalty !== 1;
    const punishes = isSaid && penaltyWindow > 0;
    return {
      temperature,
      topP,
      topK,
      minP,
      ...(seed !== undefined && { seed }),
      ...(bias && { tokenBias: bias }),
      ...(punishes && {
        repeatPenalty: {
          punishTokens: () => written,
          maxPunishTokens: Math.max(1, penaltyWindow),
          penalty,
          ...(presencePenalty !== undefined && { presencePenalty }),
          ...(frequencyPenalty !== undefined && { frequencyPenalty }),
        },
      }),
    };
  }

  private logprobs(
    token: Token,
    probabilities: Map<Token, number>,
    count: number,
    before: readonly Token[],
    added: string,
  ): WrittenToken {
    const top: TokenLogprob[] = [];
    for (const [id, probability] of probabilities) {
      if (top.length >= count) break;
      top.push(this.named(id, before, Math.log(probability)));
    }
    const own = this.named(token, before, Math.log(probabilities.get(token) ?? 0));
    return { ...own, top, width: [...added].length };
  }

  private named(token: Token, before: readonly Token[], logprob: number | null): TokenLogprob {
    const bytes = this.bytes.of(token, before);
    return { token: tokenText(bytes), bytes: [...bytes], logprob };
  }

  async dispose(): Promise<void> {
    await (await this.embedder)?.dispose();
    await this.context.dispose();
    await this.model.dispose();
    await this.draft?.context.dispose();
    await this.draft?.model.dispose();
  }
}

/** @throws FormatError for what is no adapter in GGUF: llama.cpp reads it without much care */
function checkAdapter(file: string): string {
  const { metadata } = openGguf(file);
  if (metadataString(metadata, "general.type") !== "adapter")
    throw new FormatError(`${file} is no LoRA adapter (general.type is not "adapter")`);
  return file;
}
