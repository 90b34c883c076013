import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { RunDirectory } from "../../src/distill/index.js";
import { explain } from "../../src/jobs/explain.js";
import { temporaryDirectory } from "../temporary.js";

const directory = temporaryDirectory();

/** A run that has begun, as a job leaves it. */
function begun(name: string, origin?: unknown): string {
  const run = new RunDirectory(path.join(directory, name));
  run.claim({ command: "distill", inputs: { teacher: "abc" }, settings: { tokens: 10, computeType: "bf16" } }, origin);
  run.appendMetrics({
    step: 1,
    tokens: 5,
    loss: 2,
    learningRate: 1e-3,
    gradientNorm: 1,
    tokensPerSecond: 5,
    seconds: 1,
    terms: {},
  });
  run.close();
  return run.path;
}

describe("a run is explained", () => {
  it("before it has ended: how far it is and how to continue it", () => {
    const invocation = {
      words: ["distill", "./my model", "--tokens", "10"],
      directory: "/work",
      sources: { tokens: "recipe" },
    };
    const run = begun("stopped", { version: "1.2.3", startedAt: "2026-01-01T00:00:00.000Z", invocation });
    const explained = explain(run);
    expect(explained).toMatchObject({
      command: "distill",
      state: "unfinished",
      version: "1.2.3",
      inputs: { teacher: "abc" },
      settings: [
        { name: "tokens", value: 10, source: "recipe" },
        { name: "computeType", value: "bf16", source: "default" },
      ],
      training: { steps: 1, tokens: 5, losses: [{ loss: 2 }] },
    });
    expect(explained.next).toEqual([
      "to continue where it stopped: cd /work && coppice distill './my model' --tokens 10",
    ]);
  });

  it("while it goes on, without touching it", () => {
    const run = new RunDirectory(path.join(directory, "running"));
    run.claim({ command: "pretrain" });
    expect(explain(run.path).state).toBe("running");
    run.close();
  });

  it("that a program started: nothing is claimed about where settings come from", () => {
    const explained = explain(begun("by-program"));
    expect(explained.commandLine).toBeUndefined();
    expect(explained.settings.map(({ source }) => source)).toEqual([undefined, undefined]);
  });

  it("with files that are gone", () => {
    const run = new RunDirectory(path.join(directory, "gone"));
    run.claim({ command: "prune" });
    run.own("model.safetensors");
    run.close();
    expect(explain(run.path).files).toEqual([{ name: "model.safetensors", bytes: undefined }]);
  });
});

describe("what cannot be explained is said", () => {
  it.each([
    ["stages.json", "{", /stages\.json is damaged: it is not JSON/],
    ["report.json", '{"models": 3}', /report\.json is damaged: models is 3/],
    ["search.json", '{"candidates": [{"loss": 1}]}', /search\.json is damaged/],
    ["run.json", "not JSON", /run\.json is damaged, or was not written by coppice/],
    ["run.json", '{"id": "another tool"}', /run\.json is damaged, or was not written by coppice/],
  ])("a damaged %s", (file, content, message) => {
    const run = begun(`damaged-${file}-${content.length}`);
    writeFileSync(path.join(run, file), content);
    expect(() => explain(run)).toThrow(
      expect.objectContaining({ name: "FormatError", message: expect.stringMatching(message) }),
    );
  });

  it("a directory that is no run's, and one that is not there", () => {
    const foreign = path.join(directory, "foreign");
    mkdirSync(foreign);
    const usage = (message: RegExp) =>
      expect.objectContaining({ name: "UsageError", message: expect.stringMatching(message) });
    expect(() => explain(foreign)).toThrow(usage(/is not a run of coppice/));
    expect(() => explain(path.join(directory, "nowhere"))).toThrow(usage(/there is no directory/));
  });
});
