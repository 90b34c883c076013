/**
 * An architecture of one's own, made of the same blocks as the others: Llama's parts, but attention and feed-forward
 * network read the same input and are added up (PaLM's parallel layers: Chowdhery et al. 2022, section 2). Once it is
 * registered, everything works with it: here it is trained from scratch, pruned and measured.
 *
 *     npx tsx examples/own-architecture.ts
 *     NODE_OPTIONS="--import ./my-architecture.js" npx coppice inspect MODEL    # the command line knows it, too
 */
import { cpSync, mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { measurePerplexity, pretrain, pruneModel } from "coppice";
import * as models from "coppice/models";

const parallelLlama = models.architecture({
  name: "parallel_llama", // as config.json says it in `model_type`
  families: "Parallel Llama",
  schema: models.baseSchema, // the fields that most configurations have; `.extend({ ... })` for more
  decoder: (c) => {
    const heads = models.headsOf(c);
    const rotary = models.rotaryOf(c, heads);
    const mixer = models.attention({ ...heads, rotary });
    const feedForward = models.gatedFeedForward({ size: c.intermediate_size, activation: c.hidden_act });
    const decoder = models.preNormDecoder(c, models.rmsNorms(c), () => [mixer, feedForward]);
    return {
      ...decoder,
      layers: decoder.layers.map((layer) => ({ ...layer, parallel: true })),
      hiddenAxis: { prunable: true },
      gguf: { architecture: "parallel_llama", rotary, refused: "llama.cpp has no graph for parallel_llama" },
    };
  },
  gguf: { className: "ParallelLlamaForCausalLM" },
});
models.registerArchitecture(parallelLlama);

const here = (name: string) => fileURLToPath(new URL(name, import.meta.url));
const work = mkdtempSync(path.join(tmpdir(), "own-architecture-"));
const [start, model, smaller] = [path.join(work, "start"), path.join(work, "model"), path.join(work, "smaller")];
for (const name of ["tokenizer.json", "tokenizer_config.json"])
  cpSync(path.join(here("tiny-config"), name), path.join(start, name));
const sizes = { hidden_size: 64, intermediate_size: 192, num_hidden_layers: 3, num_attention_heads: 4 };
const config = { model_type: "parallel_llama", vocab_size: 512, max_position_embeddings: 256, ...sizes };
writeFileSync(path.join(start, "config.json"), JSON.stringify(config));

const [data, validation] = [[here("corpus/stories.txt.gz")], [here("corpus/held-out.txt")]];
const settings = { tokens: 40_000, sequenceLength: 64, batchSize: 16, learningRate: 5e-3 };
const { student } = await pretrain({ model: start, fromScratch: true, data, validation, settings, out: model });
console.log(`trained: ${student.parameters} parameters, loss ${student.loss.toFixed(3)}`);

const { parameters } = await pruneModel({ model, target: "ffn=128", data, calibrationSamples: 16, out: smaller });
const { loss } = await measurePerplexity({ model: smaller, data: validation, sequenceLength: 64 });
console.log(`pruned:  ${parameters.to} parameters, loss ${loss.toFixed(3)}`);
