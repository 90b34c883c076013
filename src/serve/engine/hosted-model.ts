import { Template } from "@huggingface/jinja";
import {
  type ControlledEvaluateInputItem,
  type CustomBatchingPrioritizationStrategy,
  DraftSequenceTokenPredictor,
  type LlamaContext,
  type LlamaContextSequence,
  type LlamaEmbeddingContext,
  LlamaGrammarEvaluationState,
  type LlamaModel,
  type Token,
  TokenBias,
} from "node-llama-cpp";
import { openGguf } from "../../checkpoint/gguf.js";
import { openCheckpoint } from "../../checkpoint/index.js";
import { checkRunnable, checkSameTokens, fastestThreads, loadModel } from "../../generate/index.js";
import type { DeviceKind } from "../../ggml/index.js";
import { metadataString } from "../../models/gguf-layout.js";
import { modelFromConfig } from "../../models/index.js";
import { FormatError } from "../../system/errors.js";
import { ApiError } from "../errors.js";
import { checkGrammar } from "../grammar/index.js";
import type { Sampling } from "./conversation.js";
import { flashAttentionIsFaster } from "./flash-attention.js";
import { StopTexts } from "./stop-texts.js";
import { DETOKENIZE_AFTER, TokenDecoder } from "./token-decoder.js";
import type { TemplateMessage } from "./tools.js";

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

/** What is to be written after a prompt. */
export interface WriteRequest extends Sampling {
  readonly prompt: readonly Token[];
  readonly maxTokens: number | undefined;
  /** How many of the most probable tokens to tell of, beside the one taken. */
  readonly topLogprobs?: number | undefined;
  /** What may be written: from the beginning on, or from where a text was written. */
  readonly grammar?: { readonly text: string; readonly param: string; readonly after?: string | undefined } | undefined;
  /** Whether special tokens are shown as text. */
  readonly special?: boolean | undefined;
  readonly signal: AbortSignal;
}

export interface TokenLogprob {
  readonly token: string;
  readonly bytes: readonly number[];
  readonly logprob: number;
}

export interface WrittenToken extends TokenLogprob {
  readonly top: readonly TokenLogprob[];
  /** Code points that it adds to the text; a letter of several tokens comes with the last of them. */
  readonly width: number;
}

/** Some text as it was written. */
export interface Piece {
  readonly text: string;
  /** Of the tokens that were written since the piece before; only where they were asked for. */
  readonly tokens: readonly WrittenToken[];
}

export interface Written {
  readonly finishReason: "stop" | "length";
  /** The text that it stopped at, where it was one of the request's. */
  readonly stoppedAt: string | undefined;
  readonly promptTokens: number;
  /** Of these, found in the cache. */
  readonly cachedTokens: number;
  readonly completionTokens: number;
}

interface Sampled {
  readonly token: Token;
  readonly probabilities?: Map<Token, number>;
}

/** One of the places in which a request is computed, and what is in it. */
interface Slot {
  readonly sequence: LlamaContextSequence;
  busy: boolean;
  lastUsed: number;
  /** The prompt that is being computed there, until it is. */
  prefill: { readonly prompt: readonly Token[]; readonly done: Promise<void> } | undefined;
}

/** A sequence that can take over what another one has computed: there, though not in the library's types. */
interface CopyingSequence {
  _copyStateFromOtherSequence?(other: LlamaContextSequence, upToTokenIndex: number): Promise<boolean>;
}

const [DEFAULT_CONTEXT, MOST_CONTEXT] = [2048, 8192];
const DRAFT_TOKENS = 8;
/** Copying this many tokens' keys and values is surely faster than computing them. */
const WORTH_COPYING = 16;
const DEFAULT_BATCH = 512;
/** Without flash attention, the scores of a batch are held whole. */
const MOST_SCORE_BYTES = 256 << 20;
/** Tokens of prompts in a batch while others write: they wait for the whole of it. */
const PROMPT_SHARE = 128;
/** Tokens that an embedding is made of. */
const MOST_EMBEDDED = 8192;

/** A model in memory that writes for several at once. llama.cpp computes what they ask for together. */
export class HostedModel {
  private clock = 0;
  private embedder: Promise<LlamaEmbeddingContext> | undefined;

  private constructor(
    private readonly model: LlamaModel,
    private readonly context: LlamaContext,
    private readonly draft: { readonly model: LlamaModel; readonly context: LlamaContext } | undefined,
    private readonly slots: readonly Slot[],
    /** Tokens of prompt and answer that a request may have. */
    readonly contextSize: number,
    /** How the model was taught to read conversations (Jinja), where it was. */
    readonly templateSource: string | undefined,
    private readonly template: Template | undefined,
    private readonly specials: { readonly bos: string; readonly eos: string },
    private readonly vocabSize: number,
    private readonly threads: number | undefined,
  ) {}

  /** @throws FormatError when the file is not what it claims, CoppiceError when llama.cpp cannot run it */
  static async open(file: string, options: HostOptions): Promise<HostedModel> {
    const target = checkRunnable(file);
    const { metadata } = openGguf(target.file);
    const { device = "auto", slots: sequences, batchSize, lora = [] } = options;
    const loading = { device, ...(options.threads !== undefined && { threads: options.threads }) };
    const model = await loadModel(target.file, loading);
    let draftModel: LlamaModel | undefined;
    try {
      const threads = options.threads ?? (await fastestThreads(model));
      const contextSize = options.contextSize ?? Math.min(MOST_CONTEXT, target.contextLength || DEFAULT_CONTEXT);
      const shared = { contextSize, sequences, ...(threads !== undefined && { threads }) };
      const adapters = lora.map(({ file: filePath, scale }) => ({ filePath: checkAdapter(filePath), scale }));
      const mayHoldScores =
        4 * (batchSize ?? DEFAULT_BATCH) * contextSize * queryHeads(target.file) <= MOST_SCORE_BYTES;
      const flashAttention = mayHoldScores ? await flashAttentionIsFaster(model, threads) : undefined;
      const context = await model.createContext({
        ...{ ...shared, ...(batchSize !== undefined && { batchSize }) },
        ...(flashAttention !== undefined && { flashAttention }),
        batching: { itemPrioritizationStrategy: decodingFirst },
        ...(adapters.length > 0 && { lora: { adapters } }),
      });
      if (options.draft !== undefined) {
        draftModel = await loadModel(checkRunnable(options.draft).file, loading);
        checkSameTokens(model, draftModel);
      }
      const draft = draftModel && { model: draftModel, context: await draftModel.createContext(shared) };
      const slots = Array.from({ length: sequences }, (): Slot => {
        // a guess is waited for, where the draft is no faster than the model
        const options = { minTokens: 1, maxTokens: DRAFT_TOKENS };
        const predictor = draft && new DraftSequenceTokenPredictor(draft.context.getSequence(), options);
        const sequence = context.getSequence(predictor && { tokenPredictor: predictor });
        return { sequence, busy: false, lastUsed: 0, prefill: undefined };
      });
      const source = metadataString(metadata, "tokenizer.chat_template");
      const listed = metadata.get("tokenizer.ggml.tokens");
      const vocabSize = listed?.kind === "array" ? listed.value.length : 0;
      const { bosString: bos, eosString: eos } = model.tokens;
      const template = source === undefined ? undefined : templateOf(source, file);
      const specials = { bos: bos ?? "", eos: eos ?? "" };
      return new HostedModel(
        ...([model, context, draft, slots, contextSize, source, template, specials, vocabSize, threads] as const),
      );
    } catch (error) {
      await model.dispose();
      await draftModel?.dispose();
      throw error;
    }
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

  /** Tokens of a text to be continued, with the begin token where the model has one. */
  promptOf(text: string): Token[] {
    const tokens = this.tokenize(text);
    const { bos, shouldPrependBosToken: begins } = this.model.tokens;
    return begins && bos !== null && tokens[0] !== bos ? [bos, ...tokens] : tokens;
  }

  /** Whether a prompt begins with the token that {@link promptOf} puts there. */
  begins(prompt: readonly Token[]): boolean {
    return prompt[0] !== undefined && prompt[0] === this.model.tokens.bos;
  }

  /**
   * Tokens of a conversation in the form that the model was taught; a plain one where it was taught none.
   * @param opening what the answer begins with
   * @throws ApiError 400 when the model's template does not take the messages
   */
  chatPrompt(messages: readonly TemplateMessage[], tools: readonly unknown[] = [], opening = ""): Token[] {
    if (this.template === undefined) {
      const turns = messages.map(({ role, content }) => `${role}: ${content}\n`);
      return this.promptOf(`${turns.join("")}assistant:${opening}`);
    }
    const text = this.rendered(this.template, messages, tools);
    const tokens = this.tokenize(text + opening, true);
    const { bos, shouldPrependBosToken: begins } = this.model.tokens;
    return begins && bos !== null && tokens[0] !== bos ? [bos, ...tokens] : tokens;
  }

  private rendered(template: Template, messages: readonly TemplateMessage[], tools: readonly unknown[]): string {
    const render = (own: readonly TemplateMessage[]) =>
      template.render({
        ...{ messages: own, add_generation_prompt: true, bos_token: this.specials.bos, eos_token: this.specials.eos },
        ...(tools.length > 0 && { tools }),
      });
    try {
      return render(messages);
    } catch (error) {
      const [system, user, ...rest] = messages;
      const reason = error instanceof Error ? error.message : error;
      const refused = new ApiError(400, `the model's chat template does not take these messages: ${reason}`, {
        param: "messages",
      });
      if (system?.role !== "system" || user?.role !== "user") throw refused;
      try {
        return render([{ ...user, content: `${system.content}\n\n${user.content}` }, ...rest]); // Gemma has no system
      } catch {
        throw refused;
      }
    }
  }

  /** What a text means, as a vector of length 1. @throws ApiError when it does not fit */
  async embedding(tokens: readonly Token[], signal: AbortSignal): Promise<readonly number[]> {
    const contextSize = Math.min(this.contextSize, MOST_EMBEDDED);
    if (tokens.length === 0) throw new ApiError(400, "an input is empty", { param: "input" });
    if (tokens.length >= contextSize)
      throw new ApiError(400, `an input has ${tokens.length} tokens, the model takes ${contextSize - 1}: shorten it`, {
        ...{ param: "input", code: "context_length_exceeded" },
      });
    const { threads } = this;
    this.embedder ??= this.model.createEmbeddingContext({
      ...{ contextSize, batchSize: contextSize },
      ...(threads !== undefined && { threads }),
    });
    const embedder = await this.embedder;
    signal.throwIfAborted();
    const { vector } = await embedder.getEmbeddingFor([...tokens]);
    const length = Math.hypot(...vector);
    return vector.map((value) => value / (length || 1));
  }

  /** Share of the cache that holds something. */
  get cacheUse(): number {
    const used = this.slots.reduce((sum, { sequence }) => sum + sequence.nextTokenIndex, 0);
    return used / (this.slots.length * this.contextSize);
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
    const slot = this.slotFor(prompt);
    try {
      return yield* this.writeIn(slot, request, limit, signal);
    } finally {
      slot.busy = false;
    }
  }

  /**
   * How probable each token of a prompt is after those before it: nothing is known of the first. A prompt that is then written
   * after is found in the cache.
   */
  async promptLogprobs(
    prompt: readonly Token[],
    top: number,
    signal: AbortSignal,
  ): Promise<(WrittenToken | undefined)[]> {
    this.checkLength(prompt);
    return this.inSlot(prompt, async ({ sequence }) => {
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
        const { logits, totalLogitWeight = 1 } = outputs[i - 1]?.next ?? {};
        if (logits === undefined) return undefined;
        const shift = Math.max(...logits.values()) + Math.log(totalLogitWeight);
        const probabilities = new Map([...logits].map(([id, logit]) => [id, Math.exp(logit - shift)]));
        return this.logprobs(token, probabilities, top, prompt.slice(Math.max(0, i - DETOKENIZE_AFTER), i), text);
      });
    });
  }

  private checkLength(prompt: readonly Token[]): void {
    if (prompt.length === 0) throw new ApiError(400, "the prompt is empty", { param: "prompt" });
    if (prompt.length >= this.contextSize)
      throw new ApiError(
        400,
        `the prompt has ${prompt.length} tokens, the model's context ${this.contextSize}: shorten it`,
        { param: "prompt", code: "context_length_exceeded" },
      );
  }

  private async inSlot<T>(prompt: readonly Token[], work: (slot: Slot) => Promise<T>): Promise<T> {
    const slot = this.slotFor(prompt);
    try {
      return await work(slot);
    } finally {
      slot.busy = false;
    }
  }

  /** The free slot whose content begins as the prompt does for longest; the one that was not used for longest among equals. */
  private slotFor(prompt: readonly Token[]): Slot {
    const free = this.slots.filter(({ busy }) => !busy);
    const ranked = free
      .map((slot) => ({ slot, shared: sharedLength(slot.sequence.contextTokens, prompt) }))
      .sort((a, b) => b.shared - a.shared || a.slot.lastUsed - b.slot.lastUsed);
    const best = ranked[0]?.slot;
    if (best === undefined) throw new ApiError(503, "every place of the model is taken");
    best.busy = true;
    best.lastUsed = ++this.clock;
    return best;
  }

  /**
   * Takes over what another slot has of a prompt, where it has more than this one; one that is computing it is waited for. So a
   * beginning that several requests share is computed once.
   */
  private async takeOver(slot: Slot, prompt: readonly Token[], signal: AbortSignal): Promise<void> {
    const { sequence } = slot;
    const copying = sequence as LlamaContextSequence & CopyingSequence;
    if (this.draft !== undefined || sequence.needsCheckpoints || copying._copyStateFromOtherSequence === undefined)
      return;
    const last = prompt.length - 1; // is computed in any case: what comes next depends on it
    const own = sharedLength(sequence.contextTokens, prompt);
    const sharedWith = (other: Slot) =>
      Math.min(last, sharedLength(other.prefill?.prompt ?? other.sequence.contextTokens, prompt));
    const [best] = this.slots
      .filter((other) => other !== slot)
      .map((other) => ({ other, shared: sharedWith(other) }))
      .sort((a, b) => b.shared - a.shared || a.other.lastUsed - b.other.lastUsed);
    if (best === undefined || best.shared < own + WORTH_COPYING) return;
    await best.other.prefill?.done;
    signal.throwIfAborted();
    const shared = Math.min(last, sharedLength(best.other.sequence.contextTokens, prompt));
    if (shared < own + WORTH_COPYING) return;
    const copied = await copying._copyStateFromOtherSequence(best.other.sequence, shared);
    if (!copied) await sequence.clearHistory();
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
      const before = this.takeOver(slot, prompt, signal);
      slot.prefill = { prompt, done };
      await before;
      await sequence.adaptStateToTokens(prompt.slice(0, -1), false);
      const cachedTokens = sequence.nextTokenIndex;
      const wantsTop = request.topLogprobs !== undefined;
      const all: Token[] = [];
      const generated = sequence.evaluateWithMetadata(
        prompt.slice(cachedTokens),
        { probabilities: wantsTop },
        {
          ...this.samplingOf(request, all, limit),
          yieldEogToken: true,
          ...(grammar && { grammarEvaluationState: () => grammar.current as LlamaGrammarEvaluationState }),
        },
      );
      const stops = new StopTexts(request.stops);
      const decoder = new TokenDecoder(this.model, all, request.special);
      let tokens: WrittenToken[] = [];
      let finishReason: Written["finishReason"] = "length";
      let coming = limit > 0 ? generated.next() : undefined;
      try {
        while (coming !== undefined) {
          const { done, value } = await coming;
          coming = undefined;
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
          if (wantsTop) tokens.push(this.logprobs(token, probabilities, request.topLogprobs ?? 0, last, text));
          const shown = stops.push(text);
          if (stops.found !== undefined) finishReason = "stop";
          // the next token is computed while this one is on its way
          else if (all.length < limit) coming = generated.next();
          if (shown !== "" || (text !== "" && tokens.length > 0)) {
            yield { text: shown, tokens };
            tokens = [];
          }
        }
      } finally {
        await coming?.catch(() => {});
        await generated.return();
      }
      const rest = stops.found === undefined ? stops.push(decoder.end()) + stops.end() : "";
      if (rest !== "" || tokens.length > 0) yield { text: rest, tokens };
      return {
        ...{ finishReason, stoppedAt: stops.found, promptTokens: prompt.length, cachedTokens },
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
    const { temperature, topP = 1, topK = 0, minP = 0, seed, logitBias } = request;
    const { presencePenalty, frequencyPenalty, repetitionPenalty: penalty = 1 } = request;
    const bias = logitBias === undefined ? undefined : new TokenBias(this.model.tokenizer);
    const biased = this.tokensOf(Object.keys(logitBias ?? {}).map(Number), "logit_bias");
    for (const token of biased) bias?.set(token, { logit: logitBias?.[token] ?? 0 });
    const punishes = presencePenalty !== undefined || frequencyPenalty !== undefined || penalty !== 1;
    return {
      ...{ temperature, topP, topK, minP },
      ...(seed !== undefined && { seed }),
      ...(bias && { tokenBias: bias }),
      ...(punishes && {
        repeatPenalty: {
          ...{ punishTokens: () => written, maxPunishTokens: Math.max(1, limit), penalty },
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
    const of = (id: Token, probability: number): TokenLogprob => {
      const text = this.model.detokenize([id], true, before);
      return { token: text, bytes: [...Buffer.from(text)], logprob: Math.log(probability) };
    };
    const top: TokenLogprob[] = [];
    for (const [id, probability] of probabilities) {
      if (top.length >= count) break;
      top.push(of(id, probability));
    }
    return { ...of(token, probabilities.get(token) ?? 0), top, width: [...added].length };
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

/** Fills a batch with the next token of each text that is being written, then with prompts in the order in which they came. */
const decodingFirst: CustomBatchingPrioritizationStrategy = ({ items, size }) => {
  const [next, prompts] = [
    items.filter(({ tokens }) => tokens.length === 1),
    items.filter(({ tokens }) => tokens.length > 1),
  ];
  let left = Math.min(size, next.length === 0 ? size : next.length + PROMPT_SHARE);
  return [...next, ...prompts].flatMap((item) => {
    const processAmount = Math.min(item.tokens.length, left);
    left -= processAmount;
    return processAmount === 0 ? [] : [{ item, processAmount }];
  });
};

const queryHeads = (file: string): number => {
  const model = modelFromConfig(openCheckpoint(file).config);
  return Math.max(1, ...model.headGroups.map(({ heads }) => model.sizes[heads] ?? 0));
};

function templateOf(source: string, file: string): Template {
  try {
    return new Template(source);
  } catch (error) {
    throw new FormatError(`${file}: its chat template is none: ${error instanceof Error ? error.message : error}`);
  }
}

function sharedLength(a: readonly number[], b: readonly number[]): number {
  let i = 0;
  while (i < a.length && i < b.length && a[i] === b[i]) i++;
  return i;
}
