import { Sequences, Tokenizer, TokenStream } from "../data/index.js";
import {
  EngineLikelihoods,
  type Likelihood,
  type LikelihoodModel,
  type Perplexity,
  perplexity,
  type SharedSums,
  spreadBatches,
} from "../evaluate/index.js";
import { Backend, type BackendOptions } from "../ggml/index.js";
import { openCheckpoint, type PassWeights } from "../models/index.js";
import { calibrate, type Scores } from "../prune/index.js";
import type { Message, Ranks } from "../ranks/index.js";
import type { ComputeType, TensorStore } from "../tensor/index.js";
import type { JobOptions } from "./job.js";
import { weightsFor } from "./model-memory.js";

/** A model that all ranks open, and what they compute with it. */
interface SharedModel {
  readonly path: string;
  readonly computeType: ComputeType;
  readonly device: Pick<BackendOptions, "device" | "threads" | "kernels">;
  readonly memoryBytes?: number | undefined;
}

const sharedModel = (
  path: string,
  computeType: ComputeType,
  { device, threads, kernels, memoryBytes }: JobOptions,
): SharedModel => ({ path, computeType, device: { device, threads, kernels }, memoryBytes });

/** A follower's part of some work on a model. */
async function withModel<T>(
  ranks: Ranks,
  { path, computeType, device, memoryBytes }: SharedModel,
  work: (backend: Backend, weights: PassWeights) => Promise<T>,
): Promise<T> {
  const backend = Backend.open({ ...device, instance: ranks.local.rank });
  try {
    const weights = weightsFor(backend, openCheckpoint(path), computeType, { memoryBytes });
    try {
      return await work(backend, weights);
    } finally {
      weights.free();
    }
  } finally {
    backend.free();
  }
}

const bytesOf = ({ buffer, byteOffset, byteLength }: Int32Array) => new Uint8Array(buffer, byteOffset, byteLength);

function receiveIds(ranks: Ranks, count: number): Int32Array {
  const ids = new Int32Array(count);
  ranks.receiveData(bytesOf(ids), 0);
  return ids;
}

interface PerplexityTask extends SharedModel {
  readonly tokens: number;
  readonly sequenceLength: number;
  readonly beginToken?: number | undefined;
}

/** The tokens of the sequences [from, to) of a stream, and the one that follows. */
function idsOf(stream: TokenStream, length: number, [from, to]: readonly [number, number]): Int32Array {
  const ids = new Int32Array(Math.min(stream.length, to * length + 1) - from * length);
  stream.copy(from * length, ids.length, ids, 0);
  return ids;
}

function streamOf(ids: Int32Array, beginToken: number | undefined): TokenStream {
  const stream = TokenStream.of(ids, "a part");
  return beginToken === undefined ? stream : stream.beginningWith(beginToken);
}

/** A model that is measured on a text. */
export interface MeasuredModel {
  readonly backend: Backend;
  readonly weights: PassWeights;
  /** Where the weights come from. */
  readonly path: string;
  readonly computeType: ComputeType;
  readonly options: JobOptions;
}

/** A model's loss on a text, of which each rank measures a part. */
export async function sharedPerplexity(
  ranks: Ranks,
  { backend, weights, path, computeType, options }: MeasuredModel,
  stream: TokenStream,
  sequenceLength: number,
  onProgress: (done: number, total: number) => void,
): Promise<Perplexity> {
  const length = Math.min(sequenceLength, stream.length - 1);
  const count = Math.ceil((stream.length - 1) / length);
  const measureOwn = (own: TokenStream) =>
    perplexity(backend, weights, own, {
      sequenceLength: length,
      computeType,
      signal: options.signal,
      onProgress: (done) => onProgress(Math.min(count, done * ranks.size), count),
    });
  if (count < ranks.size) return measureOwn(stream);
  return ranks.together(async () => {
    for (let to = 1; to < ranks.size; to++) {
      const ids = idsOf(stream, length, ranks.share(count, to));
      const task: PerplexityTask = {
        ...sharedModel(path, computeType, options),
        tokens: ids.length,
        sequenceLength: length,
        beginToken: stream.beginToken,
      };
      ranks.post({ kind: "perplexity", ...task }, to);
      ranks.sendData(bytesOf(ids), to);
    }
    const parts = [await measureOwn(streamOf(idsOf(stream, length, ranks.share(count)), stream.beginToken))];
    for (let from = 1; from < ranks.size; from++) parts.push((await ranks.receive(from)) as unknown as Perplexity);
    const tokens = parts.reduce((sum, part) => sum + part.tokens, 0);
    const loss = parts.reduce((sum, part) => sum + part.loss * part.tokens, 0) / tokens;
    return { loss, perplexity: Math.exp(loss), tokens };
  });
}

/** A follower's part of {@link sharedPerplexity}. */
export async function joinPerplexity(ranks: Ranks, message: Message): Promise<void> {
  const task = message as Message & PerplexityTask;
  const { tokens, sequenceLength, beginToken, computeType } = task;
  const ids = receiveIds(ranks, tokens);
  const part = await withModel(ranks, task, (backend, weights) =>
    perplexity(backend, weights, streamOf(ids, beginToken), { sequenceLength, computeType }),
  );
  ranks.post({ kind: "perplexity", ...part }, 0);
}

interface CalibrationTask extends SharedModel {
  readonly sequenceLength: number;
  readonly batchSize: number;
  /** Batches of this rank, and of all. */
  readonly batches: number;
  readonly allBatches: number;
}

/** Sequences as given, one after the other. */
function sequencesOf(ids: Int32Array, length: number): Sequences {
  const withNext = new Int32Array(ids.length + 1); // what follows the last one is not read
  withNext.set(ids);
  return new Sequences(TokenStream.of(withNext, "a part"), length);
}

/** Adds up the sums of all ranks at the leader. */
const sumsOver = (ranks: Ranks, batches: number): SharedSums => ({
  batches,
  add: async (sums: TensorStore) => {
    for (const tensor of sums) {
      const own = sums.read(tensor);
      const all = new Float32Array(own.length);
      await ranks.reduce(own, 0, ranks.isLeader ? all : undefined);
      if (ranks.isLeader) sums.write(tensor, all);
    }
  },
});

/** Scores of a model's dimensions from calibration data, of which each rank sees a part. */
export async function sharedCalibration(
  ranks: Ranks,
  { backend, weights, path, computeType, options }: MeasuredModel,
  sequences: Sequences,
  { samples, batchSize }: { readonly samples: number; readonly batchSize: number },
  onProgress: (done: number, total: number) => void,
): Promise<Scores> {
  const { signal } = options;
  const all = spreadBatches(sequences, samples, batchSize);
  if (all.length < ranks.size)
    return calibrate(backend, weights, sequences, { samples, batchSize, computeType, signal, onProgress });
  const { length } = sequences;
  const size = all[0]?.length ?? 0;
  const idsFor = (rank: number) => sequences.batch(all.slice(...ranks.share(all.length, rank)).flat()).tokens;
  return ranks.together(() => {
    for (let to = 1; to < ranks.size; to++) {
      const [from, end] = ranks.share(all.length, to);
      const task: CalibrationTask = {
        ...sharedModel(path, computeType, options),
        sequenceLength: length,
        batchSize: size,
        batches: end - from,
        allBatches: all.length,
      };
      ranks.post({ kind: "calibrate", ...task }, to);
      ranks.sendData(bytesOf(idsFor(to)), to);
    }
    const own = sequencesOf(idsFor(0), length);
    return calibrate(backend, weights, own, {
      samples: own.count,
      batchSize: size,
      computeType,
      signal,
      shared: sumsOver(ranks, all.length),
      onProgress: (done) => onProgress(Math.min(samples, done * ranks.size), samples),
    });
  });
}

/** A follower's part of {@link sharedCalibration}. */
export async function joinCalibration(ranks: Ranks, message: Message): Promise<void> {
  const task = message as Message & CalibrationTask;
  const { sequenceLength, batchSize, batches, allBatches, computeType } = task;
  const samples = batches * batchSize;
  const own = sequencesOf(receiveIds(ranks, samples * sequenceLength), sequenceLength);
  const shared = sumsOver(ranks, allBatches);
  await withModel(ranks, task, (backend, weights) =>
    calibrate(backend, weights, own, { samples, batchSize, computeType, shared }),
  );
}

interface LikelihoodTask extends SharedModel {
  readonly directory: string;
  readonly maxLength: number | undefined;
  readonly requests: Parameters<LikelihoodModel["logLikelihoods"]>[0];
}

/** Requests for each rank that are answered before the next are shared out, so that little is lost by a kill. */
const REQUESTS_AT_ONCE = 4096;

/** Answers requests for likelihoods, each rank a part of them. @param own answers this rank's */
export function sharedLikelihoods(
  ranks: Ranks,
  own: LikelihoodModel,
  model: { readonly path: string; readonly directory: string; readonly computeType: ComputeType },
  options: JobOptions & { readonly maxLength?: number | undefined },
): LikelihoodModel {
  const { path, directory, computeType } = model;
  const answer: LikelihoodModel["logLikelihoods"] = (requests, onReply, ask) =>
    ranks.together(async () => {
      for (let to = 1; to < ranks.size; to++) {
        const task: LikelihoodTask = {
          ...sharedModel(path, computeType, options),
          directory,
          maxLength: options.maxLength,
          requests: requests.slice(...ranks.share(requests.length, to)),
        };
        ranks.post({ kind: "likelihoods", ...task }, to);
      }
      await own.logLikelihoods(requests.slice(...ranks.share(requests.length)), onReply, ask);
      for (let from = 1; from < ranks.size; from++) {
        const { replies } = (await ranks.receive(from)) as unknown as { readonly replies: readonly Likelihood[] };
        const [first] = ranks.share(requests.length, from);
        for (const [i, reply] of replies.entries()) onReply(first + i, reply);
      }
    });
  return {
    logLikelihoods: async (requests, onReply, ask = {}) => {
      if (requests.length < ranks.size) return own.logLikelihoods(requests, onReply, ask);
      const atOnce = REQUESTS_AT_ONCE * ranks.size;
      for (let from = 0; from < requests.length && ask.signal?.aborted !== true; from += atOnce)
        await answer(requests.slice(from, from + atOnce), (i, reply) => onReply(from + i, reply), ask);
    },
  };
}

/** A follower's part of {@link sharedLikelihoods}. */
export async function joinLikelihoods(ranks: Ranks, message: Message): Promise<void> {
  const task = message as Message & LikelihoodTask;
  const { directory, maxLength, requests, computeType } = task;
  const tokenizer = await Tokenizer.load(directory);
  const replies: Likelihood[] = [];
  await withModel(ranks, task, (backend, weights) =>
    new EngineLikelihoods(backend, weights, tokenizer, { maxLength, computeType }).logLikelihoods(
      requests,
      (i, reply) => {
        replies[i] = reply;
      },
    ),
  );
  ranks.post({ kind: "likelihoods", replies }, 0);
}
