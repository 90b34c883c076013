import { randomInt } from "node:crypto";
import { type LlamaContextSequenceRepeatPenalty, type LlamaModel, type Token, TokenBias } from "node-llama-cpp";
import type { Sampling } from "./conversation.js";
import { defined } from "./defined.js";
import { checkTokenIds } from "./token-ids.js";

const SEEDS = 2 ** 32;

/** Below, the most probable token is taken: dividing logits by less overflows. */
const MIN_TEMPERATURE = 1e-4;

/** The text whose tokens are drawn. */
export interface SampledText {
  readonly model: LlamaModel;
  readonly vocabSize: number;
  /** Its tokens, which grow while it is written. */
  readonly tokens: Token[];
  /** Tokens that it may have. */
  readonly limit: number;
}

/** How tokens are drawn, as options of llama.cpp. @throws ApiError 400 for a biased token that does not exist */
export function samplingOptions(sampling: Sampling, text: SampledText) {
  // the library's own seed would be the time in seconds, the same for all texts that begin together
  const { topP = 1, topK = 0, minP = 0, seed = randomInt(SEEDS) } = sampling;
  return defined({
    temperature: sampling.temperature < MIN_TEMPERATURE ? 0 : sampling.temperature,
    topP,
    topK,
    minP,
    seed,
    tokenBias: tokenBias(sampling, text),
    repeatPenalty: repeatPenalty(sampling, text),
  });
}

function tokenBias({ logitBias }: Sampling, { model, vocabSize }: SampledText): TokenBias | undefined {
  if (logitBias === undefined) return undefined;
  const bias = new TokenBias(model.tokenizer);
  for (const token of checkTokenIds(Object.keys(logitBias).map(Number), vocabSize, "logit_bias"))
    bias.set(token, { logit: logitBias[token] ?? 0 });
  return bias;
}

/** Whether tokens become less probable by what was written before. */
export function hasPenalties(sampling: Sampling): boolean {
  const { presencePenalty = 0, frequencyPenalty = 0, repetitionPenalty = 1, penaltyWindow = 1 } = sampling;
  return penaltyWindow > 0 && (presencePenalty !== 0 || frequencyPenalty !== 0 || repetitionPenalty !== 1);
}

function repeatPenalty(
  sampling: Sampling,
  { tokens, limit }: SampledText,
): LlamaContextSequenceRepeatPenalty | undefined {
  const { presencePenalty, frequencyPenalty, repetitionPenalty = 1, penaltyWindow } = sampling;
  const window = penaltyWindow ?? limit;
  if (!hasPenalties(sampling) || window <= 0) return undefined;
  return defined({
    punishTokens: () => tokens.slice(-window),
    maxPunishTokens: Math.max(1, window),
    penalty: repetitionPenalty,
    presencePenalty,
    frequencyPenalty,
  });
}
