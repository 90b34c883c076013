import { closeSync, existsSync, mkdirSync, openSync, readSync, statSync } from "node:fs";
import path from "node:path";
import type { Batch, Sequences } from "../data/index.js";
import { overflowError } from "../evaluate/finite.js";
import { fromFloat32, toFloat32 } from "../ggml/convert.js";
import type { Backend } from "../ggml/device.js";
import { bytesOf } from "../ggml/dtype.js";
import { loadFunctions } from "../ggml/library.js";
import type { ModelWeights } from "../models/index.js";
import { checkSpace, hashBytes, writeAll, writeJson, writingError } from "../system/files.js";
import { logOf } from "../system/log.js";
import { type ComputeType, Graph, ops, type Tensor } from "../tensor/index.js";
import type { TopKTargets } from "./losses.js";

const log = logOf("training");

export interface TopKTeacherOptions {
  readonly k: number;
  readonly temperature: number;
  readonly computeType: ComputeType;
  /** Where to keep computed logits for later runs; they are not kept by default. */
  readonly cacheDirectory?: string | undefined;
  /** How many sequences will be needed, to check that there is room to cache them. */
  readonly expectedSequences?: number | undefined;
  /** Identifies the teacher's weights in the cache. */
  readonly teacherId: string;
  /** Tokens that both models have; further rows of their heads are padding. */
  readonly vocabSize: number;
}

/** The inputs for a batch's targets. */
export interface TopKInputs {
  readonly indices: Tensor;
  readonly logProbabilities: Tensor;
  /** The targets of some rows. */
  readonly rows: (g: Graph, range: ops.RowRange) => TopKTargets;
}

/** Feeds a training graph the teacher's k most probable tokens, which are computed at first use and can be kept on disk. */
export class TopKTeacher {
  private readonly cache: LogitCache | undefined;
  private graph:
    | {
        readonly g: Graph;
        readonly tokens: Tensor;
        readonly ids: Tensor;
        readonly values: Tensor;
        /** Finite only if all last states are: the results of a softmax may be finite even if they are not. */
        readonly check: Tensor;
      }
    | undefined;

  constructor(
    private readonly backend: Backend,
    /** Loads the teacher, when logits are missing from the cache. */
    private readonly weights: () => ModelWeights,
    private readonly sequences: Sequences,
    readonly options: TopKTeacherOptions,
  ) {
    const { cacheDirectory, teacherId, k, temperature } = options;
    if (cacheDirectory !== undefined) {
      const key = hashBytes(
        JSON.stringify([2, teacherId, options.vocabSize, sequences.stream.id, sequences.length, k, temperature]),
      ).slice(0, 32);
      this.cache = new LogitCache(path.join(cacheDirectory, key), sequences, k, options.expectedSequences ?? 0);
    }
  }

  /** Declares inputs for the targets of `rows` rows. */
  declareInputs(g: Graph, rows: number): TopKInputs {
    const { k } = this.options;
    const indices = g.input("teacher.indices", "i32", [rows * k]);
    const logProbabilities = g.input("teacher.logProbabilities", "f32", [rows * k]);
    return {
      indices,
      logProbabilities,
      rows: (graph, { from, to }) => {
        const range = { from: from * k, to: to * k };
        return {
          k,
          indices: ops.rowsOf(graph, indices, range),
          logProbabilities: ops.rowsOf(graph, logProbabilities, range),
        };
      },
    };
  }

  /** Writes the targets of a batch, from the cache or by computing them. */
  async feed(g: Graph, inputs: TopKInputs, rows: number, batch: Batch, numbers: readonly number[]): Promise<void> {
    const perSequence = this.sequences.length * this.options.k;
    const ids = new Int32Array(numbers.length * perSequence);
    const values = new Float32Array(ids.length);
    const missing = numbers.filter((number) => !this.cache?.has(number));
    if (missing.length > 0) {
      const computed = await this.compute(batch, numbers.length);
      numbers.forEach((number, row) => {
        const range = [row * perSequence, (row + 1) * perSequence] as const;
        if (missing.includes(number))
          this.cache?.put(number, computed.ids.subarray(...range), computed.values.subarray(...range));
      });
      ids.set(computed.ids);
      values.set(computed.values);
    }
    // The cache holds rounded values. They are always used, so that a first run and a later one see the same values.
    for (const [row, number] of numbers.entries()) this.cache?.get(number, ids, values, row * perSequence);
    normalize(values, this.options.k);
    g.write(inputs.indices, ops.headIndices(ids, rows, this.options.vocabSize));
    g.write(inputs.logProbabilities, values);
  }

  private async compute(batch: Batch, batchSize: number) {
    if (this.graph === undefined) {
      const { model, get } = this.weights();
      const g = new Graph(this.backend, { computeType: this.options.computeType });
      const tokens = g.input("tokens", "i32", [batchSize, this.sequences.length]);
      const { hidden, logits } = model.forward(g, get, tokens);
      const { k, temperature, vocabSize } = this.options;
      const ids: Tensor[] = [];
      const values = ops.mapHeadRows(g, hidden, model.vocabSize, (rows) => {
        const logP = ops.logSoftmax(g, ops.firstColumns(g, logits(rows), vocabSize), { scale: 1 / temperature });
        const largest = ops.topKIndices(g, logP, { k });
        ids.push(largest);
        return ops.takeAlongRows(g, logP, largest);
      });
      const check = g.output(ops.sum(g, hidden));
      this.graph = { g, tokens, ids: g.output(ops.concatRows(g, ids)), values: g.output(values), check };
    }
    const { g, tokens, ids, values, check } = this.graph;
    g.write(tokens, batch.tokens);
    await g.run();
    if (![...g.read(check), ...g.read(values)].every(Number.isFinite))
      throw await overflowError("the teacher", {
        backend: this.backend,
        weights: this.weights(),
        tokens: batch.tokens,
        batch: batchSize,
        computeType: this.options.computeType,
      });
    return { ids: g.readInt32(ids), values: g.read(values) };
  }

  free(): void {
    this.graph?.g.free();
    this.graph = undefined;
    this.cache?.close();
  }
}

/** Scales rows whose probabilities sum to more than 1, by rounding, so that no negative probability is left for the rest. */
function normalize(logProbabilities: Float32Array, k: number): void {
  for (let row = 0; row < logProbabilities.length; row += k) {
    const values = logProbabilities.subarray(row, row + k);
    const total = values.reduce((sum, value) => sum + Math.exp(value), 0);
    if (total > 1) values.set(values.map((value) => value - Math.log(total)));
  }
}

const LOGITS = "logits.bin";
/** The unit of `blocks` in the result of `stat`. */
const BLOCK_BYTES = 512;

/**
 * Logits on disk: for each sequence of a corpus, its positions' k token ids (i32) and log-probabilities (f16), and a byte that
 * marks them as present. The byte is written after the data, so a killed run leaves no partial entry.
 */
class LogitCache {
  private readonly data: number;
  private readonly present: number;
  private readonly entryBytes: number;
  private readonly entries: number;
  private readonly known = new Set<number>();
  private readonly functions = loadFunctions();

  constructor(
    private readonly directory: string,
    sequences: Sequences,
    k: number,
    expectedSequences: number,
  ) {
    this.entries = sequences.length * k;
    this.entryBytes = this.entries * 6;
    mkdirSync(directory, { recursive: true });
    const { blocks = 0 } = statSync(path.join(directory, LOGITS), { throwIfNoEntry: false }) ?? {};
    const missingBytes = Math.min(expectedSequences, sequences.count) * this.entryBytes - blocks * BLOCK_BYTES;
    checkSpace(directory, missingBytes, "the teacher's logits");
    writeJson(path.join(directory, "cache.json"), { sequences: sequences.count, sequenceLength: sequences.length, k });
    const open = (name: string) =>
      openSync(path.join(directory, name), existsSync(path.join(directory, name)) ? "r+" : "w+");
    this.data = open(LOGITS);
    this.present = open("present.bin");
    log.debug(blocks > 0 ? "teacher's logits cached" : "teacher's logits not cached", { directory });
  }

  has(number: number): boolean {
    if (this.known.has(number)) return true;
    const flag = new Uint8Array(1);
    if (readSync(this.present, flag, 0, 1, number) !== 1 || flag[0] !== 1) return false;
    this.known.add(number);
    return true;
  }

  put(number: number, ids: Int32Array, values: Float32Array): void {
    const entry = new Uint8Array(this.entryBytes);
    entry.set(bytesOf(ids));
    entry.set(fromFloat32(this.functions, values.slice(), "f16"), this.entries * 4);
    try {
      writeAll(this.data, entry, number * this.entryBytes);
      writeAll(this.present, Uint8Array.of(1), number);
    } catch (error) {
      throw writingError(error, path.join(this.directory, LOGITS));
    }
    this.known.add(number);
  }

  /** Reads an entry into `ids` and `values` at `offset`. */
  get(number: number, ids: Int32Array, values: Float32Array, offset: number): void {
    const entry = new Uint8Array(this.entryBytes);
    readSync(this.data, entry, 0, entry.length, number * this.entryBytes);
    ids.set(new Int32Array(entry.buffer, 0, this.entries), offset);
    values.set(toFloat32(this.functions, entry.subarray(this.entries * 4), "f16"), offset);
  }

  close(): void {
    closeSync(this.data);
    closeSync(this.present);
  }
}
