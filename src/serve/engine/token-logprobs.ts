import type { LlamaModel, Token } from "node-llama-cpp";
import { TokenBytes, tokenText } from "./token-bytes.js";
import type { TokenLogprob, WrittenToken } from "./writing.js";

/** A token in its place in a text. */
export interface PlacedToken {
  readonly token: Token;
  /** Tokens before it, which decide how it is written. */
  readonly before: readonly Token[];
  /** What it adds to the text. */
  readonly text: string;
}

/** Describes tokens with their log-probabilities. */
export class TokenLogprobs {
  private readonly bytes: TokenBytes;

  constructor(model: LlamaModel) {
    this.bytes = new TokenBytes(model);
  }

  /**
   * @param probabilities of the tokens that were possible, the most probable first
   * @param count how many of these to report
   */
  of(placed: PlacedToken, probabilities: ReadonlyMap<Token, number>, count: number): WrittenToken {
    const { token, before, text } = placed;
    const top: TokenLogprob[] = [];
    for (const [id, probability] of probabilities) {
      if (top.length >= count) break;
      top.push(this.named(id, before, Math.log(probability)));
    }
    const own = this.named(token, before, Math.log(probabilities.get(token) ?? 0));
    return { ...own, top, width: [...text].length };
  }

  /** A token that follows nothing, and so has no probability. */
  first({ token, before, text }: PlacedToken): WrittenToken {
    return { ...this.named(token, before, null), top: null, width: [...text].length };
  }

  private named(token: Token, before: readonly Token[], logprob: number | null): TokenLogprob {
    const bytes = this.bytes.of(token, before);
    return { token: tokenText(bytes), bytes: [...bytes], logprob };
  }
}
