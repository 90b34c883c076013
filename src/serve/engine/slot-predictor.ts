import { type DraftSequenceTokenPredictor, type Token, TokenPredictor } from "node-llama-cpp";

/**
 * Lets a draft model guess ahead, except for texts whose tokens are computed alone. Guesses are checked several at once, and random
 * numbers are drawn for wrong ones too: what is drawn would depend on how far the draft had come.
 */
export class SlotPredictor extends TokenPredictor {
  private guesses = false;

  /** @param isAlone whether the tokens of the text that begins are computed alone */
  constructor(
    private readonly draft: DraftSequenceTokenPredictor,
    private readonly isAlone: () => boolean,
  ) {
    super();
  }

  override async reset(text: Parameters<TokenPredictor["reset"]>[0]): Promise<void> {
    this.guesses = !this.isAlone();
    if (this.guesses) await this.draft.reset(text);
  }

  override pushTokens(tokens: Token[]): void {
    if (this.guesses) this.draft.pushTokens(tokens);
  }

  override predictTokens(): Promise<Token[]> | Token[] {
    return this.guesses ? this.draft.predictTokens() : [];
  }

  override stop(untilPredictionsExhausted?: boolean): void {
    this.draft.stop(untilPredictionsExhausted);
  }

  override updateInputTokens(tokens: Token[]): void {
    this.draft.updateInputTokens(tokens);
  }

  override dispose(): void {
    this.draft.dispose();
  }
}
