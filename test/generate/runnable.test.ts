import { cpSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { type GgufTensor, type GgufValue, gguf, openGguf, writeGguf } from "../../src/checkpoint/gguf.js";
import { readTensor } from "../../src/checkpoint/tensor-source.js";
import { Engine } from "../../src/generate/engine.js";
import { checkRunnable } from "../../src/generate/index.js";
import { openCheckpoint } from "../../src/models/index.js";
import { exportGguf } from "../../src/quantize/index.js";
import { writeTokenizer } from "../llama-cpp.js";
import { temporaryDirectory } from "../temporary.js";

const root = temporaryDirectory();

/** A fixture as a GGUF file. */
async function exported(name: string): Promise<string> {
  const directory = path.join(root, name);
  cpSync(path.resolve(import.meta.dirname, "../fixtures/architectures", name), directory, { recursive: true });
  writeTokenizer(directory, 96);
  const file = path.join(root, `${name}.gguf`);
  await exportGguf(file, openCheckpoint(directory), { kind: "f32" });
  return file;
}

/** The same file with other metadata, and more tensors. */
async function rewritten(file: string, entries: [string, GgufValue][], more: GgufTensor[]): Promise<string> {
  const opened = openGguf(file);
  const tensors = [...opened.tensors].map(([name, info]) => ({
    name,
    ...info,
    chunks: () => [readTensor(opened, name)],
  }));
  const changed = file.replace(/gguf$/, "changed.gguf");
  await writeGguf(changed, new Map([...opened.metadata, ...entries]), [...tensors, ...more]);
  return changed;
}

describe("what llama.cpp would end the process over", () => {
  it("a context longer than the learnt positions is refused; one as long is read to its end", async () => {
    const file = await exported("gpt2");
    expect(checkRunnable(file)).toMatchObject({ contextLength: 64, learnedPositions: 64 });
    const options = { device: "cpu", threads: 1 } as const;
    await expect(Engine.open(file, { ...options, contextSize: 65 })).rejects.toThrow(/learnt 64 positions.*65 tokens/);
    const engine = await Engine.open(file, { ...options, contextSize: 64 });
    const { tokens } = await engine.complete("a", { maxTokens: 200, temperature: 0 });
    await engine.dispose();
    expect(tokens).toBeGreaterThan(0);
  });

  it("heads of other sizes than the graph computes with are refused", async () => {
    const file = await exported("ernie4_5");
    const changed = await rewritten(file, [["ernie4_5.rope.dimension_count", gguf.uint32(4)]], []);
    expect(() => checkRunnable(changed)).toThrow(/rope.dimension_count is 4, this architecture computes with 12/);
  });

  it("a bias that checkpoints of the family do not have is refused", async () => {
    const file = await exported("arcee");
    const bias = { name: "blk.0.attn_q.bias", dtype: "f32" as const, shape: [48], chunks: () => [new Uint8Array(192)] };
    const changed = await rewritten(file, [], [bias]);
    expect(() => openCheckpoint(changed)).toThrow(/blk\.0\.attn_q\.bias is a bias that arcee models do not have/);
  });

  it("scales that multiply matrices are refused: weights without them are others", async () => {
    const file = await exported("qwen3");
    const scale = { name: "blk.0.ffn_up.scale", dtype: "f32" as const, shape: [1], chunks: () => [new Uint8Array(4)] };
    const changed = await rewritten(file, [], [scale]);
    expect(() => openCheckpoint(changed)).toThrow(/blk\.0\.ffn_up\.scale scales a matrix, which is not supported/);
  });
});

describe("a file of another converter", () => {
  it("has factors of its rotation, whatever it calls their kind", async () => {
    const file = await exported("phi3-longrope-partial");
    const changed = await rewritten(file, [["phi3.rope.scaling.type", gguf.string("linear")]], []);
    expect(openCheckpoint(changed).config).toEqual(openCheckpoint(file).config);
  });
});
