import type { WrittenToken } from "../engine/writing.js";

/** Tokens with their log-probabilities, in the form of all newer APIs. */
export const tokenLogprobs = (tokens: readonly WrittenToken[]) =>
  tokens.map(({ token, bytes, logprob, top }) => ({ token, bytes, logprob, top_logprobs: top ?? [] }));
