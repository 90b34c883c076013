import type { WrittenToken } from "./written.js";

/** Keeps what is told of tokens until their text is shown, which may be later: a letter of several tokens, a text that may be a stop. */
export class TokenTrail {
  private waiting: { readonly token: WrittenToken; readonly start: number; end: number | undefined }[] = [];
  private written = 0;
  private shown = 0;

  /** @param text what the token adds to the text; nothing while a letter is not complete */
  push(token: WrittenToken, text: string): void {
    this.waiting.push({ token, start: this.written, end: undefined });
    this.written += text.length;
    if (text !== "") for (const one of this.waiting) one.end ??= this.written;
  }

  /** @returns the tokens that are whole in what is shown now. @param text what is shown after what was shown before */
  show(text: string): WrittenToken[] {
    this.shown += text.length;
    const at = this.waiting.findIndex(({ end }) => end === undefined || end > this.shown);
    return this.waiting.splice(0, at < 0 ? this.waiting.length : at).map(({ token }) => token);
  }

  /** What is left at the end. @param isCut whether the text ends before all that was written, at a text to stop at */
  end(isCut: boolean): WrittenToken[] {
    return this.waiting
      .splice(0)
      .filter(({ start }) => !isCut || start < this.shown)
      .map(({ token }) => token);
  }
}
