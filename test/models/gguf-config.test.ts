import path from "node:path";
import { describe, expect, it } from "vitest";
import { gguf } from "../../src/checkpoint/gguf.js";
import { type GgufValue, openGguf } from "../../src/checkpoint/index.js";
import { GgufConfig } from "../../src/models/gguf-config.js";
import { openCheckpoint } from "../../src/models/index.js";
import { exportGguf } from "../../src/quantize/index.js";
import { temporaryDirectory } from "../temporary.js";

const teacher = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
const file = path.join(temporaryDirectory(), "teacher.gguf");
await exportGguf(file, openCheckpoint(teacher), { kind: "f32" });
const original = openGguf(file);

/** The configuration of the file, with other metadata. */
function configWith(changes: Readonly<Record<string, GgufValue>>): Record<string, unknown> {
  const added = Object.entries(changes).map(([key, value]) => [`llama.${key}`, value] as const);
  const metadata = new Map([...original.metadata, ...added]);
  return new GgufConfig({ ...original, metadata }).common("llama", "LlamaForCausalLM");
}

describe("a GGUF file's configuration", () => {
  it("takes a list of equal numbers for one of all layers", () => {
    const { num_key_value_heads: heads, num_hidden_layers: layers, intermediate_size: ffn } = configWith({});
    const list = (value: unknown) =>
      gguf.numbers(
        "uint32",
        Array.from({ length: Number(layers) }, () => Number(value)),
      );
    const listed = configWith({ "attention.head_count_kv": list(heads), feed_forward_length: list(ffn) });
    expect([listed.num_key_value_heads, listed.intermediate_size]).toEqual([heads, ffn]);
  });

  it("refuses what would be computed otherwise: layers that predict further tokens, attention in both directions", () => {
    expect(() => configWith({ nextn_predict_layers: gguf.uint32(1) })).toThrow(/multi-token prediction/);
    expect(() => configWith({ "attention.causal": gguf.bool(false) })).toThrow(/both directions/);
    expect(configWith({ "attention.causal": gguf.bool(true) })).toEqual(configWith({}));
  });
});
