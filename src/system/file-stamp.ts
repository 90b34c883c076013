import { statSync } from "node:fs";
import path from "node:path";

/** What changes when a file does: its path, size, times and place on disk. Equal stamps mean the same, unchanged file. */
export function fileStamp(
  file: string,
): readonly [path: string, size: number, mtimeMs: number, ctimeMs: number, ino: number] {
  const { size, mtimeMs, ctimeMs, ino } = statSync(file);
  return [path.resolve(file), size, mtimeMs, ctimeMs, ino];
}
