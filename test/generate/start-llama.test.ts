import { execFile } from "node:child_process";
import path from "node:path";
import { promisify } from "node:util";
import { expect, it } from "vitest";
import { exportModel } from "../../src/index.js";
import { temporaryDirectory } from "../temporary.js";

const root = path.resolve(import.meta.dirname, "../..");
const model = path.join(temporaryDirectory(), "teacher.gguf");
await exportModel({ model: path.join(root, "examples/tiny-teacher"), out: model, dtype: "f32" });

// Two builds hand each other tensors of backends that they do not know, and llama.cpp aborts.
it
  .runIf(process.platform === "linux")
  .each(["the processor after ggml's functions", "the processor preferred", "any device after llama.cpp"])(
  "llama.cpp is of the same build as the ggml of its process: %s",
  async (order) => {
    const args = [
      path.join(root, "node_modules/tsx/dist/cli.mjs"),
      path.join(import.meta.dirname, "one-build.ts"),
      model,
      order,
    ];
    const { stdout } = await promisify(execFile)(process.execPath, args);
    const folders: string[] = JSON.parse(stdout);
    expect(folders).toHaveLength(1);
    if (order !== "the processor after ggml's functions") expect(folders[0]).not.toMatch(/vulkan|cuda/);
  },
);
