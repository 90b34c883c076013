import path from "node:path";
import type { Batch } from "../data/index.js";
import { notFinite, overflowError } from "../evaluate/finite.js";
import { forwardPass, type LastPart, type PassOptions } from "../evaluate/forward-pass.js";
import type { Backend } from "../ggml/device.js";
import { type ForwardResult, type ModelWeights, type StreamedWeights, sizeOf } from "../models/index.js";
import { elementAt } from "../system/arrays.js";
import { CoppiceError } from "../system/errors.js";
import { hashBytes } from "../system/files.js";
import { type ComputeType, elementCount, Graph, ops, type Tensor } from "../tensor/index.js";
import { LogitCache } from "./logit-cache.js";
import type { Position, SparseTargets, TargetTensors, TargetValues } from "./sparse-targets.js";

export interface SparseTeacherOptions {
  readonly targets: SparseTargets;
  readonly computeType: ComputeType;
  /** Where to keep computed targets for later runs; they are not kept by default. */
  readonly cacheDirectory?: string | undefined;
  /** How many sequences will be needed, to check that there is room to cache them. */
  readonly expectedSequences?: number | undefined;
  /** Identifies the teacher's weights in the cache. */
  readonly teacherId: string;
  /** Tokens that both models have; further rows of their heads are padding. */
  readonly vocabSize: number;
}

/** What a sparse teacher knows of the data: enough to tell sequences apart. */
export interface SequenceSet {
  readonly count: number;
  readonly length: number;
  readonly stream: { readonly id: string };
}

/** The inputs for a batch's targets. */
export interface SparseInputs {
  readonly indices: Tensor;
  readonly values: Tensor;
  /** The targets of some rows. */
  readonly rows: (g: Graph, range: ops.RowRange) => TargetTensors;
}

export interface FillOptions {
  /** When aborted, filling ends with an error; what is in the cache stays. */
  readonly signal?: AbortSignal | undefined;
  /** Called with how many of all sequences the cache has. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/** The tokens of sequences, one after the other, by their numbers. */
export type TokensOf = (numbers: readonly number[]) => Int32Array;

/** The version of the cache's format. */
const FORMAT = 4;

/** Feeds a training graph a few numbers of each of the teacher's distributions, which are computed at first use and can be kept on disk. */
export class SparseTeacher {
  private readonly cache: LogitCache | undefined;
  private graphs: TeacherGraphs | undefined;

  constructor(
    private readonly backend: Backend,
    /** Loads the teacher, when targets are missing from the cache. */
    private readonly weights: () => ModelWeights,
    private readonly sequences: SequenceSet,
    readonly options: SparseTeacherOptions,
  ) {
    const { cacheDirectory, teacherId, computeType, vocabSize, targets, expectedSequences = 0 } = options;
    if (cacheDirectory === undefined) return;
    const { stream, length, count } = sequences;
    const identity = [FORMAT, teacherId, computeType, vocabSize, stream.id, length, ...targets.identity];
    const key = hashBytes(JSON.stringify(identity));
    this.cache = new LogitCache(path.join(cacheDirectory, key.slice(0, 32)), {
      description: { sequences: count, sequenceLength: length, targets: targets.identity },
      expectedBytes: Math.min(expectedSequences, count) * length * targets.expectedBytes,
    });
  }

  /** Declares inputs for the targets of `rows` rows. */
  declareInputs(g: Graph, rows: number): SparseInputs {
    const { slots } = this.options.targets;
    const indices = g.input("teacher.indices", "i32", [rows * slots]);
    const values = g.input("teacher.values", "f32", [rows * slots]);
    return {
      indices,
      values,
      rows: (graph, { from, to }) => {
        const range = { from: from * slots, to: to * slots };
        return { slots, indices: ops.rowsOf(graph, indices, range), values: ops.rowsOf(graph, values, range) };
      },
    };
  }

  /** Writes the targets of a batch, from the cache or by computing them. */
  async feed(g: Graph, inputs: SparseInputs, rows: number, batch: Batch, numbers: readonly number[]): Promise<void> {
    const { targets, vocabSize } = this.options;
    const cached = numbers.map((number) => this.cache?.get(number));
    const { ids, values } = cached.includes(undefined)
      ? await this.compute(batch, numbers)
      : allocate(rows * targets.slots);
    const perSequence = this.sequences.length * targets.slots;
    for (const [i, number] of numbers.entries()) {
      const range = [i * perSequence, (i + 1) * perSequence] as const;
      const entry = cached[i] ?? this.keep(number, { ids: ids.subarray(...range), values: values.subarray(...range) });
      if (entry === undefined) continue;
      // The cache rounds. What it gives is always used, so that a first run and a later one see the same values.
      const decoded = targets.decode(entry, this.sequences.length);
      ids.set(decoded.ids, range[0]);
      values.set(decoded.values, range[0]);
    }
    g.write(inputs.indices, ops.headIndices(ids, rows, vocabSize));
    g.write(inputs.values, values);
  }

  /** Looks for what other processes have put into the cache. */
  refreshCache(): void {
    this.cache?.refresh();
  }

  /** Those of some sequences that the cache lacks, each once. @throws CoppiceError without a cache */
  missing(numbers: readonly number[]): number[] {
    const { cache } = this;
    if (cache === undefined)
      throw new CoppiceError("a teacher that does not fit in memory needs a cache of its logits");
    return cache.missing(numbers);
  }

  /**
   * Computes what the cache lacks of some sequences, by a teacher whose layers go through memory one after the other.
   * @throws CoppiceError without a cache, and when the teacher's outputs are not finite
   */
  async fillCache(
    weights: StreamedWeights,
    tokensOf: TokensOf,
    numbers: readonly number[],
    { signal, onProgress }: FillOptions = {},
  ): Promise<void> {
    const all = [...new Set(numbers)];
    const missing = this.missing(all);
    const { length } = this.sequences;
    const batch = Math.max(1, Math.floor(FILLED_BATCH_TOKENS / length));
    const stateBytes = batch * length * sizeOf("hidden", weights.model.sizes) * Float32Array.BYTES_PER_ELEMENT;
    const atOnce = batch * Math.max(1, Math.floor(weights.statesBytes / (STATES_AT_ONCE * stateBytes)));
    for (let from = 0; from < missing.length; from += atOnce) {
      const done = all.length - missing.length + from;
      const part = missing.slice(from, from + atOnce);
      await this.fill(weights, tokensOf, part, Math.min(batch, part.length), {
        signal,
        onProgress: (share) => onProgress?.(done + Math.floor(share * part.length), all.length),
      });
    }
  }

  private async fill(
    weights: StreamedWeights,
    tokensOf: TokensOf,
    numbers: readonly number[],
    batch: number,
    passOptions: Pick<PassOptions, "signal" | "onProgress">,
  ): Promise<void> {
    const { backend, options } = this;
    const { targets, vocabSize, computeType } = options;
    const { length } = this.sequences;
    // the last batch is filled up with the last sequence
    const numbersOf = (i: number) =>
      Array.from({ length: batch }, (_, k) => elementAt(numbers, Math.min(i * batch + k, numbers.length - 1)));
    const data = {
      layout: { batch, seq: length },
      batches: Math.ceil(numbers.length / batch),
      tokensOf: (i: number) => tokensOf(numbersOf(i)),
    };
    const last = (g: Graph, { hidden, logits }: ForwardResult): LastPart => {
      const parts = [...ops.rowRanges(batch * length, weights.model.vocabSize)].map((range) => {
        const rows = ops.firstColumns(g, logits(ops.rowsOf(g, hidden, range)), vocabSize);
        return { ...range, read: targets.declare(g, rows) };
      });
      const check = g.output(ops.sum(g, hidden)); // probabilities may be finite even where states are not
      return {
        read: (i) => {
          const inBatch = numbersOf(i);
          const computed = allocate(batch * length * targets.slots);
          for (const { from, to, read } of parts) {
            const { ids, values } = read(positionsOf(inBatch, length, { from, to }));
            computed.ids.set(ids, from * targets.slots);
            computed.values.set(values, from * targets.slots);
          }
          if (!Number.isFinite(g.read(check)[0]) || !computed.values.every(Number.isFinite))
            throw notFinite("the teacher", undefined);
          const perSequence = length * targets.slots;
          for (const [k, number] of [...new Set(inBatch)].entries()) {
            const range = [k * perSequence, (k + 1) * perSequence] as const;
            this.keep(number, { ids: computed.ids.subarray(...range), values: computed.values.subarray(...range) });
          }
        },
      };
    };
    await forwardPass(backend, weights, data, { last }, { computeType, who: "the teacher", ...passOptions });
  }

  /** Puts a sequence's targets into the cache, if there is one. @returns its entry */
  private keep(number: number, computed: TargetValues): Uint8Array | undefined {
    if (this.cache === undefined) return undefined;
    const entry = this.options.targets.encode(computed);
    this.cache.put(number, entry);
    return entry;
  }

  private async compute(batch: Batch, numbers: readonly number[]): Promise<TargetValues> {
    const { backend, sequences, options } = this;
    const { computeType } = options;
    const weights = this.weights();
    const shape = [numbers.length, sequences.length] as const;
    this.graphs ??= new TeacherGraphs(backend, weights, shape, options);
    const computed = await this.graphs.run(batch.tokens, numbers);
    const { tokens } = batch;
    if (computed === undefined)
      throw await overflowError("the teacher", { backend, weights, tokens, batch: numbers.length, computeType });
    return computed;
  }

  free(): void {
    this.graphs?.free();
    this.graphs = undefined;
    this.cache?.close();
  }
}

/** Tokens in a batch that fills the cache. */
const FILLED_BATCH_TOKENS = 2048;
/** Hidden states of a batch before and after a layer. */
const STATES_AT_ONCE = 2;

/** The positions in the data of some rows of a batch. @param numbers of its sequences */
const positionsOf = (numbers: readonly number[], length: number, { from, to }: ops.RowRange): Position[] =>
  Array.from({ length: to - from }, (_, i) => ({
    sequence: elementAt(numbers, Math.floor((from + i) / length)),
    offset: (from + i) % length,
  }));

const allocate = (count: number): TargetValues => ({ ids: new Int32Array(count), values: new Float32Array(count) });

/** Computes targets: a batch's last states, then its logits and what is kept of them, a range of rows at a time. */
class TeacherGraphs {
  private readonly trunk: Graph;
  private readonly tokens: Tensor;
  private readonly hidden: Tensor;
  private readonly head: Graph;
  /** The last states of a range of rows. */
  private readonly states: Tensor;
  private readonly read: (positions: readonly Position[]) => TargetValues;
  private readonly ranges: readonly ops.RowRange[];
  private readonly slots: number;

  constructor(
    backend: Backend,
    { model, get }: ModelWeights,
    [batch, length]: readonly [batch: number, length: number],
    { targets, computeType, vocabSize }: SparseTeacherOptions,
  ) {
    const rows = batch * length;
    this.slots = targets.slots;
    this.trunk = new Graph(backend, { computeType });
    this.tokens = this.trunk.input("tokens", "i32", [batch, length]);
    this.hidden = this.trunk.output(model.forward(this.trunk, get, this.tokens).hidden);
    this.ranges = [...ops.rowRanges(rows, model.vocabSize)];
    this.head = new Graph(backend, { computeType });
    this.states = this.head.input("states", "f32", [
      elementAt(this.ranges, 0).to,
      elementCount(this.hidden.shape) / rows,
    ]);
    // Layers are recorded with it, but never computed, because nothing needs them.
    const { logits } = model.forward(this.head, get, this.head.input("tokens", "i32", [batch, length]));
    this.read = targets.declare(this.head, ops.firstColumns(this.head, logits(this.states), vocabSize));
  }

  /** @returns undefined when the teacher's outputs are not finite */
  async run(tokens: Int32Array, numbers: readonly number[]): Promise<TargetValues | undefined> {
    const length = tokens.length / numbers.length;
    this.trunk.write(this.tokens, tokens);
    await this.trunk.run();
    const hidden = this.trunk.read(this.hidden);
    if (!hidden.every(Number.isFinite)) return undefined; // probabilities may be finite even so
    const width = hidden.length / tokens.length;
    const computed = allocate(tokens.length * this.slots);
    const states = new Float32Array(elementCount(this.states.shape));
    for (const { from, to } of this.ranges) {
      states.set(hidden.subarray(from * width, to * width));
      this.head.write(this.states, states);
      await this.head.run();
      const { ids, values } = this.read(positionsOf(numbers, length, { from, to }));
      if (!values.every(Number.isFinite)) return undefined;
      computed.ids.set(ids, from * this.slots);
      computed.values.set(values, from * this.slots);
    }
    return computed;
  }

  free(): void {
    this.trunk.free();
    this.head.free();
  }
}
