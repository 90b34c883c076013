import { execFileSync } from "node:child_process";
import { closeSync, openSync, readFileSync, truncateSync, writeFileSync, writeSync } from "node:fs";
import path from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { gguf } from "../../src/checkpoint/gguf.js";
import { type GgufValue, openGguf, readTensor, writeGguf } from "../../src/checkpoint/index.js";
import { tokenizerFiles } from "../../src/checkpoint/tokenizer-from-gguf.js";
import { DTYPE_ID } from "../../src/ggml/dtype.js";
import { blockSize, dataBytes, loadFunctions, QUANTIZED_DTYPES, type StoredDType } from "../../src/ggml/index.js";
import { modelFromConfig, openCheckpoint } from "../../src/models/index.js";
import { exportGguf } from "../../src/quantize/index.js";
import { CoppiceError } from "../../src/system/errors.js";
import { temporaryDirectory } from "../temporary.js";

const root = temporaryDirectory();
const fixtures = path.resolve(import.meta.dirname, "../fixtures/models");
const teacher = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
const TYPES: readonly StoredDType[] = ["f32", "f16", "bf16", ...QUANTIZED_DTYPES];

const tensor = (name: string, dtype: StoredDType, shape: readonly number[], fill = 1) => {
  const bytes = new Uint8Array(
    dataBytes(
      dtype,
      shape.reduce((a, b) => a * b, 1),
    ),
  ).map((_, i) => i * fill);
  return { name, dtype, shape, bytes, chunks: () => [bytes.subarray(0, 10), bytes.subarray(10)] };
};

const scalar: fc.Arbitrary<GgufValue> = fc.oneof(
  fc.record({ kind: fc.constant("uint8" as const), value: fc.integer({ min: 0, max: 255 }) }),
  fc.record({ kind: fc.constant("int8" as const), value: fc.integer({ min: -128, max: 127 }) }),
  fc.record({ kind: fc.constant("uint16" as const), value: fc.integer({ min: 0, max: 65535 }) }),
  fc.record({ kind: fc.constant("int16" as const), value: fc.integer({ min: -32768, max: 32767 }) }),
  fc.record({ kind: fc.constant("uint32" as const), value: fc.integer({ min: 0, max: 2 ** 32 - 1 }) }),
  fc.record({ kind: fc.constant("int32" as const), value: fc.integer() }),
  fc.record({ kind: fc.constant("float32" as const), value: fc.float({ noNaN: true }) }),
  fc.record({ kind: fc.constant("float64" as const), value: fc.double({ noNaN: true }) }),
  fc.record({ kind: fc.constant("bool" as const), value: fc.boolean() }),
  fc.record({ kind: fc.constant("string" as const), value: fc.string({ unit: "grapheme" }) }),
  fc.record({ kind: fc.constant("uint64" as const), value: fc.bigInt({ min: 2n ** 53n, max: 2n ** 64n - 1n }) }),
  fc.record({ kind: fc.constant("int64" as const), value: fc.maxSafeInteger() }),
);
const list: fc.Arbitrary<GgufValue> = fc.oneof(
  fc.array(fc.string()).map((value) => ({ kind: "array" as const, of: "string" as const, value })),
  fc.array(fc.integer()).map((value) => ({ kind: "array" as const, of: "int32" as const, value })),
  fc.array(fc.boolean()).map((value) => ({ kind: "array" as const, of: "bool" as const, value })),
);

describe("a GGUF file", () => {
  it("knows the block sizes of ggml's types", () => {
    const f = loadFunctions();
    for (const dtype of TYPES) {
      expect(f.ggml_blck_size(DTYPE_ID[dtype]), dtype).toBe(blockSize(dtype));
      expect(f.ggml_type_size(DTYPE_ID[dtype]), dtype).toBe(dataBytes(dtype, blockSize(dtype)));
    }
  });

  it("gives back what was written: every kind of metadata", async () => {
    const file = path.join(root, "metadata.gguf");
    await fc.assert(
      fc.asyncProperty(fc.dictionary(fc.string({ minLength: 1 }), fc.oneof(scalar, list)), async (entries) => {
        const metadata = new Map(Object.entries(entries).filter(([key]) => key !== "general.alignment"));
        await writeGguf(file, metadata, [tensor("a", "f32", [3, 5])]);
        expect(openGguf(file).metadata).toEqual(metadata);
      }),
      { numRuns: 60 },
    );
  });

  it("gives back what was written: tensors of every type, in one file and in several", async () => {
    const tensors = TYPES.map((dtype, i) => tensor(`t.${dtype}`, dtype, [i + 1, 512], i + 1));
    for (const shardBytes of [Number.POSITIVE_INFINITY, 4096]) {
      const files = await writeGguf(path.join(root, `all-${shardBytes}.gguf`), new Map(), tensors, { shardBytes });
      expect(files.length > 1).toBe(shardBytes === 4096);
      const opened = openGguf(files.at(-1)!);
      expect([...opened.tensors.keys()].sort()).toEqual(tensors.map(({ name }) => name).sort());
      for (const { name, dtype, shape, bytes } of tensors) {
        expect(opened.tensors.get(name)).toMatchObject({ dtype, shape });
        expect(Buffer.compare(opened.readRows(name, 0, shape[0] ?? 1), bytes)).toBe(0);
      }
    }
  });

  it.each(["llama-1", "llama-2-tied-gqa", "llama-3-bf16-sharded", "llama-biases", "mistral-nemo-f16"])(
    "made of %s is the same model, bit by bit",
    async (name) => {
      const { writeTokenizer } = await import("../llama-cpp.js");
      const original = openCheckpoint(path.join(fixtures, name));
      const directory = path.join(root, name);
      writeTokenizer(directory, Number(original.config.vocab_size));
      const file = path.join(root, `${name}.gguf`);
      const dtype = [...original.source.tensors.values()].find(({ shape }) => shape.length > 1)!.dtype as "f32";
      await exportGguf(file, { ...original, directory }, { kind: dtype });
      const back = openCheckpoint(file);
      const model = modelFromConfig(original.config);
      expect(modelFromConfig(back.config).sizes).toEqual(model.sizes);
      expect(modelFromConfig(back.config).parameters).toEqual(model.parameters);
      for (const { name: parameter, axes } of model.parameters) {
        const ours = readTensor(back.source, parameter);
        if (axes.length > 1) expect(Buffer.compare(ours, readTensor(original.source, parameter)), parameter).toBe(0);
        else expect(back.source.tensors.get(parameter)).toMatchObject({ dtype: "f32" });
      }
    },
  );
});

describe("a hostile GGUF file", () => {
  const file = path.join(root, "hostile.gguf");
  const attempt = (bytes: Uint8Array): void => {
    writeFileSync(file, bytes);
    try {
      const { source, config } = openCheckpoint(file);
      for (const name of source.tensors.keys()) readTensor(source, name);
      modelFromConfig(config);
    } catch (error) {
      if (!(error instanceof CoppiceError)) throw error;
    }
  };
  const whole = async (): Promise<Uint8Array> => {
    const good = path.join(root, "good.gguf");
    await exportGguf(good, openCheckpoint(teacher), { kind: "q8_0" });
    return readFileSync(good);
  };

  it("is refused with a reason, whatever bytes of its header were changed", async () => {
    const good = await whole();
    const headerBytes = 40_000;
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat(headerBytes), fc.nat(255)), { minLength: 1, maxLength: 4 }), (changes) => {
        const bytes = good.slice();
        for (const [at, value] of changes) bytes[at] = value;
        attempt(bytes);
      }),
      { numRuns: 300 },
    );
  });

  it("is refused with a reason, where counts, lengths and offsets were made absurd", async () => {
    const good = await whole();
    const absurd = [0xffffffffffffffffn, 0x7fffffffffffffffn, 0x100000000n, 0xffffffffn, 1n << 40n, 0n];
    fc.assert(
      fc.property(fc.nat(30_000), fc.constantFrom(...absurd), (at, value) => {
        const bytes = Buffer.from(good);
        bytes.writeBigUInt64LE(value, at);
        attempt(bytes);
      }),
      { numRuns: 300 },
    );
    for (const value of absurd)
      for (const at of [8, 16]) {
        const bytes = Buffer.from(good);
        bytes.writeBigUInt64LE(value, at);
        writeFileSync(file, bytes);
        expect(() => openGguf(file).tensors.size > 0 || openCheckpoint(file)).toThrow(CoppiceError);
      }
  });

  it("is refused before its lists take all memory, one by one or together", () => {
    /** A file of empty texts, whose bytes are a hole. */
    const listsOf = (lengths: readonly number[]): string => {
      const header = Buffer.alloc(24);
      header.write("GGUF");
      header.writeUInt32LE(3, 4);
      header.writeBigUInt64LE(BigInt(lengths.length), 16);
      const handle = openSync(file, "w");
      writeSync(handle, header, 0, header.length, 0);
      let end = header.length;
      lengths.forEach((length, i) => {
        const entry = Buffer.alloc(25); // the key's length and letter, list, bytes, how many
        entry.writeBigUInt64LE(1n);
        entry.write("abcdef"[i]!, 8);
        entry.writeUInt32LE(9, 9);
        entry.writeBigUInt64LE(BigInt(length), 17);
        writeSync(handle, entry, 0, entry.length, end);
        end += entry.length + length;
      });
      closeSync(handle);
      truncateSync(file, end);
      return file;
    };
    expect(openGguf(listsOf([1000, 20])).metadata.get("b")?.value).toHaveLength(20);
    expect(() => openGguf(listsOf([1 << 26]))).toThrow(/the length of a is 67108864, the limit is 8388608/);
    expect(() => openGguf(listsOf([1 << 22, 1 << 22, 1]))).toThrow(/with c its lists have more than 8388608 elements/);
  });

  it("is refused where its tokenizer would take hours to read", () => {
    const metadata = new Map([
      ["tokenizer.ggml.model", gguf.string("llama")],
      ["tokenizer.ggml.tokens", gguf.strings(["a", "b", "ab".repeat(1 << 20)])],
    ]);
    expect(() => tokenizerFiles("long.gguf", metadata)).toThrow(/long\.gguf.*a token of 2097152 characters/);
  });

  it.skipIf(process.platform === "win32")("is refused at once where it is a named pipe", () => {
    const pipe = path.join(root, "pipe.gguf");
    execFileSync("mkfifo", [pipe]);
    expect(() => openGguf(pipe)).toThrow(/pipe\.gguf is not a regular file/);
  });

  it("is refused with a reason, cut off anywhere", async () => {
    const good = await whole();
    for (let length = 0; length < good.length; length += Math.ceil(good.length / 200)) {
      writeFileSync(file, good.subarray(0, length));
      expect(() => openGguf(file), `${length} bytes`).toThrow(CoppiceError);
    }
  });

  it.each([
    ["no magic", (bytes: Buffer) => bytes.write("GGML", 0), /not a GGUF file/],
    ["another version", (bytes: Buffer) => bytes.writeUInt32LE(1, 4), /version 1/],
    ["a huge count of tensors", (bytes: Buffer) => bytes.writeBigUInt64LE(1n << 60n, 8), /number of tensors is/],
    ["a huge count of keys", (bytes: Buffer) => bytes.writeBigUInt64LE(1n << 60n, 16), /metadata keys is/],
  ])("with %s says so", async (_, change, message) => {
    const bytes = Buffer.from(await whole());
    change(bytes);
    writeFileSync(file, bytes);
    expect(() => openGguf(file)).toThrow(message);
  });
});
