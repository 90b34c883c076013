import type { LlamaModel, Token } from "node-llama-cpp";

/** A character has at most so many bytes, each of which may be a token. */
const MOST_PENDING = 4;
/** How many tokens before a token decide how it is written (whether a space comes first). */
export const DETOKENIZE_AFTER = 8;

/** Tokens into text, one after the other. */
export class TokenDecoder {
  private pending: Token[] = [];

  /** @param all gets every token @param special whether special tokens are shown */
  constructor(
    private readonly model: LlamaModel,
    private readonly all: Token[],
    private readonly special = false,
  ) {}

  /** @returns the text that the token ends; nothing while a letter is not complete */
  push(token: Token): string {
    const before = this.all.slice(-DETOKENIZE_AFTER - this.pending.length, this.all.length - this.pending.length);
    this.all.push(token);
    this.pending.push(token);
    const text = this.model.detokenize(this.pending, this.special, before);
    if (text.endsWith("\ufffd") && this.pending.length < MOST_PENDING) return "";
    this.pending = [];
    return text;
  }

  /** What is left at the end: half a letter is no text. */
  end(): string {
    const text = this.pending.length === 0 ? "" : this.model.detokenize(this.pending, this.special);
    this.pending = [];
    return text.replace(/\ufffd+$/, "");
  }
}
