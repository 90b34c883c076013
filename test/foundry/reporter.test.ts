import { writeFileSync } from "node:fs";
import path from "node:path";
import { expect, it } from "vitest";
import { Reporter } from "../../src/foundry/reporter.js";
import type { Workspace } from "../../src/foundry/storage.js";
import type { Job, Jobs, StageSummary } from "../../src/foundry/store/jobs.js";
import { temporaryDirectory } from "../temporary.js";

const stageNamed = (name: string): StageSummary => ({ name, seconds: 1, peakMemoryBytes: 1 });

it("records the latest stages last, however slow the database answers an earlier report", async () => {
  const directory = temporaryDirectory();
  const recorded: number[] = [];
  const waiting: (() => void)[] = [];
  const jobs: Pick<Jobs, "resetDeaths" | "report" | "addEvents"> = {
    resetDeaths: () => new Promise((resolve) => waiting.push(resolve)),
    report: async (_, { stages }) => {
      recorded.push(stages.length);
    },
    addEvents: async () => {},
  };
  const reporter = new Reporter(jobs as Jobs, { stages: [] as unknown } as Job, { path: directory } as Workspace);
  const stages = path.join(directory, "stages.json");

  writeFileSync(stages, JSON.stringify([stageNamed("calibrate")]));
  const earlier = reporter.report();
  await expect.poll(() => waiting.length).toBe(1);
  writeFileSync(stages, JSON.stringify([stageNamed("calibrate"), stageNamed("distill")]));
  const later = reporter.report();
  await new Promise((resolve) => setImmediate(resolve)); // a report that does not wait asks the database now
  for (let answered = 0; answered < 2; answered++) {
    await expect.poll(() => waiting.length).toBeGreaterThan(0);
    waiting.pop()!(); // the newest request first, as connections of a pool may answer
  }
  expect(await Promise.all([earlier, later])).toEqual([true, true]);
  expect(recorded).toEqual([1, 2]);
});
