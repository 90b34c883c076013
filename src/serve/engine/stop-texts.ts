/** Lets a text through up to a stop text, holding back what may be the beginning of one. */
export class StopTexts {
  private held = "";
  /** The stop text that was met. */
  found: string | undefined;
  /** What came after it. */
  rest = "";

  constructor(private readonly stops: readonly string[]) {}

  /** @returns what may be shown now */
  push(text: string): string {
    if (this.found !== undefined) return "";
    const all = this.held + text;
    const hit = this.stops
      .map((stop) => ({ stop, at: all.indexOf(stop) }))
      .filter(({ at }) => at >= 0)
      .sort((a, b) => a.at - b.at)[0];
    if (hit !== undefined) {
      this.found = hit.stop;
      this.held = "";
      this.rest = all.slice(hit.at + hit.stop.length);
      return all.slice(0, hit.at);
    }
    const keep = Math.max(0, ...this.stops.map((stop) => overlap(all, stop)));
    this.held = all.slice(all.length - keep);
    return all.slice(0, all.length - keep);
  }

  /** Starts looking again after a stop text was met. */
  reset(): void {
    this.found = undefined;
    this.rest = "";
  }

  /** @returns what was held back, when no more text comes */
  end(): string {
    const rest = this.held;
    this.held = "";
    return rest;
  }
}

/** Length of the longest end of a text that is a beginning of another. */
function overlap(text: string, other: string): number {
  for (let length = Math.min(text.length, other.length - 1); length > 0; length--)
    if (text.endsWith(other.slice(0, length))) return length;
  return 0;
}
