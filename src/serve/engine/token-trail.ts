import type { WrittenToken } from "./writing.js";

/**
 * Holds tokens until their text is shown, which may be later than they come: a character may have several tokens, and a text that may
 * begin a stop text is held back.
 */
export class TokenTrail {
  private waiting: { readonly token: WrittenToken; readonly start: number; end: number | undefined }[] = [];
  private written = 0;
  private shown = 0;

  /** @param text what the token adds to the text; empty while a character is incomplete */
  push(token: WrittenToken, text: string): void {
    this.waiting.push({ token, start: this.written, end: undefined });
    this.written += text.length;
    if (text !== "") for (const entry of this.waiting) entry.end ??= this.written;
  }

  /** @param text what is shown next @returns the tokens that are now shown to their ends */
  show(text: string): WrittenToken[] {
    this.shown += text.length;
    const at = this.waiting.findIndex(({ end }) => end === undefined || end > this.shown);
    return this.waiting.splice(0, at < 0 ? this.waiting.length : at).map(({ token }) => token);
  }

  /** The tokens that are left at the end. @param isCut whether a stop text cut the text before them */
  end(isCut: boolean): WrittenToken[] {
    return this.waiting
      .splice(0)
      .filter(({ start }) => !isCut || start < this.shown)
      .map(({ token }) => token);
  }
}
