// Runs quick tests on each other version of Node that is supported; npm's package `node` brings them. Slow tests and tests of what
// no version of Node changes are left to `npm test`.
import { spawnSync } from "node:child_process";
import path from "node:path";
import process from "node:process";

const VERSIONS = ["20.20", "22", "24"];
/** All tests have run on the version that runs this. */
const [own] = process.versions.node.split(".");
const others = VERSIONS.filter((version) => version.split(".")[0] !== own);
/** Native libraries and their memory, files and locks, tokenizers, the models' files, HTTP. */
const QUICK = ["test/system", "test/checkpoint", "test/data", "test/ggml/loading.test.ts"];
const SLOW = "test/checkpoint/real-tokenizers.test.ts";

const root = path.resolve(import.meta.dirname, "..");
const vitest = path.join(root, "node_modules/vitest/vitest.mjs");
const failed = [];
for (const version of others) {
  console.error(`> quick tests on Node ${version}`);
  const { status } = spawnSync(
    "npx",
    ["--yes", "--package", `node@${version}`, "--", "node", vitest, "run", ...QUICK, "--exclude", SLOW],
    { cwd: root, stdio: "inherit", shell: process.platform === "win32" },
  );
  if (status !== 0) failed.push(version);
}
if (failed.length > 0) {
  console.error(`quick tests failed on Node ${failed.join(", ")}`);
  process.exit(1);
}
