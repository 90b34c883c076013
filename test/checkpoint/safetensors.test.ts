import { readdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import path from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { blocks, openSafetensors, readTensor, writeSafetensors } from "../../src/checkpoint/index.js";
import { bytesOf } from "../../src/ggml/index.js";
import { CoppiceError } from "../../src/system/errors.js";
import { temporaryDirectory } from "../temporary.js";

const directory = temporaryDirectory();
const file = (name: string) => path.join(directory, name);

function writeRaw(name: string, header: unknown, dataBytes: number): string {
  const text = typeof header === "string" ? header : JSON.stringify(header);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(Buffer.byteLength(text)));
  writeFileSync(file(name), Buffer.concat([length, Buffer.from(text), Buffer.alloc(dataBytes)]));
  return file(name);
}

describe("safetensors", () => {
  it("reads what it wrote, bit by bit, for any names, shapes and types", () => {
    const tensor = fc.record({
      name: fc
        .oneof(fc.string({ minLength: 1, maxLength: 20 }), fc.constantFrom("__proto__", "constructor"))
        .filter((name) => name !== "__metadata__"),
      dtype: fc.constantFrom("f32", "f16", "bf16"),
      shape: fc.array(fc.integer({ min: 1, max: 6 }), { minLength: 0, maxLength: 3 }),
      seed: fc.nat(255),
    });
    fc.assert(
      fc.property(fc.uniqueArray(tensor, { selector: ({ name }) => name, maxLength: 8 }), (tensors) => {
        const content = tensors.map(({ dtype, shape, seed }) => {
          const bytes = shape.reduce((a, b) => a * b, dtype === "f32" ? 4 : 2);
          return Uint8Array.from({ length: bytes }, (_, i) => (seed + 31 * i) % 256);
        });
        const target = file("any.safetensors");
        writeSafetensors(
          target,
          tensors.map(({ name, dtype, shape }, i) => ({ name, dtype, shape, chunks: () => [content[i]!] }) as const),
        );
        const opened = openSafetensors(target);
        expect(opened.tensors.size).toBe(tensors.length);
        tensors.forEach(({ name, shape, dtype }, i) => {
          expect(opened.tensors.get(name)).toMatchObject({ shape, dtype });
          expect(Buffer.from(opened.readRows(name, 0, shape[0] ?? 1)).equals(content[i]!)).toBe(true);
        });
      }),
      { numRuns: 60 },
    );
  });

  it("reads a tensor in blocks of rows", () => {
    const values = Float32Array.from({ length: 3 << 20 }, (_, i) => i);
    writeSafetensors(file("large.safetensors"), [
      { name: "x", dtype: "f32", shape: [3 << 10, 1 << 10], chunks: () => [bytesOf(values)] },
    ]);
    const opened = openSafetensors(file("large.safetensors"));
    expect([...blocks(opened, "x")].length).toBeGreaterThan(0);
    const row = opened.readRows("x", 3071, 3072);
    expect(new Float32Array(row.buffer, row.byteOffset, 2)).toEqual(Float32Array.of(3071 * 1024, 3071 * 1024 + 1));
  });

  it("leaves nothing behind when writing fails", () => {
    const bad = { name: "x", dtype: "f32", shape: [4], chunks: () => [new Uint8Array(3)] } as const;
    expect(() => writeSafetensors(file("failed.safetensors"), [bad])).toThrow(
      /its chunks have 3 bytes, its shape needs 16/,
    );
    expect(readdirSync(directory).filter((name) => name.startsWith("failed"))).toEqual([]);
  });

  const entry = (shape: unknown, offsets: unknown, dtype: unknown = "F32") => ({
    x: { dtype, shape, data_offsets: offsets },
  });
  it.each([
    [
      "a header length past the file",
      () => writeFileSync(file("h"), Buffer.from("ffffffffffffff7f7b7d", "hex")),
      /claims 9223372036854775807 bytes/,
    ],
    ["too few bytes", () => writeFileSync(file("h"), Buffer.alloc(3)), /3 bytes are too few/],
    ["a header that is not JSON", () => writeRaw("h", "{]", 0), /not valid JSON/],
    ["a header that is not an object", () => writeRaw("h", "[1]", 0), /not a JSON object/],
    ["a huge shape", () => writeRaw("h", entry([2 ** 40, 2 ** 40], [0, 8]), 8), /needs/],
    ["a negative size", () => writeRaw("h", entry([-1], [0, 4]), 4), /no valid dtype, shape/],
    ["a fractional size", () => writeRaw("h", entry([1.5], [0, 6]), 6), /no valid dtype, shape/],
    ["offsets that run backwards", () => writeRaw("h", entry([1], [4, 0]), 4), /no valid dtype, shape/],
    ["offsets past the data", () => writeRaw("h", entry([2], [0, 8]), 4), /truncated or its header is wrong/],
    [
      "offsets that do not fit the shape",
      () => writeRaw("h", entry([3], [0, 8]), 8),
      /needs 12 bytes, its offsets span 8/,
    ],
    ["an unknown type", () => writeRaw("h", entry([1], [0, 4], "Q9"), 4), /unknown type Q9/],
    ["a type that is not text", () => writeRaw("h", entry([1], [0, 4], 7), 4), /no valid dtype/],
    ["trailing bytes", () => writeRaw("h", entry([1], [0, 4]), 9), /end at byte 4 of 9/],
    [
      "overlapping tensors",
      () =>
        writeRaw(
          "h",
          {
            a: { dtype: "F32", shape: [2], data_offsets: [0, 8] },
            b: { dtype: "F32", shape: [1], data_offsets: [4, 8] },
          },
          8,
        ),
      /inside the tensor before it/,
    ],
    [
      "a hole between tensors",
      () =>
        writeRaw(
          "h",
          {
            a: { dtype: "F32", shape: [1], data_offsets: [0, 4] },
            b: { dtype: "F32", shape: [1], data_offsets: [8, 12] },
          },
          12,
        ),
      /with a hole after/,
    ],
  ])("refuses %s", (_, write, message) => {
    write();
    expect(() => openSafetensors(file("h"))).toThrow(message);
  });

  it.each(["constructor", "toString", "__proto__"])("refuses the element type %s", (dtype) => {
    const damaged = writeRaw("type.safetensors", entry([2], [0, 8], dtype), 8);
    expect(() => openSafetensors(damaged)).toThrow(`tensor x has the unknown type ${dtype}`);
  });

  it("answers any damage to a real file with an error of its own, or reads it", () => {
    const fixture = path.resolve(import.meta.dirname, "../fixtures/models/llama-2-tied-gqa/model.safetensors");
    const original = readFileSync(fixture);
    const headerBytes = 8 + Number(original.readBigUInt64LE());
    fc.assert(
      fc.property(fc.nat(headerBytes - 1), fc.nat(255), fc.nat(original.length), (at, value, length) => {
        const damaged = Buffer.from(original);
        damaged[at] = value;
        writeFileSync(file("damaged"), damaged);
        if (length % 3 === 0) truncateSync(file("damaged"), length);
        try {
          const opened = openSafetensors(file("damaged"));
          for (const name of opened.tensors.keys()) readTensor(opened, name);
        } catch (error) {
          expect(error).toBeInstanceOf(CoppiceError);
        }
      }),
      { numRuns: 400 },
    );
  });
});
