import { mkdirSync, renameSync } from "node:fs";
import path from "node:path";
import { afterEach, expect, it, vi } from "vitest";
import { Stages } from "../../src/jobs/stages.js";
import { temporaryDirectory } from "../temporary.js";

afterEach(() => vi.useRealTimers());

it("finished stages are not run again, and their results name files where their directory is now", async () => {
  const root = temporaryDirectory();
  const [before, after] = [path.join(root, "before"), path.join(root, "after")];
  mkdirSync(before);
  const result = (directory: string) => ({
    files: [path.join(directory, "gguf/a.gguf")],
    other: "/elsewhere/b",
    loss: 1.5,
  });
  const first = new Stages(path.join(before, "stages.json"));
  expect(await first.once("gguf", async () => result(before))).toEqual(result(before));
  await first.once("empty", async () => undefined);
  renameSync(before, after);
  const again = new Stages(path.join(after, "stages.json"));
  const never = async () => Promise.reject(new Error("done before"));
  expect(await again.once("gguf", never)).toEqual(result(after));
  expect(await again.once("empty", never)).toBeNull();
  expect(again.all.map(({ name }) => name)).toEqual(["gguf", "empty"]);
});

it("a stage that was stopped or killed is run again, and its seconds count", async () => {
  vi.useFakeTimers();
  const file = path.join(temporaryDirectory(), "stages.json");
  const seconds = (count: number) => vi.advanceTimersByTime(1000 * count);
  const stopped = new Stages(file).once("search", async () => {
    seconds(30);
    throw new Error("stopped");
  });
  await expect(stopped).rejects.toThrow("stopped");
  // one that is killed has written what it had taken at the last full minute
  let kill = () => {};
  const killed = new Stages(file);
  void killed.once("search", async () => {
    await killed.once("calibrate", async () => seconds(5));
    seconds(130);
    await new Promise<void>((resolve) => {
      kill = resolve;
    });
  });
  await vi.advanceTimersByTimeAsync(0);
  const going = new Stages(file);
  expect(going.all.map(({ name }) => name)).toEqual(["calibrate"]);
  expect([going.has("calibrate"), going.has("search")]).toEqual([true, false]);
  await going.once("search", async () => seconds(7));
  const found = Object.fromEntries(going.all.map((stage) => [stage.name, stage.seconds]));
  expect(found.calibrate).toBe(5);
  expect(found.search).toBeGreaterThanOrEqual(30 + 60 + 7);
  expect(found.search).toBeLessThanOrEqual(30 + 130 + 7);
  kill();
});

it("a stage's seconds are without those of stages within it: all together are the job's", async () => {
  vi.useFakeTimers();
  const stages = new Stages(path.join(temporaryDirectory(), "stages.json"));
  const takes = (seconds: number) => async () => void vi.advanceTimersByTime(1000 * seconds);
  const started = performance.now();
  await stages.once("measure", takes(1));
  await stages.once("search", async () => {
    await takes(2)();
    await stages.once("calibrate", takes(30));
    await stages.once("order", () => stages.once("layers", takes(7)));
    await takes(4)();
  });
  await stages.once("prune", takes(5));
  const seconds = Object.fromEntries(stages.all.map((stage) => [stage.name, stage.seconds]));
  expect(seconds).toEqual({ measure: 1, calibrate: 30, layers: 7, order: 0, search: 6, prune: 5 });
  expect(stages.all.reduce((sum, stage) => sum + stage.seconds, 0)).toBe((performance.now() - started) / 1000);
});
