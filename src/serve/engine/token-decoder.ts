import type { LlamaModel, Token } from "node-llama-cpp";

/** A character has at most four bytes, each of which may be a token. */
const MAX_PENDING = 4;
/** How many tokens before a token decide how it is written (whether a space comes first). */
export const CONTEXT_TOKENS = 8;

/** Decodes tokens one by one. */
export class TokenDecoder {
  private pending: Token[] = [];

  /** @param all collects every token @param special whether special tokens are shown */
  constructor(
    private readonly model: LlamaModel,
    private readonly all: Token[],
    private readonly special = false,
  ) {}

  /** @returns the text that the token completes; empty while a character is incomplete */
  push(token: Token): string {
    const before = this.all.slice(-CONTEXT_TOKENS - this.pending.length, this.all.length - this.pending.length);
    this.all.push(token);
    this.pending.push(token);
    const text = this.model.detokenize(this.pending, this.special, before);
    if (text.endsWith("\ufffd") && this.pending.length < MAX_PENDING) return "";
    this.pending = [];
    return text;
  }

  /** What is left at the end, without an incomplete character. */
  end(): string {
    const text = this.pending.length === 0 ? "" : this.model.detokenize(this.pending, this.special);
    this.pending = [];
    return text.replace(/\ufffd+$/, "");
  }
}
