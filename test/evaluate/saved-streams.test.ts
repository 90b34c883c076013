import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it, vi } from "vitest";
import type { TensorToStream } from "../../src/checkpoint/safetensors.js";
import { readTensor } from "../../src/checkpoint/tensor-source.js";
import { SavedStreams } from "../../src/evaluate/saved-streams.js";
import { bytesOf } from "../../src/ggml/dtype.js";
import { CoppiceError } from "../../src/system/errors.js";
import { temporaryDirectory } from "../temporary.js";

const values = Float32Array.of(1, 2, 3);
/** Something to save. @param chunks its bytes */
const stream = (chunks: () => AsyncIterable<Uint8Array>) => ({
  saved: (name: string): TensorToStream[] => [{ name, dtype: "f32", shape: [values.length], chunks }],
});
const sound = stream(async function* () {
  yield bytesOf(values);
});

describe("saved streams", () => {
  it("are read back with the steps they are of, once enough time has passed to save them", async () => {
    const file = path.join(temporaryDirectory(), "streams.safetensors");
    await new SavedStreams(file, 3600).save(1, { sound });
    expect(existsSync(file)).toBe(false);
    const saved = new SavedStreams(file, 0);
    await saved.save(4, { sound }, { notes: { what: "a note" } });
    const found = saved.resume(({ file: source }) =>
      [...readTensor(source, "sound")].concat(source.metadata.what!.length),
    );
    expect(found).toEqual({ steps: 4, restored: [...bytesOf(values), 6] });
    await saved.save(5, { sound });
    expect(saved.resume(({ steps }) => steps)).toEqual({ steps: 5, restored: 5 });
    expect(saved.resume(() => undefined)).toBeUndefined();
    saved.delete();
    expect(saved.resume(() => 1)).toBeUndefined();
  });

  it.each(["", "damaged", "\u0008\0\0\0\0\0\0\0{}      "])("that are damaged count as none: %j", (content) => {
    const file = path.join(temporaryDirectory(), "streams.safetensors");
    writeFileSync(file, content);
    expect(new SavedStreams(file).resume(() => 1)).toBeUndefined();
  });

  it("leave nothing of a save that was killed", () => {
    const directory = temporaryDirectory();
    mkdirSync(directory, { recursive: true });
    for (const name of ["streams.safetensors.partial-1-ab", "other.safetensors.partial-1-ab"])
      writeFileSync(path.join(directory, name), "");
    new SavedStreams(path.join(directory, "streams.safetensors")).resume(() => 1);
    expect(readdirSync(directory)).toEqual(["other.safetensors.partial-1-ab"]);
  });

  it("that do not fit on the disk do not end the work, and other errors do", async () => {
    const file = path.join(temporaryDirectory(), "streams.safetensors");
    const saved = new SavedStreams(file, 0);
    await saved.save(1, { sound });
    const failing = (error: Error) =>
      // biome-ignore lint/correctness/useYield: it fails before its first chunk
      stream(async function* () {
        throw error;
      });
    const written = vi.spyOn(process.stderr, "write").mockReturnValue(true);
    await saved.save(2, { full: failing(new CoppiceError("the disk is full")) });
    written.mockRestore();
    await expect(saved.save(3, { wrong: failing(new TypeError("a mistake")) })).rejects.toThrow("a mistake");
    expect(saved.resume(({ steps }) => steps)).toEqual({ steps: 1, restored: 1 });
    expect(readdirSync(path.dirname(file))).toEqual(["streams.safetensors"]);
  });
});
