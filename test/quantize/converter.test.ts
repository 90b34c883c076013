import { createHash } from "node:crypto";
import { readdirSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { openGguf, readTensor } from "../../src/checkpoint/index.js";
import { readJsonObject } from "../../src/checkpoint/json.js";
import { openCheckpoint } from "../../src/models/index.js";
import { exportGguf } from "../../src/quantize/index.js";
import { writeTokenizer } from "../llama-cpp.js";
import { temporaryDirectory } from "../temporary.js";

/** The output of llama.cpp's own converter for the test models; see bench/peers/make_gguf_fixtures.py. */
const fixtures = path.resolve(import.meta.dirname, "../fixtures");

interface Described {
  readonly metadata: Readonly<Record<string, { readonly kind: readonly string[]; readonly value: unknown }>>;
  readonly tensors: Readonly<
    Record<string, { readonly type: string; readonly shape: readonly number[]; readonly sha256: string }>
  >;
}

/** The keys and tensors in which our files differ, and why. */
const DIFFERENCES: Readonly<Record<string, string>> = {
  "general.name": "the directory's name unchanged; the converter turns it into a title",
  "general.basename": "guessed from the directory's name",
  "general.version": "likewise",
  "general.finetune": "likewise",
  "tokenizer.ggml.add_bos_token": "always written: llama.cpp's default depends on the kind of tokenizer",
  "tokenizer.ggml.add_eos_token": "likewise",
  "llama.rope.scaling.attn_factor":
    "LongRoPE's and YaRN's attention factor, which the converter leaves out: llama.cpp then computes other logits",
  "llama.rope.scaling.yarn_beta_fast": "written even if it is llama.cpp's default",
  "llama.rope.scaling.yarn_beta_slow": "likewise",
  "llama.rope.scaling.original_context_length":
    "LongRoPE needs it to choose its factors; the converter leaves it out here",
  "tokenizer.ggml.merges":
    "written even if there are none, as in this test's tokenizer: llama.cpp does not load a file without it",
  "rope_freqs.weight": "Llama 3's factors, computed in 64 bits and rounded once; the converter computes them in 32",
  "rope_factors_long.weight": "LongRoPE's factors, which the converter drops for this architecture",
  "rope_factors_short.weight": "likewise",
};

const names = readdirSync(path.join(fixtures, "gguf")).map((file) => file.replace(/\.json$/, ""));

describe("a file beside the one of llama.cpp's converter", () => {
  const root = temporaryDirectory();
  const seen = new Set<string>();

  it.each(names)("%s has the same tensors, and the same metadata but for listed reasons", async (name) => {
    const theirs = readJsonObject(path.join(fixtures, "gguf", `${name}.json`)) as unknown as Described;
    const original = openCheckpoint(path.join(fixtures, "models", name));
    const directory = path.join(root, name);
    writeTokenizer(directory, Number(original.config.vocab_size));
    const file = path.join(root, `${name}.gguf`);
    await exportGguf(file, { ...original, directory }, { kind: "f32" });
    const ours = openGguf(file);
    const different = new Set<string>();
    for (const key of new Set([...ours.metadata.keys(), ...Object.keys(theirs.metadata)])) {
      const [a, b] = [ours.metadata.get(key), theirs.metadata[key]];
      const long = typeof b?.value === "object" && b.value !== null && "length" in b.value && !Array.isArray(b.value);
      const same =
        a !== undefined &&
        b !== undefined &&
        (a.kind === "array" ? ["ARRAY", a.of.toUpperCase()] : [a.kind.toUpperCase()]).join() === b.kind.join() &&
        (long
          ? (b.value as { length: number }).length === (a.value as unknown[]).length
          : JSON.stringify(a.value) === JSON.stringify(b.value));
      if (!same) different.add(key);
    }
    for (const key of new Set([...ours.tensors.keys(), ...Object.keys(theirs.tensors)])) {
      const [a, b] = [ours.tensors.get(key), theirs.tensors[key]];
      const same =
        a?.dtype.toUpperCase() === b?.type &&
        a?.shape.join() === b?.shape.join() &&
        createHash("sha256").update(readTensor(ours, key)).digest("hex") === b?.sha256;
      if (!same) different.add(key);
    }
    expect([...different].filter((key) => DIFFERENCES[key] === undefined)).toEqual([]);
    for (const key of different) seen.add(key);
  });

  it("differs for no other reason than those seen", () => {
    expect(Object.keys(DIFFERENCES).sort()).toEqual([...seen].sort());
  });
});
