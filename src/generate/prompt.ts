import type { LlamaModel, Token } from "node-llama-cpp";
import { tokenize } from "./tokenize.js";

/**
 * How a prompt becomes tokens. The defaults are those of llama.cpp's server: special tokens that are written out
 * (`<|im_start|>`) are read as such, and the begin token comes first if the model has one.
 */
export interface SpecialTokens {
  /** Prepend the begin token if the model has one and the text does not begin with it. True by default. */
  readonly addSpecial?: boolean | undefined;
  /** Read special tokens that are written out as such rather than as their letters. True by default. */
  readonly parseSpecial?: boolean | undefined;
}

/** The tokens of a text to be continued. */
export function promptTokens(
  model: LlamaModel,
  text: string,
  { addSpecial = true, parseSpecial = true }: SpecialTokens = {},
): Token[] {
  const tokens = tokenize(model, text, parseSpecial);
  const { bos, shouldPrependBosToken } = model.tokens;
  return addSpecial && shouldPrependBosToken && bos !== null && tokens[0] !== bos ? [bos, ...tokens] : tokens;
}

/** How many preceding tokens are enough to decode a token as it stands in its text. */
const CONTEXT_TOKENS = 8;

/**
 * What the first generated token loses when it is decoded without those before it: the space that it begins with, if any, because
 * SentencePiece drops the space of a text's first token.
 */
export function lostBeginning(model: LlamaModel, before: readonly Token[], first: Token): string {
  const alone = model.detokenize([first]);
  const inPlace = model.detokenize([first], false, before.slice(-CONTEXT_TOKENS));
  return inPlace !== alone && inPlace.endsWith(alone) ? inPlace.slice(0, inPlace.length - alone.length) : "";
}
