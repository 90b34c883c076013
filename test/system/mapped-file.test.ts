import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { mapFile } from "../../src/system/mapped-file.js";
import { temporaryDirectory } from "../temporary.js";

const GIB = 2 ** 30;

describe("a file of more than 4 GiB", () => {
  const file = path.join(temporaryDirectory(), "sparse.bin");
  const marks = [0, GIB - 2, 2 * GIB - 2, 3 * GIB, 4 * GIB - 2, 5 * GIB - 4];

  it("is read at every place, across the edges of its windows", () => {
    const handle = openSync(file, "w");
    ftruncateSync(handle, 5 * GIB);
    for (const [i, at] of marks.entries()) writeSync(handle, Buffer.from([i + 1, i + 2, i + 3, i + 4]), 0, 4, at);
    closeSync(handle);
    const mapped = mapFile(file);
    expect(mapped.byteLength).toBe(5 * GIB);
    for (const [i, at] of marks.entries()) expect([...mapped.bytes(at, 4)]).toEqual([i + 1, i + 2, i + 3, i + 4]);
    // longer than a window, from its last bytes on
    const long = mapped.bytes(GIB - 2, 2 * GIB);
    expect([long.length, long[0], long[GIB]]).toEqual([2 * GIB, 2, 3]);
    expect(() => mapped.bytes(0, 5 * GIB)).toThrow(/too large/);
    expect(() => mapped.bytes(5 * GIB - 1, 2)).toThrow(/lie beyond/);
    mapped.release(0, 5 * GIB);
    expect(mapped.bytes(3 * GIB, 1)[0]).toBe(4);
  });
});
