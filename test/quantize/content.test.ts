import { expect, it } from "vitest";
import { nameOf } from "../../src/quantize/content.js";

it.each([
  ["/models/smaller", "smaller"],
  ["/models/smaller.gguf", "smaller"],
  [`/cache/hub/models--Qwen--Qwen3-0.6B/snapshots/${"0a1b".repeat(10)}`, "Qwen3-0.6B"],
  [`/cache/hub/models--gpt2/snapshots/${"0a1b".repeat(10)}`, "gpt2"],
  [`/elsewhere/snapshots/${"0a1b".repeat(10)}`, "0a1b".repeat(10)],
])("the model at %s is named %s", (path, name) => {
  expect(nameOf({ path })).toBe(name);
});
