/**
 * What transformers makes of models that were cut here: cuts each axis of each fixture of test/fixtures/architectures, opens the
 * results with transformers (bench/peers/open_with_transformers.py), and keeps its logits beside the fixture, for test/models.
 *
 *     npx tsx bench/architecture-cuts.ts --python PYTHON [--only qwen3]
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import { openSafetensors, readTensor, writeSafetensors } from "../src/checkpoint/index.js";
import { bytesOf } from "../src/ggml/dtype.js";
import { Backend, toFloat32 } from "../src/ggml/index.js";
import { openCheckpoint, writeModel } from "../src/models/index.js";
import { cut, cutsOf, models, sampled } from "../test/models/architectures.js";

const { values } = parseArgs({ options: { python: { type: "string", default: "python3" }, only: { type: "string" } } });
const script = path.join(import.meta.dirname, "peers/open_with_transformers.py");
const backend = Backend.open({ device: "cpu" });
const root = mkdtempSync(path.join(tmpdir(), "coppice-cuts-"));
try {
  const jobs = models
    .filter(({ name }) => values.only === undefined || name === values.only)
    .flatMap(({ name, directory }) => {
      const checkpoint = openCheckpoint(directory);
      return cutsOf(checkpoint.model).map(({ name: axis, plan }) => {
        const folder = path.join(root, name, axis);
        writeModel(folder, cut(checkpoint, plan));
        return { name, directory, axis, folder, out: path.join(folder, "logits.safetensors") };
      });
    });
  const list = jobs.flatMap(({ directory, folder, out }) => [
    folder,
    "--tokens",
    path.join(directory, "expected.json"),
    "--out",
    out,
  ]);
  const { status } = spawnSync(values.python, [script, ...list], { stdio: "inherit" });
  if (status !== 0) throw new Error("transformers did not open all of them");
  for (const { name, directory } of models) {
    const own = jobs.filter((job) => job.name === name);
    if (own.length === 0) continue;
    const tensors = own.map(({ axis, out }) => {
      const file = openSafetensors(out);
      const [, places = 0, vocab = 0] = file.tensors.get("logits")?.shape ?? [];
      const logits = sampled(toFloat32(backend.functions, readTensor(file, "logits"), "f32"), vocab, places);
      return {
        name: axis,
        dtype: "f32" as const,
        shape: [logits.length / vocab, vocab],
        chunks: () => [bytesOf(logits)],
      };
    });
    writeSafetensors(path.join(directory, "cuts.safetensors"), tensors);
    console.log(`${name}: ${own.map(({ axis }) => axis).join(", ")}`);
  }
} finally {
  rmSync(root, { recursive: true, force: true });
}
