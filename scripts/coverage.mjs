// Runs the tests with coverage and lists the files of src that they cover least. Processes of their own (`bin/coppice.cjs`) do not count.
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";

const DIRECTORY = "test-results/coverage";
const LISTED = 10;
const { status } = spawnSync(
  "npx",
  [
    "vitest",
    "run",
    "--coverage.enabled",
    "--coverage.reportOnFailure", // one failure among thousands of tests takes nothing from the figures
    "--coverage.provider=v8",
    "--coverage.include=src/**/*.ts",
    "--coverage.reporter=text-summary",
    "--coverage.reporter=json-summary",
    "--coverage.reporter=html",
    `--coverage.reportsDirectory=${DIRECTORY}`,
    ...process.argv.slice(2),
  ],
  { stdio: "inherit" },
);
const { total, ...files } = JSON.parse(readFileSync(path.join(DIRECTORY, "coverage-summary.json"), "utf8"));
const least = Object.entries(files)
  .filter(([, { lines }]) => lines.total > 0)
  .sort(([, a], [, b]) => a.lines.pct - b.lines.pct)
  .slice(0, LISTED);
console.log(`\nLines covered: ${total.lines.pct} %. Least covered (${DIRECTORY}/index.html has all):`);
for (const [file, { lines }] of least)
  console.log(`${lines.pct.toFixed(1).padStart(6)} %  ${path.relative(process.cwd(), file)} (${lines.total} lines)`);
process.exit(status ?? 1);
