import path from "node:path";
import { expect, it } from "vitest";
import { gguf } from "../../src/checkpoint/gguf.js";
import { openCheckpoint } from "../../src/models/index.js";
import { contentOf, nameOf } from "../../src/quantize/content.js";

it.each([
  ["/models/smaller", "smaller"],
  ["/models/smaller.gguf", "smaller"],
  [`/cache/hub/models--Qwen--Qwen3-0.6B/snapshots/${"0a1b".repeat(10)}`, "Qwen3-0.6B"],
  [`/cache/hub/models--gpt2/snapshots/${"0a1b".repeat(10)}`, "gpt2"],
  [`/elsewhere/snapshots/${"0a1b".repeat(10)}`, "0a1b".repeat(10)],
])("the model at %s is named %s", (place, name) => {
  expect(nameOf({ path: place })).toBe(name);
});

it("what a GGUF file says of its origin and tokens is kept where the file is made anew, and its types and layout are not", () => {
  const checkpoint = openCheckpoint(path.resolve(import.meta.dirname, "../../examples/tiny-teacher"));
  const readFrom = new Map([
    ["general.license", gguf.string("mit")],
    ["general.name", gguf.string("Tiny")],
    ["general.file_type", gguf.uint32(99)],
    ["general.alignment", gguf.uint32(64)],
    ["tokenizer.ggml.fim_pre_token_id", gguf.uint32(3)],
    ["tokenizer.chat_template.tool_use", gguf.string("{{ tools }}")],
    ["llama.block_count", gguf.uint32(99)],
  ]);
  const { metadata } = contentOf(checkpoint, { readFrom });
  for (const key of ["general.license", "tokenizer.ggml.fim_pre_token_id", "tokenizer.chat_template.tool_use"])
    expect(metadata.get(key)).toEqual(readFrom.get(key));
  expect(metadata.get("general.name")?.value).toBe("Tiny");
  expect(contentOf(checkpoint, { readFrom, name: "other" }).metadata.get("general.name")?.value).toBe("other");
  expect(metadata.get("general.file_type")?.value).not.toBe(99);
  expect(metadata.has("general.alignment")).toBe(false);
  expect(metadata.get("llama.block_count")?.value).toBe(checkpoint.model.layerCount);
});
