import { readdirSync } from "node:fs";
import path from "node:path";
import type { LlamaModel, Token } from "node-llama-cpp";
import { afterAll, describe, expect, it } from "vitest";
import { loadModel } from "../../src/generate/engine.js";
import { canKeepThreads } from "../../src/ggml/index.js";
import { exportModel } from "../../src/index.js";
import { temporaryDirectory } from "../temporary.js";
import { clearTokens } from "./clear-tokens.js";

const teacher = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
const file = path.join(temporaryDirectory(), "teacher-f32.gguf");
await exportModel({ model: teacher, out: file, dtype: "f32" });

const threadIds = () => new Set(readdirSync("/proc/self/task"));
const PROMPT = [1, 7, 30, 52, 9].map((id) => id as Token);

/** The tokens that a context with a number of threads generates, and the new threads after each of them. */
async function generateWith(model: LlamaModel, threads: number, count: number) {
  const before = threadIds();
  const context = await model.createContext({ contextSize: 64, threads });
  const tokens: Token[] = [];
  const kept: string[][] = [];
  for await (const token of context.getSequence().evaluate(PROMPT, { temperature: 0, yieldEogToken: true })) {
    tokens.push(token);
    kept.push([...threadIds()].filter((id) => !before.has(id)));
    if (tokens.length === count) break;
  }
  await context.dispose();
  return { tokens, kept, left: [...threadIds()].filter((id) => !before.has(id)) };
}

describe("threads that llama.cpp computes with", async () => {
  const model = await loadModel(file, { device: "cpu" });
  afterAll(() => model.dispose());
  const alone = await generateWith(model, 1, 12); // also starts the threads that Node keeps

  it.skipIf(!canKeepThreads())("live as long as their context, and no longer", async () => {
    const { kept, left } = await generateWith(model, 2, 12);
    const [, , third = []] = kept; // the first graph finds no pool yet
    expect(third).toHaveLength(1);
    for (const ids of kept.slice(3)) expect(ids).toEqual(third);
    expect(left).toEqual([]);
  });

  it("generate the same tokens, however many there are, and side by side", async () => {
    const several = await Promise.all([2, 1, 2].map((threads) => generateWith(model, threads, 12)));
    const clear = await clearTokens(model, PROMPT, alone.tokens);
    expect(clear).toBeGreaterThan(0);
    for (const { tokens } of several) expect(tokens.slice(0, clear)).toEqual(alone.tokens.slice(0, clear));
  });

  it.skipIf(!canKeepThreads())("end with every context that is disposed", async () => {
    const before = threadIds().size;
    for (let round = 0; round < 20; round++) await generateWith(model, 1 + (round % 2), 3);
    expect(threadIds().size).toBe(before);
  });
});
