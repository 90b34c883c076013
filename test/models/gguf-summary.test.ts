import { cpSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { gguf, openGguf } from "../../src/checkpoint/gguf.js";
import { cacheBytes, countParameters, openCheckpoint, summarizeGguf } from "../../src/models/index.js";
import { exportGguf } from "../../src/quantize/index.js";
import { writeAnyGguf } from "../any-gguf.js";
import { writeTokenizer } from "../llama-cpp.js";
import { temporaryDirectory } from "../temporary.js";

const root = temporaryDirectory();
const fixtures = path.resolve(import.meta.dirname, "../fixtures/architectures");

describe("what a file's header says of the run", () => {
  it.each(["ernie4_5", "qwen3", "gemma2", "gemma3_text", "olmo3", "gpt2", "glm4", "granite"])(
    "is what our own description of %s says",
    async (name) => {
      const directory = path.join(root, name);
      cpSync(path.join(fixtures, name), directory, { recursive: true });
      const { model } = openCheckpoint(directory);
      writeTokenizer(directory, model.vocabSize);
      const file = path.join(root, `${name}.gguf`);
      await exportGguf(file, openCheckpoint(directory), { kind: "f32" });
      const summary = summarizeGguf(openGguf(file));
      for (const tokens of [1, 40, 1000]) expect(summary.cacheBytes(tokens)).toBe(cacheBytes(model, tokens));
      expect(summary).toMatchObject({
        parameters: countParameters(model.parameters, model.sizes),
        layers: model.layerCount,
        hidden: model.sizes.hidden,
        vocabSize: model.vocabSize,
        contextLength: model.maxPositions,
      });
    },
  );

  // bytes by hand from llama.cpp's shapes: keys and values of 16 bits, states of 32
  const [hidden, inner, state, convolution] = [64, 128, 16, 4];
  const mamba = 4 * ((convolution - 1) * inner + state * inner);
  const attention = (tokens: number) => 2 * tokens * 2 * 2 * (hidden / 4); // 2 key-value heads
  it("counts states, and keys and values where a layer attends", async () => {
    const of = async (name: "mamba" | "jamba" | "falcon") =>
      summarizeGguf(openGguf(await writeAnyGguf(path.join(root, `${name}.gguf`), name)));
    expect((await of("mamba")).cacheBytes(100)).toBe(2 * mamba);
    expect((await of("jamba")).cacheBytes(100)).toBe(mamba + attention(100));
    expect((await of("falcon")).cacheBytes(100)).toBe(2 * attention(100));
  });

  it("counts a window where a layer is said to have one", async () => {
    const file = await writeAnyGguf(path.join(root, "window.gguf"), "falcon", {
      keys: {
        "attention.sliding_window": gguf.uint32(10),
        "attention.sliding_window_pattern": gguf.numbers("uint32", [1, 0]),
      },
    });
    // 10 positions and a batch of 512, in steps of 256
    expect(summarizeGguf(openGguf(file)).cacheBytes(1000)).toBe(attention(768) + attention(1000));
  });
});
