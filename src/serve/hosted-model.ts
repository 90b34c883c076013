import { Template } from "@huggingface/jinja";
import {
  type ControlledEvaluateInputItem,
  type LlamaContext,
  type LlamaContextSequence,
  type LlamaGrammar,
  LlamaGrammarEvaluationState,
  type LlamaModel,
  type Token,
  TokenBias,
} from "node-llama-cpp";
import { openGguf } from "../checkpoint/gguf.js";
import { checkRunnable, fastestThreads, loadModel } from "../generate/index.js";
import type { DeviceKind } from "../ggml/index.js";
import { metadataString } from "../models/gguf-layout.js";
import { FormatError } from "../system/errors.js";
import { ApiError } from "./errors.js";
import { StopTexts } from "./stop-texts.js";
import { DETOKENIZE_AFTER, TokenDecoder } from "./token-decoder.js";

export interface HostOptions {
  readonly device?: DeviceKind | "auto";
  readonly threads?: number;
  /** Tokens of prompt and answer of each request. */
  readonly contextSize?: number | undefined;
  /** Requests that are computed together. */
  readonly slots: number;
}

/** What is to be written after a prompt. */
export interface WriteRequest {
  readonly prompt: readonly Token[];
  readonly maxTokens: number | undefined;
  readonly temperature: number;
  readonly topP?: number | undefined;
  readonly topK?: number | undefined;
  readonly minP?: number | undefined;
  readonly seed?: number | undefined;
  readonly presencePenalty?: number | undefined;
  readonly frequencyPenalty?: number | undefined;
  readonly stops: readonly string[];
  readonly logitBias?: Readonly<Record<string, number>> | undefined;
  /** How many of the most probable tokens to tell of, beside the one taken. */
  readonly topLogprobs?: number | undefined;
  readonly grammar?: LlamaGrammar | undefined;
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
  readonly promptTokens: number;
  /** Of these, found in the cache. */
  readonly cachedTokens: number;
  readonly completionTokens: number;
}

interface Sampled {
  readonly token: Token;
  readonly probabilities?: Map<Token, number>;
}

interface Slot {
  readonly sequence: LlamaContextSequence;
  busy: boolean;
  lastUsed: number;
}

const [DEFAULT_CONTEXT, MOST_CONTEXT] = [2048, 8192];

/** A model in memory that writes for several at once. llama.cpp computes what they ask for together. */
export class HostedModel {
  private clock = 0;

  private constructor(
    private readonly model: LlamaModel,
    private readonly context: LlamaContext,
    private readonly slots: readonly Slot[],
    /** Tokens of prompt and answer that a request may have. */
    readonly contextSize: number,
    private readonly template: Template | undefined,
    private readonly specials: { readonly bos: string; readonly eos: string },
    private readonly vocabSize: number,
  ) {}

  /** @throws FormatError when the file is not what it claims, CoppiceError when llama.cpp cannot run it */
  static async open(file: string, options: HostOptions): Promise<HostedModel> {
    const target = checkRunnable(file);
    const { metadata } = openGguf(target.file);
    const model = await loadModel(target.file, options);
    try {
      const threads = options.threads ?? (await fastestThreads(model));
      const contextSize = options.contextSize ?? Math.min(MOST_CONTEXT, target.contextLength || DEFAULT_CONTEXT);
      const context = await model.createContext({
        ...{ contextSize, sequences: options.slots },
        ...(threads !== undefined && { threads }),
      });
      const slots = Array.from({ length: options.slots }, () => ({
        ...{ sequence: context.getSequence(), busy: false, lastUsed: 0 },
      }));
      const source = metadataString(metadata, "tokenizer.chat_template");
      const listed = metadata.get("tokenizer.ggml.tokens");
      const vocabSize = listed?.kind === "array" ? listed.value.length : 0;
      const { bosString: bos, eosString: eos } = model.tokens;
      const template = source === undefined ? undefined : templateOf(source, file);
      const specials = { bos: bos ?? "", eos: eos ?? "" };
      return new HostedModel(model, context, slots, contextSize, template, specials, vocabSize);
    } catch (error) {
      await model.dispose();
      throw error;
    }
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

  /** Tokens of a conversation in the form that the model was taught; a plain one where it was taught none. */
  chatPrompt(messages: readonly Readonly<Record<string, unknown>>[], tools?: readonly unknown[]): Token[] {
    if (this.template === undefined) {
      const turns = messages.map(({ role, content }) => `${role}: ${content}\n`);
      return this.promptOf(`${turns.join("")}assistant:`);
    }
    let text: string;
    try {
      text = this.template.render({
        ...{ messages, add_generation_prompt: true, bos_token: this.specials.bos, eos_token: this.specials.eos },
        ...(tools !== undefined && { tools }),
      });
    } catch (error) {
      const reason = error instanceof Error ? error.message : error;
      throw new ApiError(400, `the model's chat template does not take these messages: ${reason}`, {
        param: "messages",
      });
    }
    const tokens = this.tokenize(text, true);
    const { bos, shouldPrependBosToken: begins } = this.model.tokens;
    return begins && bos !== null && tokens[0] !== bos ? [bos, ...tokens] : tokens;
  }

  /** A grammar that only lets JSON of a schema through; of any form without one. */
  async jsonGrammar(schema?: unknown): Promise<LlamaGrammar> {
    const { llama } = this.model;
    if (schema === undefined) return llama.getGrammarFor("json");
    try {
      return await llama.createGrammarForJsonSchema(schema as never);
    } catch (error) {
      const reason = error instanceof Error ? error.message : error;
      throw new ApiError(400, `the schema cannot be made a grammar: ${reason}`, { param: "response_format" });
    }
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
      return yield* this.writeIn(slot.sequence, request, limit, signal);
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

  private async *writeIn(
    sequence: LlamaContextSequence,
    request: WriteRequest,
    limit: number,
    signal: AbortSignal,
  ): AsyncGenerator<Piece, Written> {
    const prompt = [...request.prompt];
    await sequence.adaptStateToTokens(prompt.slice(0, -1), false);
    const cachedTokens = sequence.nextTokenIndex;
    const wantsTop = request.topLogprobs !== undefined;
    const grammar = request.grammar && new LlamaGrammarEvaluationState({ model: this.model, grammar: request.grammar });
    const all: Token[] = [];
    const generated = sequence.evaluateWithMetadata(
      prompt.slice(cachedTokens),
      { probabilities: wantsTop },
      { ...this.samplingOf(request, all), yieldEogToken: true, ...(grammar && { grammarEvaluationState: grammar }) },
    );
    const stops = new StopTexts(request.stops);
    const decoder = new TokenDecoder(this.model, all);
    let tokens: WrittenToken[] = [];
    let finishReason: Written["finishReason"] = "length";
    if (limit > 0)
      for await (const { token, probabilities = new Map() } of generated as AsyncIterable<Sampled>) {
        signal.throwIfAborted();
        if (this.model.isEogToken(token)) {
          finishReason = "stop";
          break;
        }
        const before = all.slice(-DETOKENIZE_AFTER);
        const text = decoder.push(token);
        if (wantsTop) tokens.push(this.logprobs(token, probabilities, request.topLogprobs ?? 0, before, text));
        const shown = stops.push(text);
        if (shown !== "" || (text !== "" && tokens.length > 0)) {
          yield { text: shown, tokens };
          tokens = [];
        }
        if (stops.found !== undefined) {
          finishReason = "stop";
          break;
        }
        if (all.length >= limit) break;
      }
    const rest = stops.found === undefined ? stops.push(decoder.end()) + stops.end() : "";
    if (rest !== "" || tokens.length > 0) yield { text: rest, tokens };
    return {
      ...{ finishReason, promptTokens: prompt.length, cachedTokens, completionTokens: all.length },
    };
  }

  private samplingOf(request: WriteRequest, written: Token[]) {
    const { temperature, topP, topK, minP, seed, presencePenalty, frequencyPenalty, logitBias } = request;
    const bias = logitBias === undefined ? undefined : new TokenBias(this.model.tokenizer);
    const biased = this.tokensOf(Object.keys(logitBias ?? {}).map(Number), "logit_bias");
    for (const token of biased) bias?.set(token, { logit: logitBias?.[token] ?? 0 });
    return {
      temperature,
      ...(topP !== undefined && { topP }),
      ...(topK !== undefined && { topK }),
      ...(minP !== undefined && { minP }),
      ...(seed !== undefined && { seed }),
      ...(bias && { tokenBias: bias }),
      ...((presencePenalty !== undefined || frequencyPenalty !== undefined) && {
        repeatPenalty: {
          ...{ punishTokens: () => written, penalty: 1 },
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
    await this.context.dispose();
    await this.model.dispose();
  }
}

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
