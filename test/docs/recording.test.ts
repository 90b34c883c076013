import { describe, expect, it } from "vitest";
import { recordingSvg } from "../../scripts/recording.js";

const output = (delay: number, text: string) => ({ delay, bytes: new TextEncoder().encode(text) });
const options = { columns: 20, rows: 3, longestWait: 1, shortestFrame: 0.5, lastSeconds: 2 };

describe("a recording", () => {
  it("shows each screen as the terminal did, for as long, with waits shortened", async () => {
    const outputs = [
      output(0, "loss 1.5 <start>\r\n"),
      output(60, "\u001b[32;1m10 %\u001b[0m"),
      output(0.1, "\r20 %"),
      output(0.8, "\r\u001b[K90 %"),
    ];
    const svg = await recordingSvg(outputs, "A run & its loss", options);
    const texts = [...svg.matchAll(/<text[^>]*>([^<]*)<\/text>/g)].map(([, text]) => text);
    // lines are there once, however many screens have them; "10 %" was gone after a tenth of a second
    expect(texts).toEqual(["loss 1.5 &lt;start&gt;", "20 %", "90 %"]);
    expect(svg.match(/<use /g)).toHaveLength(1 + 2 + 2);
    expect(svg).toContain("<title>A run &amp; its loss</title>");
    // a second for the wait of sixty, 0.9 until the last screen, and its own two
    expect(svg).toMatch(/animation:play 3\.9s/);
    const [, steps] = /@keyframes play\{(.*)\}/.exec(svg) ?? [];
    expect(steps?.match(/translateY/g)).toHaveLength(3);
  });

  it("keeps colors and weight", async () => {
    const svg = await recordingSvg([output(0, "plain \u001b[1;31mred\u001b[0m")], "Colors", options);
    expect(svg).toMatch(/<text x="50\.4" textLength="25\.2" fill="#ff7b72" font-weight="bold">red<\/text>/);
  });
});
