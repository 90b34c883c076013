import { afterAll, describe, expect, it } from "vitest";
import { Backend } from "../../src/ggml/index.js";
import { openCheckpoint } from "../../src/models/index.js";
import { testBackends } from "../devices.js";
import { covered, expected, logitsOf, models, relativeDifference } from "./architectures.js";

it("every architecture has a fixture", () => {
  for (const [architecture, fixtures] of covered()) expect(fixtures.length, architecture).toBeGreaterThan(0);
});

describe.each(testBackends)("on %s", (_, options) => {
  const backend = Backend.open(options);
  afterAll(() => backend.free());

  it.each(models)("logits of $name are those of transformers", async ({ directory }) => {
    const { tokens, logits } = expected(backend, directory);
    const values = await logitsOf(backend, openCheckpoint(directory), tokens);
    expect(values.length).toBe(logits.length);
    expect(relativeDifference(values, logits)).toBeLessThan(1e-5);
  });
});
