// Compresses the embedded teacher: the main job, start to end, in about a minute on two cores.
import { spawnSync } from "node:child_process";
import path from "node:path";
import process from "node:process";

const root = path.resolve(import.meta.dirname, "..");
const out = "demo-run";

console.error(
  "Compressing the embedded teacher (0.86 M parameters, trained on little stories) to two thirds of its size.\n",
);
const options = "--tokens 300K --sequence-length 128 --samples 256 --candidates 8 --gguf q8_0".split(" ");
const input = ["examples/tiny-teacher", "--target", "0.67x", "--data", "examples/corpus/stories.txt.gz"];
const { status } = spawnSync(
  process.execPath,
  ["bin/coppice.cjs", "compress", ...input, ...options, "--out", out, "--restart"],
  {
    cwd: root,
    stdio: "inherit",
  },
);
process.exitCode = status ?? 1;
