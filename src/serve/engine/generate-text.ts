import { setImmediate } from "node:timers/promises";
import type { LlamaModel, Token } from "node-llama-cpp";
import { defined } from "./defined.js";
import { GrammarFollower } from "./grammar-follower.js";
import { hasPenalties, samplingOptions } from "./sampling.js";
import { ALONE, type Slot, type Slots } from "./slots.js";
import { StopTexts } from "./stop-texts.js";
import { CONTEXT_TOKENS, TokenDecoder } from "./token-decoder.js";
import type { TokenLogprobs } from "./token-logprobs.js";
import { TokenTrail } from "./token-trail.js";
import type { TextChunk, WriteRequest, WriteResult } from "./writing.js";

/** What a text is written with. */
export interface TextGenerator {
  readonly model: LlamaModel;
  readonly vocabSize: number;
  readonly slots: Slots;
  readonly logprobs: TokenLogprobs;
}

interface SampledToken {
  readonly token: Token;
  readonly probabilities?: ReadonlyMap<Token, number> | undefined;
}

/**
 * Continues a prompt in a slot.
 * @param limit tokens to write at most
 * @throws ApiError 400 for a grammar or a bias that is wrong; the signal's reason when it is aborted
 */
export async function* generateText(
  generator: TextGenerator,
  slot: Slot,
  request: WriteRequest,
  limit: number,
): AsyncGenerator<TextChunk, WriteResult> {
  const { model, vocabSize, slots } = generator;
  const prompt = [...request.prompt];
  const grammar = request.grammar && (await GrammarFollower.open(model, request.grammar));
  const endPrefill = slots.startPrefill(slot, prompt);
  try {
    const cachedTokens = await loadPrompt(slots, slot, prompt, request);
    const text = new TextAssembler(generator, request, grammar);
    const sampled = slot.sequence.evaluateWithMetadata(
      prompt.slice(slot.sequence.nextTokenIndex),
      { probabilities: request.topLogprobs !== undefined },
      defined({
        ...samplingOptions(request, { model, vocabSize, tokens: text.tokens, limit }),
        evaluationPriority: slot.alone ? ALONE : undefined,
        yieldEogToken: true,
        grammarEvaluationState: grammar && (() => grammar.current),
      }),
    ) as AsyncGenerator<SampledToken, void>;
    const isEnd = (token: Token) => model.isEogToken(token) && !request.ignoreEnd;
    const { signal } = request;
    const finishReason = yield* readTokens(slot, sampled, text, { limit, isEnd, signal, onToken: endPrefill });
    const rest = text.end();
    if (rest.text !== "" || rest.tokens.length > 0) yield rest;
    const counts = { promptTokens: prompt.length, cachedTokens, completionTokens: text.tokens.length };
    return { finishReason, stoppedAt: text.stoppedAt, ...counts };
  } finally {
    endPrefill();
  }
}

/** Brings a slot to where only the end of the prompt is left to compute. @returns how many tokens were cached */
async function loadPrompt(slots: Slots, slot: Slot, prompt: readonly Token[], request: WriteRequest): Promise<number> {
  const { seed, signal, grammar } = request;
  const { sequence } = slot;
  await slots.takeOver(slot, prompt, signal);
  await sequence.adaptStateToTokens(prompt.slice(0, -1), false);
  const cachedTokens = sequence.nextTokenIndex;
  slot.alone = seed !== undefined;
  // guesses are checked several at once, by penalties and a grammar as they were before the first of them
  slot.guessable = !slot.alone && !hasPenalties(request) && grammar?.after === undefined;
  // what is computed alone begins with the prompt's last token, whether the others were cached or not
  if (slot.alone) await sequence.evaluateWithoutGeneratingNewTokens(prompt.slice(cachedTokens, -1));
  return cachedTokens;
}

interface PassWeightsOptions {
  readonly limit: number;
  readonly isEnd: (token: Token) => boolean;
  readonly signal: AbortSignal;
  /** Called when a token has been computed. */
  readonly onToken: () => void;
}

/** Reads tokens up to an end. The next one is computed while the last one is on its way to the client. */
async function* readTokens(
  slot: Slot,
  sampled: AsyncGenerator<SampledToken, void>,
  text: TextAssembler,
  { limit, isEnd, signal, onToken }: PassWeightsOptions,
): AsyncGenerator<TextChunk, WriteResult["finishReason"]> {
  const next = () => {
    slot.awaiting = true;
    const result = sampled.next();
    result.catch(() => {}); // it may fail before it is awaited
    return result;
  };
  let coming = limit > 0 ? next() : undefined;
  try {
    while (coming !== undefined) {
      const { done, value } = await coming;
      coming = undefined;
      slot.awaiting = false;
      onToken();
      signal.throwIfAborted();
      if (done) break;
      if (isEnd(value.token)) return "stop";
      const chunk = text.push(value);
      const isStopped = text.stoppedAt !== undefined;
      if (!isStopped && text.tokens.length < limit) coming = next();
      // the next token's computation begins before the text goes out: a system call can take a tenth of a token's time
      if (coming !== undefined) await setImmediate();
      if (chunk.text !== "") yield chunk;
      if (isStopped) return "stop";
    }
    return "length";
  } finally {
    await coming?.catch(() => {});
    slot.awaiting = false;
    await sampled.return();
  }
}

/** Makes a text of tokens: whole characters, up to a stop text, with log-probabilities where they are asked for. */
class TextAssembler {
  readonly tokens: Token[] = [];
  private readonly stops: StopTexts;
  private readonly decoder: TokenDecoder;
  private readonly trail = new TokenTrail();

  constructor(
    private readonly generator: TextGenerator,
    private readonly request: WriteRequest,
    private readonly grammar: GrammarFollower | undefined,
  ) {
    this.stops = new StopTexts(request.stops);
    this.decoder = new TokenDecoder(generator.model, this.tokens, request.special);
  }

  /** The stop text that was met. */
  get stoppedAt(): string | undefined {
    return this.stops.found;
  }

  /** @returns what can be shown now, which may be nothing */
  push({ token, probabilities = new Map() }: SampledToken): TextChunk {
    const { topLogprobs } = this.request;
    const before = this.tokens.slice(-CONTEXT_TOKENS);
    const text = this.decoder.push(token);
    this.grammar?.push(text);
    if (topLogprobs !== undefined)
      this.trail.push(this.generator.logprobs.of({ token, before, text }, probabilities, topLogprobs), text);
    const shown = this.stops.push(text);
    return { text: shown, tokens: shown === "" ? [] : this.trail.show(shown), written: this.tokens.length };
  }

  /** What is left when no more tokens come. */
  end(): TextChunk {
    const isStopped = this.stoppedAt !== undefined;
    const text = isStopped ? "" : this.stops.push(this.decoder.end()) + this.stops.end();
    const tokens = [...this.trail.show(text), ...this.trail.end(isStopped)];
    return { text, tokens, written: this.tokens.length };
  }
}
