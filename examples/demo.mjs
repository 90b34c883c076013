// Compresses the embedded teacher: the main job, start to end, in about a minute on two cores.
import { spawnSync } from "node:child_process";
import { rmSync } from "node:fs";
import path from "node:path";
import process from "node:process";

const root = path.resolve(import.meta.dirname, "..");
const at = (...names) => path.join(root, ...names);
const out = at("demo-run");
rmSync(out, { recursive: true, force: true });

const node = (args, options = {}) => {
  const result = spawnSync(process.execPath, args, { cwd: root, stdio: "inherit", ...options });
  if (result.status !== 0) process.exit(result.status ?? 1);
  return result;
};

console.error(
  "Compressing the embedded teacher (0.86 M parameters, trained on little stories) to two thirds of its size.\n",
);
node([
  at("bin/coppice.cjs"),
  ...["compress", at("examples/tiny-teacher"), "--target", "0.67x", "--data", at("examples/corpus/stories.txt.gz")],
  ...[
    "--tokens",
    "300K",
    "--sequence-length",
    "128",
    "--samples",
    "256",
    "--candidates",
    "8",
    "--gguf",
    "q8_0",
    "--out",
    out,
  ],
]);
