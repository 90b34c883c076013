import type { WrittenToken } from "../engine/written.js";

/** Tokens with their log-probabilities, as all newer APIs tell them. */
export const toldTokens = (tokens: readonly WrittenToken[]) =>
  tokens.map(({ token, bytes, logprob, top }) => ({ token, bytes, logprob, top_logprobs: top ?? [] }));
