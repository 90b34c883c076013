import { checkVocabulary, Sequences, type TokenStream } from "../data/index.js";
import type { Backend } from "../ggml/device.js";
import type { ForwardResult, Model, PassWeights } from "../models/index.js";
import { CoppiceError } from "../system/errors.js";
import { type ComputeType, type Graph, ops } from "../tensor/index.js";
import { overflowError } from "./finite.js";
import { forwardPass, type LastPart } from "./forward-pass.js";

/** A model's loss on a text. */
export interface Perplexity {
  /** Mean negative log-likelihood per predicted token, in nats. */
  readonly loss: number;
  /** e^loss. */
  readonly perplexity: number;
  /** How many tokens were predicted. */
  readonly tokens: number;
}

export interface PerplexityOptions {
  /** In tokens; {@link defaultSequenceLength} by default. */
  readonly sequenceLength?: number | undefined;
  /** Sequences in a batch; as many as make about 2048 tokens by default. */
  readonly batchSize?: number | undefined;
  /** At most so many sequences; all by default. */
  readonly maxSequences?: number | undefined;
  readonly computeType?: ComputeType | undefined;
  /** The layers to run, in order; all by default. */
  readonly layers?: readonly number[] | undefined;
  /** When aborted, the measurement ends with an error before its next batch. */
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/** Longest sequence by default: the memory for attention grows with the square of the length. */
export const DEFAULT_SEQUENCE_LENGTH = 512;
/** About how many tokens a batch has by default. */
const BATCH_TOKENS = 2048;

/** The model's number of positions, up to 512. */
export const defaultSequenceLength = (model: Model): number => Math.min(model.maxPositions, DEFAULT_SEQUENCE_LENGTH);

/**
 * Measures a model on a stream of tokens, cut into sequences without context from the ones before. Every token but the first
 * is predicted once.
 * @throws CoppiceError when the stream has fewer than two tokens, or the model's outputs are not finite
 */
export async function perplexity(
  backend: Backend,
  weights: PassWeights,
  stream: TokenStream,
  options: PerplexityOptions = {},
): Promise<Perplexity> {
  const { model } = weights;
  if (stream.length < 2) throw new CoppiceError("the data has fewer than two tokens: there is nothing to predict");
  checkVocabulary(stream, model.vocabSize);
  const length = Math.min(options.sequenceLength ?? defaultSequenceLength(model), stream.length - 1);
  const sequences = new Sequences(stream, length);
  const available = Math.ceil((stream.length - 1) / length); // the last one may be shorter
  const total = Math.min(available, options.maxSequences ?? available);
  const batchSize = Math.max(1, Math.min(total, options.batchSize ?? Math.floor(BATCH_TOKENS / length)));
  const rows = batchSize * length;
  const computeType = options.computeType ?? "f32";
  const { layers, signal, onProgress } = options;
  const batchOf = (number: number) => {
    const first = number * batchSize;
    const numbers = Array.from({ length: Math.min(batchSize, total - first) }, (_, i) => first + i);
    return padded(sequences, numbers, batchSize);
  };
  const data = {
    layout: { batch: batchSize, seq: length },
    batches: Math.ceil(total / batchSize),
    tokensOf: (number: number) => batchOf(number).tokens,
  };
  let sum = 0;
  let count = 0;
  const last = (g: Graph, { hidden, logits }: ForwardResult): LastPart => {
    const indices = g.input("targets", "i32", [rows]);
    const losses = g.output(
      ops.mapHeadRows(g, hidden, model.vocabSize, (part, range) =>
        ops.crossEntropyOfRows(g, logits(part), ops.rowsOf(g, indices, range)),
      ),
    );
    const check = g.output(ops.sum(g, hidden)); // a loss can be finite where hidden states are not
    return {
      write: (number) => g.write(indices, ops.headIndices(batchOf(number).targets, rows, model.vocabSize)),
      read: async (number) => {
        const { tokens, valid } = batchOf(number);
        for (const loss of g.read(losses).subarray(0, valid)) sum += loss;
        count += valid;
        if (!Number.isFinite(sum) || !Number.isFinite(g.read(check)[0]))
          throw await overflowError("the model", { backend, weights, tokens, batch: batchSize, computeType, layers });
      },
    };
  };
  await forwardPass(
    backend,
    weights,
    data,
    { last },
    { computeType, layers, signal, onProgress: (share) => onProgress?.(Math.round(share * total), total) },
  );
  const loss = sum / count;
  return { loss, perplexity: Math.exp(loss), tokens: count };
}

/** A batch of fixed size: missing sequences, and the missing end of the last one, are zeros that `valid` does not count. */
function padded(sequences: Sequences, numbers: readonly number[], batchSize: number) {
  const { length } = sequences;
  const tokens = new Int32Array(batchSize * length);
  const targets = new Int32Array(batchSize * length);
  let valid = 0;
  numbers.forEach((number, row) => {
    valid += sequences.copy(number, { tokens, targets }, row); // only the last sequence can be short: valid positions come first
  });
  return { tokens, targets, valid };
}
