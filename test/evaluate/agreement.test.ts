import path from "node:path";
import { describe, expect, it } from "vitest";
import { agreement } from "../../bench/agreement.js";
import { writeBenchmarkData } from "../../bench/benchmark-data.js";
import { hasSharedData, stories260K } from "../shared-data.js";
import { temporaryDirectory } from "../temporary.js";

// written by bench/peers/harness.py with --limit =8 --limit mmlu=1 --max-gen-toks 48
const reference = path.resolve(import.meta.dirname, "../fixtures/harness-stories260K.json");

describe.skipIf(!hasSharedData)("an evaluation of a real model", async () => {
  const directory = temporaryDirectory();
  const data = path.join(directory, "data");
  if (hasSharedData) writeBenchmarkData(data);
  const compared = hasSharedData ? await agreement(stories260K, data, reference, path.join(directory, "cache")) : [];

  it.each(compared)("is the harness's with transformers: $task", (one) => {
    expect(one.documents).toBeGreaterThan(0);
    expect(one.prompts.equal).toBe(one.prompts.of);
    expect(one.likelihoods.largest).toBeLessThan(1e-3);
    expect(one.likelihoods.greedyDiffers).toBe(0);
    expect(one.generations.equal).toBe(one.generations.of);
    expect(one.scores.largest).toBeLessThan(5e-5);
    expect(one.scores.of).toBeGreaterThan(0);
  });

  it("covers every benchmark", () => expect(compared).toHaveLength(16));
});
