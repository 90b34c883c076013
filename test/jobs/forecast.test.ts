import { expect, it } from "vitest";
import { forecast } from "../../src/jobs/forecast.js";

/** The notes for a run with a given number of tokens and seconds per step. */
function notesFor(tokens: number, seconds: number, total: number): string[] {
  const notes: string[] = [];
  const onStep = forecast("distill", (note) => notes.push(note));
  onStep(tokens, total, 100); // building the graph took long
  for (let step = 2; step <= 10; step++) onStep(step * tokens, total, 100 + (step - 1) * seconds);
  return notes;
}

it("says once how long a long training will take, and how many tokens would take an hour", () => {
  expect(notesFor(4096, 41, 2_000_000)).toEqual([
    "at 100 tokens/s distill takes about 5.5 h; --tokens 360K would take an hour",
  ]);
  expect(notesFor(4096, 10, 500_000)).toEqual(["at 410 tokens/s distill takes about 20 min"]);
  expect(notesFor(4096, 1, 100_000)).toEqual([]);
  expect(notesFor(1e6, 10, 1e12)[0]).toContain("116 days");
});
