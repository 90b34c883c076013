import type { LlamaModel, Token } from "node-llama-cpp";

/**
 * How text becomes tokens, as llama.cpp's server has it. One rule for everything that is given as the text of a prompt: special
 * tokens that are written out (`<|im_start|>`) mean themselves, and the begin token is put before where the model has one.
 */
export interface SpecialTokens {
  /** Puts the begin token there, where the model has one and the text does not begin with it. True by default. */
  readonly addSpecial?: boolean | undefined;
  /** Special tokens that are written out mean themselves, rather than their letters. True by default. */
  readonly parseSpecial?: boolean | undefined;
}

/** Tokens of a text to be continued. */
export function promptTokens(
  model: LlamaModel,
  text: string,
  { addSpecial = true, parseSpecial = true }: SpecialTokens = {},
): Token[] {
  const tokens = model.tokenize(text, parseSpecial);
  const { bos, shouldPrependBosToken: begins } = model.tokens;
  return addSpecial && begins && bos !== null && tokens[0] !== bos ? [bos, ...tokens] : tokens;
}

/** How many tokens before it decide how a token is written: SentencePiece drops the space of the first. */
const CONTEXT_TOKENS = 8;

/** What a text's first token loses when it is decoded without those before it: the space that it begins with, if any. */
export function lostBeginning(model: LlamaModel, before: readonly Token[], first: Token): string {
  const alone = model.detokenize([first]);
  const inPlace = model.detokenize([first], false, before.slice(-CONTEXT_TOKENS));
  return inPlace !== alone && inPlace.endsWith(alone) ? inPlace.slice(0, inPlace.length - alone.length) : "";
}
