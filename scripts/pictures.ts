/**
 * Makes the README's pictures from a real run: a recording of the demo in a terminal, and the page of its report. Needs
 * `script` (util-linux) and Chromium.
 *
 *     npx tsx scripts/pictures.ts
 */
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";
import { browserPath } from "../test/pages.js";
import { type Output, recordingSvg } from "./recording.js";

const root = path.resolve(import.meta.dirname, "..");
const pictures = path.join(root, "docs/images");
const [COLUMNS, ROWS] = [112, 26];

/** Runs a command in a terminal of its own. @throws when it fails */
function record(command: string): Output[] {
  const directory = mkdtempSync(path.join(tmpdir(), "recording-"));
  const [log, timing] = [path.join(directory, "log"), path.join(directory, "timing")];
  const inTerminal = `stty cols ${COLUMNS} rows ${ROWS}; printf '$ npm run demo\\r\\n'; ${command}`;
  const files = ["--log-out", log, "--log-timing", timing, "--logging-format", "classic"];
  const { status, error } = spawnSync("script", ["--quiet", "--return", ...files, "--command", inTerminal], {
    cwd: root,
    stdio: "inherit",
    env: { ...process.env, TERM: "xterm-256color" },
  });
  if (status !== 0) throw error ?? new Error(`${command} ended with ${status}`);
  const bytes = readFileSync(log);
  let at = bytes.indexOf("\n") + 1; // the first line is script's own
  return readFileSync(timing, "utf8")
    .trim()
    .split("\n")
    .map((line) => {
      const [delay = 0, count = 0] = line.split(" ").map(Number);
      at += count;
      const text = bytes.toString("utf8", at - count, at);
      return { delay, bytes: Buffer.from(text.replaceAll(`${root}/`, "")) }; // where it ran concerns nobody
    });
}

async function photograph(page: string, picture: string): Promise<void> {
  if (browserPath === undefined) throw new Error("the picture of the report needs Chromium (apt-get install chromium)");
  const browser = await chromium.launch({ executablePath: browserPath, args: ["--no-sandbox"] });
  try {
    const tab = await browser.newPage({ viewport: { width: 1100, height: 900 }, deviceScaleFactor: 1 });
    await tab.goto(pathToFileURL(page).href);
    await tab.screenshot({ path: picture });
  } finally {
    await browser.close();
  }
}

mkdirSync(pictures, { recursive: true });
const outputs = record("npm run --silent demo");
const waits = { longestWait: 1, shortestFrame: 0.4, lastSeconds: 6 };
const title = "A terminal: npm run demo compresses a tiny model to two thirds of its size; waits are shortened";
const svg = await recordingSvg(outputs, title, { columns: COLUMNS, rows: ROWS, ...waits });
writeFileSync(path.join(pictures, "demo.svg"), svg);
await photograph(path.join(root, "demo-run/report.html"), path.join(pictures, "report.png"));
