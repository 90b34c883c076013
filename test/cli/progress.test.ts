import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { ProgressDisplay } from "../../src/cli/progress.js";

describe("progress on lines", () => {
  let written = "";
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ["performance"] });
    written = "";
    vi.spyOn(process.stderr, "write").mockImplementation((text) => {
      written += text;
      return true;
    });
  });
  afterEach(() => {
    vi.restoreAllMocks();
    vi.useRealTimers();
  });
  const event = (done: number, total = 1000) => ({ stage: "distill", done, total, unit: "tokens" as const });

  it("measures the rate from what it has seen, not from what was done before", () => {
    const display = new ProgressDisplay(false);
    display.update(event(500)); // gone on with
    vi.advanceTimersByTime(10_000);
    display.update(event(600));
    expect(written).toBe("distill           60 %  600 of 1.00 K tokens  10 tokens/s  40 s left\n");
  });

  it("names a unit once, in the singular where there is one, and bytes with their unit", () => {
    const display = new ProgressDisplay(false);
    display.update({ stage: "search", done: 1, total: 1, unit: "candidates" });
    display.update({ stage: "prune", done: 2 ** 20, total: 2 ** 20, unit: "bytes" });
    expect(written).toBe(
      "search           100 %  1 of 1 candidate  done\nprune            100 %  1.00 MiB of 1.00 MiB  done\n",
    );
  });

  it("tells no rate of what is over at once, and a slow one as it is", () => {
    const display = new ProgressDisplay(false);
    display.update(event(4, 8));
    vi.advanceTimersByTime(1);
    display.update(event(8, 8));
    expect(written).toBe("distill          100 %  8 of 8 tokens  done\n");
    written = "";
    display.update({ ...event(0, 8), stage: "search" });
    vi.advanceTimersByTime(8000);
    display.update({ ...event(2, 8), stage: "search" });
    expect(written).toMatch(/ 0\.25 tokens\/s {2}24 s left/);
  });
});
