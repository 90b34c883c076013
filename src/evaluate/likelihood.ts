import type { Tokenizer } from "../data/index.js";
import type { Backend } from "../ggml/device.js";
import type { ModelWeights } from "../models/index.js";
import { CoppiceError } from "../system/errors.js";
import { type ComputeType, Graph, ops, type Tensor } from "../tensor/index.js";
import { RequestEncoder, type TokenPair } from "./encoding.js";
import { overflowError } from "./finite.js";
import { type Packing, packSequences, type ScoredSequence } from "./forest.js";
import type {
  AskOptions,
  Likelihood,
  LikelihoodModel,
  LogLikelihoodRequest,
  OnReply,
  RollingRequest,
} from "./requests.js";

export interface EngineOptions {
  /** Longest sequence; what is longer loses its beginning. The model's positions by default. */
  readonly maxLength?: number | undefined;
  readonly computeType?: ComputeType | undefined;
}

/** So many tokens are computed at once, beside those of a first sequence: enough to read weights from memory for something. */
const PLACES = 2048;
/** So many requests are looked at together for what they share. */
const WINDOW = 4096;

/** Likelihoods by our own engine. What requests share at their beginning (few-shot examples, a question) is computed once. */
export class EngineLikelihoods implements LikelihoodModel {
  private readonly encoder: RequestEncoder;
  private readonly maxLength: number;
  private readonly graphs = new GraphCache();

  /** @throws CoppiceError when the tokenizer has more tokens than the model */
  constructor(
    private readonly backend: Backend,
    private readonly weights: ModelWeights,
    tokenizer: Tokenizer,
    private readonly options: EngineOptions = {},
  ) {
    this.encoder = RequestEncoder.of(tokenizer);
    this.maxLength = options.maxLength ?? weights.model.maxPositions;
  }

  async logLikelihoods(
    requests: readonly (LogLikelihoodRequest | RollingRequest)[],
    onReply: OnReply<Likelihood>,
    { signal }: AskOptions = {},
  ): Promise<void> {
    for (let from = 0; from < requests.length; from += WINDOW) {
      const part = requests.slice(from, from + WINDOW);
      const { sequences, owners } = await this.sequencesOf(part);
      const waiting = owners.reduce((counts, owner) => {
        counts[owner] = (counts[owner] ?? 0) + 1;
        return counts;
      }, new Array<number>(part.length).fill(0));
      const sums = part.map(({ kind }) => ({ logLikelihood: 0, isGreedy: kind === "log-likelihood" }));
      const answer = (request: number) => onReply(from + request, sums[request] as Likelihood);
      for (const [request, count] of waiting.entries()) if (count === 0) answer(request); // nothing to predict
      for (const packing of packSequences(sequences, PLACES)) {
        if (signal?.aborted) return;
        const scores = await this.compute(packing);
        let at = 0;
        for (const member of packing.members) {
          const request = owners[member] ?? 0;
          const sum = sums[request];
          for (const _ of sequences[member]?.targets ?? []) {
            if (sum === undefined) break;
            if (!Number.isFinite(scores.losses[at])) throw await this.overflow(sequences[member]?.input);
            sum.logLikelihood -= scores.losses[at] ?? 0;
            sum.isGreedy &&= scores.best[at] === packing.targets[at];
            at++;
          }
          waiting[request] = (waiting[request] ?? 1) - 1;
          if (waiting[request] === 0) answer(request);
        }
      }
    }
  }

  /** What to compute for requests, and whose each sequence is. */
  private async sequencesOf(requests: readonly (LogLikelihoodRequest | RollingRequest)[]) {
    const sequences: ScoredSequence[] = [];
    const owners: number[] = [];
    const add = (owner: number, pair: TokenPair) => {
      const sequence = this.sequenceOf(pair);
      if (sequence.targets.length === 0) return;
      sequences.push(sequence);
      owners.push(owner);
    };
    const pairs: [number, LogLikelihoodRequest][] = [];
    for (const [i, request] of requests.entries())
      if (request.kind === "log-likelihood") pairs.push([i, request]);
      else for (const window of await this.encoder.windows(request, this.maxLength)) add(i, window);
    const encoded = await this.encoder.pairs(pairs.map(([, request]) => request));
    for (const [i, pair] of encoded.entries()) add(pairs[i]?.[0] ?? 0, pair);
    return { sequences, owners };
  }

  /** The last `maxLength` ids before the last one, and what they are followed by. */
  private sequenceOf({ context, continuation }: TokenPair): ScoredSequence {
    const ids = [...context, ...continuation].slice(-(this.maxLength + 1));
    const { vocabSize } = this.weights.model;
    const beyond = ids.find((id) => id >= vocabSize);
    if (beyond !== undefined)
      throw new CoppiceError(`the tokenizer gives the id ${beyond}, the model has ${vocabSize} tokens`);
    const input = Int32Array.from(ids.slice(0, -1));
    return { input, targets: Int32Array.from(continuation.slice(-input.length)) };
  }

  private async compute(packing: Packing): Promise<{ readonly losses: Float32Array; readonly best: Int32Array }> {
    const { model } = this.weights;
    const places = roundUp(packing.tokens.length, packing.tokens.length > 1024 ? 256 : 128);
    const rows = 64 * 2 ** Math.ceil(Math.log2(Math.max(1, packing.rows.length / 64)));
    const built = this.graphs.get(`${places} ${rows}`, () => this.build(places, rows));
    const { g } = built;
    g.write(
      built.tokens,
      padded(packing.tokens, places, () => 0),
    );
    ops.writeForest(g, built.forest, {
      positions: padded(packing.positions, places, () => 0),
      ends: padded(packing.ends, places, (i) => i + 1), // trees of one token, for nobody
    });
    const targets = padded(packing.targets, rows, () => 0);
    g.write(
      built.rows,
      padded(packing.rows, rows, () => 0),
    );
    g.write(built.indices, ops.headIndices(targets, rows, model.vocabSize));
    await g.run();
    const best = new Int32Array(rows);
    let at = 0;
    for (const part of built.best) {
      const ids = g.readInt32(part);
      best.set(ids, at);
      at += ids.length;
    }
    return { losses: g.read(built.losses), best };
  }

  private overflow(tokens: Int32Array = new Int32Array(1)): Promise<CoppiceError> {
    const { backend, weights, options } = this;
    return overflowError("the model", {
      backend,
      weights,
      tokens,
      batch: 1,
      computeType: options.computeType ?? "f32",
    });
  }

  private build(places: number, count: number): ScoringGraph {
    const { model, get } = this.weights;
    const g = new Graph(this.backend, { computeType: this.options.computeType ?? "f32" });
    const tokens = g.input("tokens", "i32", [1, places]);
    const rows = g.input("rows", "i32", [count]);
    const indices = g.input("targets", "i32", [count]);
    const forest = ops.forestInput(g, places);
    const { hidden, logits } = model.forward(g, get, tokens, { forest });
    const best: Tensor[] = [];
    const losses = ops.mapHeadRows(g, ops.embedding(g, hidden, rows), model.vocabSize, (part, range) => {
      const scores = logits(part);
      best.push(g.output(ops.argmax(g, scores)));
      return ops.crossEntropyOfRows(g, scores, ops.rowsOf(g, indices, range));
    });
    return { g, tokens, rows, indices, forest, losses: g.output(losses), best };
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
}

const roundUp = (value: number, to: number): number => Math.ceil(value / to) * to;

function padded(values: Int32Array, length: number, filler: (i: number) => number): Int32Array {
  const result = Int32Array.from({ length }, (_, i) => (i < values.length ? 0 : filler(i)));
  result.set(values);
  return result;
}

/** The graphs of the last few shapes: each holds scratch memory. */
const MOST_GRAPHS = 4;

class GraphCache {
  private readonly graphs = new Map<string, ScoringGraph>();

  get(key: string, build: () => ScoringGraph): ScoringGraph {
    const graph = this.graphs.get(key) ?? build();
    this.graphs.delete(key);
    this.graphs.set(key, graph); // the last in the map was used last
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
