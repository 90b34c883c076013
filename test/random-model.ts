import path from "node:path";
import { modelFromConfig, shapeOf } from "../src/models/index.js";
import { Random } from "../src/system/random.js";
import { writeTokenizer } from "./llama-cpp.js";

/** A model of random weights, as small as the types' blocks allow, deep enough that mixtures differ by layer. */
export function randomModel(root: string, name: string, changes: Record<string, unknown>, deviation = 0.05) {
  const config = {
    model_type: "llama",
    vocab_size: 64,
    hidden_size: 256,
    intermediate_size: 256,
    num_hidden_layers: 8,
    num_attention_heads: 8,
    num_key_value_heads: 2,
    head_dim: 32,
    tie_word_embeddings: false,
    ...changes,
  };
  const model = modelFromConfig(config);
  const directory = path.join(root, name);
  writeTokenizer(directory, model.vocabSize);
  const random = new Random(7, 1);
  const values = new Map(
    model.parameters.map((spec) => {
      const shape = shapeOf(spec, model.sizes);
      const data = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => deviation * random.normal());
      return [spec.name, { dtype: "f32" as const, shape, data }];
    }),
  );
  const source = {
    tensors: values,
    readRows: (parameter: string, from: number, to: number) => {
      const { shape, data } = values.get(parameter)!;
      const width = shape.slice(1).reduce((a, b) => a * b, 1);
      return new Uint8Array(data.buffer, from * width * 4, (to - from) * width * 4);
    },
    releaseRows: () => {},
  };
  const importance = new Map(
    model.parameters.flatMap((spec) =>
      spec.input === undefined
        ? []
        : [
            [
              spec.name,
              Float32Array.from({ length: shapeOf(spec, model.sizes)[1]! }, () => random.normal() ** 2 + 0.01),
            ] as const,
          ],
    ),
  );
  const named = new Map(
    model
      .gguf()
      .parameters.flatMap(({ name: tensor, parameter }) =>
        importance.has(parameter) ? [[tensor, importance.get(parameter)!] as const] : [],
      ),
  );
  return {
    checkpoint: { path: directory, directory, config, model, source, bytes: 0, files: [], notes: [] },
    importance,
    named,
  };
}
