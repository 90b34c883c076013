import { type DraftSequenceTokenPredictor, type Token, TokenPredictor } from "node-llama-cpp";

/**
 * Lets a draft model guess ahead, except in texts that are drawn with a seed. Guesses are checked several at once, and random
 * numbers are drawn for wrong ones too: what is drawn would depend on how far the draft had come.
 */
export class OptionalPredictor extends TokenPredictor {
  private guesses = false;

  /** @param mayGuess whether the draft may guess in the text that begins */
  constructor(
    private readonly draft: DraftSequenceTokenPredictor,
    private readonly mayGuess: () => boolean,
  ) {
    super();
  }

  override async reset(text: Parameters<TokenPredictor["reset"]>[0]): Promise<void> {
    this.guesses = this.mayGuess();
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
