import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll } from "vitest";

/** A directory that goes when the test file has run. */
export function temporaryDirectory(): string {
  const directory = mkdtempSync(path.join(tmpdir(), "coppice-test-"));
  afterAll(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}
