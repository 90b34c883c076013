import type { Tokenizer } from "../data/index.js";
import type { Backend } from "../ggml/device.js";
import { type ForwardResult, type PassWeights, StreamedWeights } from "../models/index.js";
import { elementAt } from "../system/arrays.js";
import { CoppiceError } from "../system/errors.js";
import { type ComputeType, type Graph, ops, type Tensor } from "../tensor/index.js";
import { RequestEncoder, type TokenPair } from "./encoding.js";
import { overflowError } from "./finite.js";
import { forwardPass, type LastPart } from "./forward-pass.js";
import { kindOfLength, type Packing, packSequences, type ScoredSequence } from "./packing.js";
import type {
  AskOptions,
  Likelihood,
  LikelihoodModel,
  LogLikelihoodRequest,
  OnReply,
  RollingRequest,
} from "./requests.js";

export interface LikelihoodOptions {
  /** Longest sequence in tokens; longer ones lose their beginning. The model's number of positions by default. */
  readonly maxLength?: number | undefined;
  readonly computeType?: ComputeType | undefined;
}

/** Tokens computed at once, beside those of a first sequence: enough to make reading the weights worth while. */
const PLACES = 2048;
/** Requests that are searched together for shared beginnings. */
const WINDOW = 4096;

/**
 * Likelihoods computed by our own engine. What requests share at their beginning (few-shot examples, a question) is computed
 * once.
 */
export class EngineLikelihoods implements LikelihoodModel {
  private readonly encoder: RequestEncoder;
  private readonly maxLength: number;
  private readonly computeType: ComputeType;

  /** @throws CoppiceError when the tokenizer has neither a begin nor an end token */
  constructor(
    private readonly backend: Backend,
    private readonly weights: PassWeights,
    tokenizer: Tokenizer,
    { maxLength, computeType }: LikelihoodOptions = {},
  ) {
    this.encoder = RequestEncoder.of(tokenizer);
    this.maxLength = maxLength ?? weights.model.maxPositions;
    this.computeType = computeType ?? "f32";
  }

  async logLikelihoods(
    requests: readonly (LogLikelihoodRequest | RollingRequest)[],
    onReply: OnReply<Likelihood>,
    { signal }: AskOptions = {},
  ): Promise<void> {
    for (let from = 0; from < requests.length; from += WINDOW) {
      const window = requests.slice(from, from + WINDOW);
      await this.answerWindow(window, (index, reply) => onReply(from + index, reply), signal);
    }
  }

  private async answerWindow(
    requests: readonly (LogLikelihoodRequest | RollingRequest)[],
    onReply: OnReply<Likelihood>,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const sequences = await this.sequencesOf(requests);
    const pending = requests.map(({ kind }) => ({
      sequences: 0,
      reply: { logLikelihood: 0, isGreedy: kind === "log-likelihood" },
    }));
    for (const { request } of sequences) elementAt(pending, request).sequences++;
    for (const [i, own] of pending.entries()) if (own.sequences === 0) onReply(i, own.reply); // nothing to predict
    const onScores = async (packing: Packing, { losses, best, states }: Scores): Promise<void> => {
      let row = 0;
      for (const member of packing.members) {
        const { request, input, targets } = elementAt(sequences, member);
        const own = elementAt(pending, request);
        for (const target of targets) {
          const loss = elementAt(losses, row);
          // a loss can be finite where hidden states are not
          if (!Number.isFinite(loss) || !Number.isFinite(states[row])) throw await this.overflow(input);
          own.reply.logLikelihood -= loss;
          own.reply.isGreedy &&= best[row] === target;
          row++;
        }
        own.sequences--;
        if (own.sequences === 0) onReply(request, own.reply);
      }
    };
    const packings = packSequences(sequences, PLACES);
    // streamed weights are read once for every group
    const isStreamed = this.weights instanceof StreamedWeights;
    const groups = grouped(packings, isStreamed ? ofKind : ofShape);
    for (const group of groups) {
      if (signal?.aborted || group.length === 0) return;
      await this.score(group, onScores, signal);
    }
  }

  /** The sequences to compute for requests, each with its request's index. */
  private async sequencesOf(requests: readonly (LogLikelihoodRequest | RollingRequest)[]) {
    const sequences: (ScoredSequence & { readonly request: number })[] = [];
    const add = (request: number, pair: TokenPair) => {
      const sequence = this.sequenceOf(pair);
      if (sequence.targets.length > 0) sequences.push({ ...sequence, request });
    };
    const indices: number[] = [];
    const pairs: LogLikelihoodRequest[] = [];
    for (const [i, request] of requests.entries())
      if (request.kind === "log-likelihood") {
        indices.push(i);
        pairs.push(request);
      } else for (const window of await this.encoder.windows(request, this.maxLength)) add(i, window);
    for (const [i, pair] of (await this.encoder.pairs(pairs)).entries()) add(elementAt(indices, i), pair);
    return sequences;
  }

  /**
   * The last `maxLength` ids but the final one as input, and the ids that follow them as targets.
   * @throws CoppiceError when the tokenizer has more tokens than the model
   */
  private sequenceOf({ context, continuation }: TokenPair): ScoredSequence {
    const ids = [...context, ...continuation].slice(-(this.maxLength + 1));
    const { vocabSize } = this.weights.model;
    const beyond = ids.find((id) => id >= vocabSize);
    if (beyond !== undefined)
      throw new CoppiceError(`the tokenizer gives the id ${beyond}, the model has ${vocabSize} tokens`);
    const input = Int32Array.from(ids.slice(0, -1));
    return { input, targets: Int32Array.from(continuation.slice(-input.length)) };
  }

  /** Scores packings, padded to one shape. Stops when it is aborted. */
  private async score(
    packings: readonly Packing[],
    onScores: (packing: Packing, scores: Scores) => Promise<void>,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const { backend, weights, computeType } = this;
    const shapes = packings.map(shapeOf);
    const places = Math.max(...shapes.map((shape) => shape.places));
    const rows = Math.max(...shapes.map((shape) => shape.rows));
    const packingAt = (batch: number) => elementAt(packings, batch);
    const data = {
      layout: { batch: 1, seq: places, longest: Math.max(...packings.map(({ longest }) => longest)) },
      batches: packings.length,
      tokensOf: (batch: number) => padded(packingAt(batch).tokens, places),
      forestOf: packingAt,
    };
    const last = (g: Graph, result: ForwardResult): LastPart => {
      const scored = scoresIn(g, result, rows, weights.model.vocabSize);
      return {
        write: (batch) => scored.write(packingAt(batch)),
        read: (batch) => onScores(packingAt(batch), scored.read()),
      };
    };
    try {
      await forwardPass(backend, weights, data, { last }, { computeType, signal });
    } catch (error) {
      if (signal?.aborted !== true) throw error;
    }
  }

  private overflow(tokens: Int32Array): Promise<CoppiceError> {
    const { backend, weights, computeType } = this;
    return overflowError("the model", { backend, weights, tokens, batch: 1, computeType });
  }
}

/** The places and rows that a packing is padded to. */
const shapeOf = ({ tokens, rows }: Packing) => ({
  places: roundUp(tokens.length, tokens.length > 1024 ? 256 : 128),
  rows: 64 * 2 ** Math.ceil(Math.log2(Math.max(1, rows.length / 64))),
});

const ofKind = ({ longest }: Packing): string => `${kindOfLength(longest)}`;

const ofShape = (packing: Packing): string => {
  const { places, rows } = shapeOf(packing);
  return `${ofKind(packing)} ${places} ${rows}`;
};

/** Packings of the same key, together. */
function grouped(packings: readonly Packing[], keyOf: (packing: Packing) => string): Packing[][] {
  const groups = new Map<string, Packing[]>();
  for (const packing of packings) {
    const key = keyOf(packing);
    const group = groups.get(key) ?? [];
    groups.set(key, group);
    group.push(packing);
  }
  return [...groups.values()];
}

/** Adds the scores of a packing's rows, padded to `count`, to the graph of a forward pass. */
function scoresIn(g: Graph, { hidden, logits }: ForwardResult, count: number, vocabSize: number) {
  const rows = g.input("rows", "i32", [count]);
  const indices = g.input("targets", "i32", [count]);
  const best: Tensor[] = [];
  const predicting = ops.embedding(g, hidden, rows);
  const states = g.output(ops.sumLast(g, predicting));
  const losses = g.output(
    ops.mapHeadRows(g, predicting, vocabSize, (part, range) => {
      const scores = logits(part);
      best.push(g.output(ops.argmax(g, scores)));
      return ops.crossEntropyOfRows(g, scores, ops.rowsOf(g, indices, range));
    }),
  );
  return {
    write: (packing: Packing): void => {
      g.write(rows, padded(packing.rows, count));
      g.write(indices, ops.headIndices(padded(packing.targets, count), count, vocabSize));
    },
    read: (): Scores => ({
      losses: g.read(losses),
      best: Int32Array.from(best.flatMap((part) => [...g.readInt32(part)])),
      states: g.read(states),
    }),
  };
}

/** What a graph computed for each row. */
interface Scores {
  readonly losses: Float32Array;
  /** The most probable id. */
  readonly best: Int32Array;
  /** The sum of the hidden states. */
  readonly states: Float32Array;
}

const roundUp = (value: number, to: number): number => Math.ceil(value / to) * to;

/** Zeros are appended. */
function padded(values: Int32Array, length: number): Int32Array {
  const result = new Int32Array(length);
  result.set(values);
  return result;
}
