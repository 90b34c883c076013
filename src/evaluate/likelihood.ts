import type { Tokenizer } from "../data/index.js";
import type { Backend } from "../ggml/device.js";
import type { ModelWeights } from "../models/index.js";
import { elementAt } from "../system/arrays.js";
import { CoppiceError } from "../system/errors.js";
import { type ComputeType, Graph, ops, type Tensor } from "../tensor/index.js";
import { RequestEncoder, type TokenPair } from "./encoding.js";
import { overflowError } from "./finite.js";
import { type Packing, packSequences, type ScoredSequence } from "./packing.js";
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
  private readonly graphs = new GraphCache();

  /** @throws CoppiceError when the tokenizer has neither a begin nor an end token */
  constructor(
    private readonly backend: Backend,
    private readonly weights: ModelWeights,
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
    for (const packing of packSequences(sequences, PLACES)) {
      if (signal?.aborted) return;
      const { losses, best, states } = await this.compute(packing);
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

  private async compute(packing: Packing): Promise<Scores> {
    const { model } = this.weights;
    const places = roundUp(packing.tokens.length, packing.tokens.length > 1024 ? 256 : 128);
    const rows = 64 * 2 ** Math.ceil(Math.log2(Math.max(1, packing.rows.length / 64)));
    const built = this.graphs.get(`${places} ${rows}`, () => this.build(places, rows));
    const { g } = built;
    g.write(built.tokens, padded(packing.tokens, places));
    ops.writeForest(g, built.forest, packing);
    g.write(built.rows, padded(packing.rows, rows));
    g.write(built.indices, ops.headIndices(padded(packing.targets, rows), rows, model.vocabSize));
    await g.run();
    const best = Int32Array.from(built.best.flatMap((part) => [...g.readInt32(part)]));
    return { losses: g.read(built.losses), best, states: g.read(built.states) };
  }

  private overflow(tokens: Int32Array): Promise<CoppiceError> {
    const { backend, weights, computeType } = this;
    return overflowError("the model", { backend, weights, tokens, batch: 1, computeType });
  }

  private build(places: number, count: number): ScoringGraph {
    const { model, get } = this.weights;
    const g = new Graph(this.backend, { computeType: this.computeType });
    const tokens = g.input("tokens", "i32", [1, places]);
    const rows = g.input("rows", "i32", [count]);
    const indices = g.input("targets", "i32", [count]);
    const forest = ops.forestInput(g, places);
    const { hidden, logits } = model.forward(g, get, tokens, { forest });
    const best: Tensor[] = [];
    const predicting = ops.embedding(g, hidden, rows);
    const states = g.output(ops.sumLast(g, predicting));
    const losses = ops.mapHeadRows(g, predicting, model.vocabSize, (part, range) => {
      const scores = logits(part);
      best.push(g.output(ops.argmax(g, scores)));
      return ops.crossEntropyOfRows(g, scores, ops.rowsOf(g, indices, range));
    });
    return { g, tokens, rows, indices, forest, losses: g.output(losses), best, states };
  }

  free(): void {
    this.graphs.free();
  }
}

interface ScoringGraph {
  readonly g: Graph;
  readonly tokens: Tensor;
  readonly rows: Tensor;
  readonly indices: Tensor;
  readonly forest: ops.Forest;
  readonly losses: Tensor;
  /** The most probable id of each row, in parts. */
  readonly best: readonly Tensor[];
  /** The sum of each row's hidden states. */
  readonly states: Tensor;
}

/** What a graph computed for each row. */
interface Scores {
  readonly losses: Float32Array;
  readonly best: Int32Array;
  readonly states: Float32Array;
}

const roundUp = (value: number, to: number): number => Math.ceil(value / to) * to;

/** Zeros are appended. */
function padded(values: Int32Array, length: number): Int32Array {
  const result = new Int32Array(length);
  result.set(values);
  return result;
}

/** Each graph holds scratch memory. */
const MOST_GRAPHS = 4;

/** The graphs of the last few shapes. */
class GraphCache {
  private readonly graphs = new Map<string, ScoringGraph>();

  get(key: string, build: () => ScoringGraph): ScoringGraph {
    const graph = this.graphs.get(key) ?? build();
    this.graphs.delete(key);
    this.graphs.set(key, graph); // the map's last is the one used last
    for (const [oldest, { g }] of this.graphs) {
      if (this.graphs.size <= MOST_GRAPHS) break;
      g.free();
      this.graphs.delete(oldest);
    }
    return graph;
  }

  free(): void {
    for (const { g } of this.graphs.values()) g.free();
    this.graphs.clear();
  }
}
