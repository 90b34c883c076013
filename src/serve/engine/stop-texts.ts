/** Holds text back that may be the beginning of a text to stop at, and lets the rest through. */
export class StopTexts {
  private held = "";
  /** The text that was met. */
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

  /** Looks for them again. */
  reset(): void {
    this.found = undefined;
    this.rest = "";
  }

  /** What was held back when no more text comes. */
  end(): string {
    const rest = this.held;
    this.held = "";
    return rest;
  }
}

/** How much of the end of a text is the beginning of another. */
function overlap(text: string, other: string): number {
  for (let length = Math.min(text.length, other.length - 1); length > 0; length--)
    if (text.endsWith(other.slice(0, length))) return length;
  return 0;
}
