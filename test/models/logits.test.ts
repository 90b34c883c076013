import { afterAll, describe, expect, it } from "vitest";
import { Backend } from "../../src/ggml/index.js";
import { openCheckpoint } from "../../src/models/index.js";
import { testBackends } from "../devices.js";
import { expected, logitsOf, models, relativeDifference } from "./architectures.js";

/** Every operation has its own test on each device; of whole models these few are enough on a software driver. */
const ON_VULKAN = new Set(["gemma2", "ministral3", "apertus", "gpt_neox"]);

describe.each(testBackends)("on %s", (device, options) => {
  const backend = Backend.open(options);
  const finished: { free(): void }[] = [];
  afterAll(() => {
    for (const item of finished) item.free();
    backend.free();
  });

  it.each(models.filter(({ name }) => device !== "Vulkan" || ON_VULKAN.has(name)))(
    "logits of $name are those of transformers",
    async ({ directory }) => {
      const { tokens, logits } = expected(backend, directory);
      const values = await logitsOf(backend, openCheckpoint(directory), tokens, finished);
      expect(values.length).toBe(logits.length);
      expect(relativeDifference(values, logits)).toBeLessThan(1e-5);
    },
  );
});
