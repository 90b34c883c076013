import { checkVocabulary, type Sequences } from "../data/index.js";
import type { Backend } from "../ggml/device.js";
import { type Model, type ModelWeights, shapeOf, type Weights } from "../models/index.js";
import { CoppiceError } from "../system/errors.js";
import { Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";
import { type BatchOptions, spreadBatches } from "./batches.js";
import { overflowError } from "./finite.js";

/**
 * How far a model's predictions are from a reference's on fixed sequences: the mean Kullback-Leibler divergence per token, in
 * nats. The reference is computed once and only its last hidden states and its head are kept, so any number of variants is measured at
 * one forward pass each.
 */
export class DivergenceMeter {
  private readonly batches: readonly number[][];
  private readonly hidden: Float32Array[] = [];
  private readonly heads: TensorStore;
  private readonly model: Model;

  private constructor(
    private readonly backend: Backend,
    reference: ModelWeights,
    private readonly sequences: Sequences,
    private readonly options: BatchOptions,
  ) {
    const { model } = reference;
    this.model = model;
    this.batches = spreadBatches(sequences, options.samples, options.batchSize);
    // a copy of the head: the weights given may be those that are varied
    const heads = model.parameters.filter(({ input }) => input !== undefined && !input.startsWith("layers."));
    this.heads = new TensorStore(backend, heads.length);
    for (const spec of heads) this.heads.add(spec.name, shapeOf(spec, model.sizes), reference.get(spec.name).dtype);
    this.heads.allocate();
    for (const { name } of heads) this.heads.write(this.heads.get(name), bytesOfTensor(backend, reference.get(name)));
  }

  /** @throws CoppiceError when the sequences are of another tokenizer */
  static async prepare(
    backend: Backend,
    reference: ModelWeights,
    sequences: Sequences,
    options: BatchOptions,
  ): Promise<DivergenceMeter> {
    checkVocabulary(sequences.stream, reference.model.vocabSize);
    const meter = new DivergenceMeter(backend, reference, sequences, options);
    const g = new Graph(backend, { computeType: options.computeType });
    try {
      const tokens = g.input("tokens", "i32", meter.tokenShape);
      const hidden = g.output(reference.model.forward(g, reference.get, tokens).hidden);
      for (const numbers of meter.batches) {
        g.write(tokens, sequences.batch(numbers).tokens);
        await g.run();
        const states = g.read(hidden).slice();
        if (!states.every(Number.isFinite))
          throw await overflowError("the model", {
            backend,
            weights: reference,
            tokens: sequences.batch(numbers).tokens,
            batch: numbers.length,
            computeType: options.computeType,
          });
        meter.hidden.push(states);
      }
      return meter;
    } finally {
      g.free();
    }
  }

  private get tokenShape(): [number, number] {
    return [this.batches[0]?.length ?? 1, this.sequences.length];
  }

  /** Tokens compared. */
  get tokens(): number {
    const [batch, length] = this.tokenShape;
    return this.batches.length * batch * length;
  }

  /** Makes a measurement of weights, which may be repeated as they are changed. Free it before the weights. */
  of(weights: ModelWeights): DivergenceOf {
    const { backend, model, options } = this;
    if (weights.model.vocabSize !== model.vocabSize)
      throw new CoppiceError("models of different vocabularies cannot be compared");
    const g = new Graph(backend, { computeType: options.computeType });
    const [batch, length] = this.tokenShape;
    const tokens = g.input("tokens", "i32", [batch, length]);
    const reference = g.input("reference", "f32", [
      batch * length,
      this.hidden[0]?.length ? this.hidden[0].length / (batch * length) : 1,
    ]);
    const { hidden, logits } = weights.model.forward(g, weights.get, tokens);
    const fromReference: Weights = (name) => this.headOr(name, weights);
    const { logits: referenceLogits } = model.forward(g, fromReference, tokens);
    const sums = ops.mapHeadRows(g, hidden, model.vocabSize, (part, range) =>
      ops.divergence(g, logits(part), referenceLogits(ops.rowsOf(g, reference, range)), {
        kind: "forward-kl",
        temperature: 1,
      }),
    );
    const total = g.output(ops.sum(g, sums));
    return {
      measure: async () => {
        let sum = 0;
        for (const [i, numbers] of this.batches.entries()) {
          g.write(tokens, this.sequences.batch(numbers).tokens);
          g.write(reference, this.hidden[i] ?? new Float32Array());
          await g.run();
          sum += g.read(total)[0] ?? 0;
          if (!Number.isFinite(sum))
            throw await overflowError("the model that is compared", {
              backend,
              weights,
              tokens: this.sequences.batch(numbers).tokens,
              batch: numbers.length,
              computeType: options.computeType,
            });
        }
        return Math.max(0, sum / this.tokens); // rounding may leave a little below zero
      },
      free: () => g.free(),
    };
  }

  private headOr(name: string, weights: ModelWeights): Tensor {
    for (const tensor of this.heads) if (tensor.name === name) return tensor;
    return weights.get(name); // in what is recorded but never computed
  }

  free(): void {
    this.heads.free();
  }
}

/** A measurement that may be repeated. */
export interface DivergenceOf {
  /** @returns mean nats per token */
  measure(): Promise<number>;
  free(): void;
}

function bytesOfTensor(backend: Backend, tensor: Tensor): Uint8Array {
  const bytes = new Uint8Array(backend.functions.ggml_nbytes(tensor.handle));
  backend.functions.ggml_backend_tensor_get(tensor.handle, bytes, 0, bytes.byteLength);
  return bytes;
}
