import { checkVocabulary, type Sequences } from "../data/index.js";
import type { Backend } from "../ggml/device.js";
import { type Model, shapeOf, type Weights } from "../models/index.js";
import { elementAt } from "../system/arrays.js";
import { CoppiceError } from "../system/errors.js";
import { Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";
import { type BatchOptions, spreadBatches } from "./batches.js";
import { overflowError, type ReadableWeights } from "./finite.js";

/**
 * Measures how far a model's predictions are from a reference's on fixed sequences: the mean Kullback-Leibler divergence per
 * token, in nats. The reference is computed once; only its last hidden states and its head are kept, so that each further
 * variant costs one forward pass.
 */
export class DivergenceMeter {
  private readonly batches: readonly number[][];
  private readonly hidden: Float32Array[] = [];
  private readonly heads: TensorStore;
  private readonly model: Model;

  private constructor(
    private readonly backend: Backend,
    reference: ReadableWeights,
    private readonly sequences: Sequences,
    private readonly options: BatchOptions,
  ) {
    const { model } = reference;
    this.model = model;
    this.batches = spreadBatches(sequences, options.samples, options.batchSize);
    // the head is copied: the caller may go on to change these very weights
    const heads = model.parameters.filter(({ input }) => input !== undefined && !input.startsWith("layers."));
    this.heads = new TensorStore(backend, heads.length);
    for (const spec of heads) this.heads.add(spec.name, shapeOf(spec, model.sizes), reference.get(spec.name).dtype);
    this.heads.allocate();
    for (const { name } of heads) this.heads.write(this.heads.get(name), bytesOfTensor(backend, reference.get(name)));
  }

  /** @throws CoppiceError when the sequences hold token ids beyond the vocabulary, or outputs are not finite */
  static async prepare(
    backend: Backend,
    reference: ReadableWeights,
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
        if (!states.every(Number.isFinite)) throw await meter.overflow("the model", reference, numbers);
        meter.hidden.push(states);
      }
      return meter;
    } finally {
      g.free();
    }
  }

  private get tokenShape(): [number, number] {
    return [elementAt(this.batches, 0).length, this.sequences.length];
  }

  private overflow(who: string, weights: ReadableWeights, numbers: readonly number[]): Promise<CoppiceError> {
    const { backend, sequences, options } = this;
    const { tokens } = sequences.batch(numbers);
    return overflowError(who, { backend, weights, tokens, batch: numbers.length, computeType: options.computeType });
  }

  /** How many tokens are compared. */
  get tokens(): number {
    const [batch, length] = this.tokenShape;
    return this.batches.length * batch * length;
  }

  /**
   * Prepares a measurement of weights, to be repeated as they change. Free it before the weights.
   * @throws CoppiceError when the vocabularies differ
   */
  of(weights: ReadableWeights): DivergenceMeasurement {
    const { backend, model, options } = this;
    if (weights.model.vocabSize !== model.vocabSize)
      throw new CoppiceError(
        `models of different vocabularies cannot be compared: ${weights.model.vocabSize} and ${model.vocabSize} tokens`,
      );
    const g = new Graph(backend, { computeType: options.computeType });
    const [batch, length] = this.tokenShape;
    const tokens = g.input("tokens", "i32", [batch, length]);
    const rows = batch * length;
    const reference = g.input("reference", "f32", [rows, elementAt(this.hidden, 0).length / rows]);
    const { hidden, logits } = weights.model.forward(g, weights.get, tokens);
    const head: Weights = (name) => this.heads.get(name);
    const sums = ops.mapHeadRows(g, hidden, model.vocabSize, (part, range) =>
      ops.divergence(g, logits(part), model.logits(g, head, ops.rowsOf(g, reference, range)), {
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
          g.write(reference, elementAt(this.hidden, i));
          await g.run();
          sum += elementAt(g.read(total), 0);
          if (!Number.isFinite(sum)) throw await this.overflow("the compared model", weights, numbers);
        }
        return Math.max(0, sum / this.tokens); // rounding can leave it slightly negative
      },
      free: () => g.free(),
    };
  }

  free(): void {
    this.heads.free();
  }
}

/** A repeatable measurement. */
export interface DivergenceMeasurement {
  /** @returns mean nats per token */
  measure(): Promise<number>;
  free(): void;
}

function bytesOfTensor(backend: Backend, tensor: Tensor): Uint8Array {
  const bytes = new Uint8Array(backend.functions.ggml_nbytes(tensor.handle));
  backend.functions.ggml_backend_tensor_get(tensor.handle, bytes, 0, bytes.byteLength);
  return bytes;
}
