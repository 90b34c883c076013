import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll } from "vitest";

/**
 * A directory that goes when the test file has run.
 * Modules that test files share call this from their functions: such a module is loaded once, and outlives the first file.
 */
export function temporaryDirectory(): string {
  const directory = mkdtempSync(path.join(tmpdir(), "coppice-test-"));
  afterAll(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}
