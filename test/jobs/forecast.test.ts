import { expect, it } from "vitest";
import { forecast } from "../../src/jobs/forecast.js";

/** What is said of a run of so many tokens a step and seconds a step. */
function said(tokens: number, seconds: number, total: number): string[] {
  const notes: string[] = [];
  const told = forecast("distill", (note) => notes.push(note));
  told(tokens, total, 100); // building the graph took long
  for (let step = 2; step <= 10; step++) told(step * tokens, total, 100 + (step - 1) * seconds);
  return notes;
}

it("says once what a long training will take, and how many tokens an hour is good for", () => {
  expect(said(4096, 41, 2_000_000)).toEqual([
    "at 100 tokens/s distill takes about 5.5 h; --tokens 360K would take an hour",
  ]);
  expect(said(4096, 10, 500_000)).toEqual(["at 410 tokens/s distill takes about 20 min"]);
  expect(said(4096, 1, 100_000)).toEqual([]);
  expect(said(1e6, 10, 1e12)[0]).toContain("116 days");
});
