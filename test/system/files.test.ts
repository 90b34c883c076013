import { existsSync, openSync, readdirSync, writeSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { writeSafetensors } from "../../src/checkpoint/index.js";
import { checkSpace, writeFileAtomic, writingError } from "../../src/system/files.js";
import { temporaryDirectory } from "../temporary.js";

const directory = temporaryDirectory();

describe("a full disk", () => {
  it.skipIf(!existsSync("/dev/full"))("is reported with the file and its size", () => {
    const full = openSync("/dev/full", "w");
    let error: unknown;
    try {
      writeSync(full, "x");
    } catch (thrown) {
      error = thrown;
    }
    expect(String(writingError(error, "out/model.safetensors", 3 * 2 ** 30))).toMatch(
      /out\/model.safetensors could not be written \(3.0 GiB\): the disk is full/,
    );
  });

  it("is noticed in advance where the size is known, and leaves no file", () => {
    expect(() => checkSpace(path.join(directory, "not", "there"), 2 ** 60, "two checkpoints")).toThrow(
      /two checkpoints need 1073741824.0 GiB, its disk has [\d.]+ GiB left/,
    );
    checkSpace(directory, 1, "a byte");
    const shape = [2 ** 30, 2 ** 20];
    const tensors = [{ name: "large", dtype: "f32" as const, shape, chunks: () => [] }];
    expect(() => writeSafetensors(path.join(directory, "large.safetensors"), tensors)).toThrow(/its disk has/);
    expect(readdirSync(directory)).toEqual([]);
  });

  it("or any other error leaves no partial file", () => {
    expect(() => writeFileAtomic(path.join(directory, "a\0b"), "x")).toThrow();
    const broken = { name: "a", dtype: "f32" as const, shape: [4], chunks: () => [new Uint8Array(3)] };
    expect(() => writeSafetensors(path.join(directory, "broken.safetensors"), [broken])).toThrow(
      /3 bytes, its shape needs/,
    );
    expect(readdirSync(directory)).toEqual([]);
  });
});
