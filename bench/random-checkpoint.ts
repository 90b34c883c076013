import { existsSync, mkdirSync, rmSync } from "node:fs";
import path from "node:path";
import { type TensorInfo, writeCheckpoint } from "../src/checkpoint/index.js";
import { rowBytes, tensorInfo } from "../src/checkpoint/tensor-source.js";
import { bytesOf } from "../src/ggml/index.js";
import { type Model, modelFromConfig, shapeOf } from "../src/models/index.js";
import { writeJson } from "../src/system/files.js";
import { Random } from "../src/system/random.js";

export interface LlamaSizes {
  readonly vocab: number;
  readonly hidden: number;
  readonly ffn: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

/** Mistral NeMo 12B, whose 40 layers are 24.5 GB in bf16. */
export const MISTRAL_NEMO: LlamaSizes = {
  vocab: 131072,
  hidden: 5120,
  ffn: 14336,
  layers: 40,
  heads: 32,
  kvHeads: 8,
  headDim: 128,
};

/** A Llama of about so many bytes in bf16, as a model directory of random weights, made once. */
export function randomCheckpoint(directory: string, gigabytes: number): Model {
  const layers = Math.max(1, Math.round((gigabytes - 0.5) / 0.24));
  const widths = { vocab: 40960, hidden: 3072, ffn: 9216, heads: 24, kvHeads: 8, headDim: 128 };
  return randomLlama(directory, { ...widths, layers });
}

/** A Llama of these sizes, as a model directory of random weights, made once. */
export function randomLlama(directory: string, sizes: LlamaSizes): Model {
  const config = {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    vocab_size: sizes.vocab,
    hidden_size: sizes.hidden,
    intermediate_size: sizes.ffn,
    num_hidden_layers: sizes.layers,
    num_attention_heads: sizes.heads,
    num_key_value_heads: sizes.kvHeads,
    head_dim: sizes.headDim,
    torch_dtype: "bfloat16",
  };
  const model = modelFromConfig(config);
  if (existsSync(path.join(directory, "config.json"))) return model;
  rmSync(directory, { recursive: true, force: true });
  mkdirSync(directory, { recursive: true });
  const random = new Random(1);
  // 1 MiB of normal numbers over and over
  const noise = Uint16Array.from({ length: 1 << 20 }, () => {
    const [bits = 0] = new Uint32Array(Float32Array.of(0.02 * random.normal()).buffer);
    return bits >>> 16;
  });
  const tensors = new Map<string, TensorInfo>(
    model.parameters.map((spec) => [spec.name, { dtype: "bf16", shape: shapeOf(spec, model.sizes) }]),
  );
  const readRows = (name: string, from: number, to: number): Uint8Array => {
    const bytes = new Uint8Array((to - from) * rowBytes(tensorInfo({ tensors }, name)));
    for (let at = 0; at < bytes.length; at += noise.byteLength)
      bytes.set(bytesOf(noise).subarray(0, bytes.length - at), at);
    return bytes;
  };
  // letters have tokens of their own, so that text can be read
  const tokenOf = (id: number) => (id < 26 ? String.fromCharCode(97 + id) : `token${id}`);
  const vocab = Object.fromEntries(Array.from({ length: config.vocab_size }, (_, id) => [tokenOf(id), id]));
  writeJson(path.join(directory, "tokenizer.json"), {
    pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    model: { type: "BPE", vocab, merges: [] },
  });
  writeCheckpoint(directory, config, { tensors, readRows, releaseRows: () => {} }, { shardBytes: 1e9 });
  return model;
}
