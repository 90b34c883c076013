import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import type { LlamaModel, Token } from "node-llama-cpp";
import { startLlama } from "../src/generate/start-llama.js";

/** A GGUF file in llama.cpp, on the processor. */
export async function loadInLlamaCpp(file: string): Promise<LlamaModel> {
  return (await startLlama("cpu")).loadModel({ modelPath: file, gpuLayers: 0 });
}

/** Log-probabilities of every token after each of the given ones: [positions, vocabulary]. f32 key-value cache. */
export async function logProbabilities(model: LlamaModel, tokens: readonly number[], vocab: number) {
  const context = await model.createContext({
    contextSize: 256,
    flashAttention: false,
    threads: 1,
    experimentalKvCacheKeyType: "F32" as const,
    experimentalKvCacheValueType: "F32" as const,
  });
  try {
    const input = tokens.map(
      (token) =>
        [
          token as Token,
          { generateNext: { probabilities: true, options: { temperature: 1, topK: 0, topP: 1, minP: 0 } } },
        ] as const,
    );
    const outputs = await context.getSequence().controlledEvaluate(input as never);
    return outputs.map((output) => {
      const row = new Float64Array(vocab);
      for (const [token, probability] of output?.next.probabilities ?? []) row[token] = Math.log(probability);
      return row;
    });
  } finally {
    await context.dispose();
  }
}

/** Tokens that llama.cpp finds likeliest, one after another, after a begin-of-sequence token and a prompt. */
export async function greedyTokens(model: LlamaModel, prompt: readonly number[], count: number): Promise<number[]> {
  const context = await model.createContext({
    contextSize: 512,
    flashAttention: false,
    threads: 1,
    experimentalKvCacheKeyType: "F32" as const,
    experimentalKvCacheValueType: "F32" as const,
  });
  const generated: number[] = [];
  try {
    for await (const token of context
      .getSequence()
      .evaluate([...prompt] as Token[], { temperature: 0, yieldEogToken: true })) {
      generated.push(token);
      if (generated.length === count) break;
    }
  } finally {
    await context.dispose();
  }
  return generated;
}

/** Puts a byte-level tokenizer of the given vocabulary size into a directory: for models of random weights. */
export function writeTokenizer(directory: string, vocabSize: number): void {
  const names = Array.from({ length: vocabSize }, (_, id) => (id < 3 ? `<${id}>` : `token${id}`));
  const added = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  mkdirSync(directory, { recursive: true });
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
  writeFileSync(
    path.join(directory, "tokenizer.json"),
    JSON.stringify({
      version: "1.0",
      truncation: null,
      padding: null,
      added_tokens: names.slice(0, 3).map((content, id) => ({ id, content, ...added })),
      normalizer: null,
      pre_tokenizer: byteLevel,
      post_processor: null,
      decoder: byteLevel,
      model: { type: "BPE", vocab: Object.fromEntries(names.map((name, id) => [name, id])), merges: [] },
    }),
  );
}
