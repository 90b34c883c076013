import { execFile } from "node:child_process";
import { readdirSync } from "node:fs";
import path from "node:path";
import { promisify } from "node:util";
import { expect, it } from "vitest";
import { quantize } from "../../src/jobs/index.js";
import { temporaryDirectory } from "../temporary.js";

const root = path.resolve(import.meta.dirname, "../..");

// Both set up tiles of their own where the processor has AMX, and llama.cpp does so once for a thread.
it("llama.cpp computes the same after our kernels have run on its thread", async () => {
  const out = path.join(temporaryDirectory(), "quantized");
  await quantize({ model: path.join(root, "examples/tiny-teacher"), types: ["q8_0"], out });
  const file = path.join(out, readdirSync(out).find((name) => name.endsWith(".gguf"))!);
  const args = [
    path.join(root, "node_modules/tsx/dist/cli.mjs"),
    path.join(import.meta.dirname, "llama-and-ours.ts"),
    file,
  ];
  const { stdout } = await promisify(execFile)(process.execPath, args, {
    env: { ...process.env, UV_THREADPOOL_SIZE: "1" },
  });
  const [before, after] = stdout
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  expect(before.product).toBe(16);
  expect(after).toEqual(before);
});
