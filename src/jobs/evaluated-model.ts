import path from "node:path";
import { Tokenizer } from "../data/index.js";
import {
  CompletionServer,
  EngineLikelihoods,
  type EvaluatedModel,
  type GenerationModel,
  type LikelihoodModel,
  ReplyCache,
} from "../evaluate/index.js";
import { LlamaCppModel } from "../generate/index.js";
import { Backend } from "../ggml/index.js";
import { summarizeGguf } from "../models/index.js";
import { CoppiceError, FormatError, UsageError } from "../system/errors.js";
import { cacheDirectory } from "../system/files.js";
import type { EvaluateJob } from "./evaluation.js";
import { fileIdentity, originOf, runnableGguf } from "./export.js";
import { weightsFor } from "./model-memory.js";
import { findModel, type OpenModel, type RunOnlyModel } from "./open-model.js";
import { checkLength } from "./sanity.js";
import { sharedLikelihoods } from "./shared/likelihoods.js";

/** A model that is ready for evaluation. */
export interface OpenedModel {
  readonly model: EvaluatedModel;
  readonly parameters: number | undefined;
  /** The longest sequence, if it is known. */
  readonly maxLength: number | undefined;
  /** Frees the engines, which are loaded again when they are needed again. */
  release(): Promise<void>;
}

/** Increase it when the same request would get another answer. */
const ANSWERS_VERSION = 1;

/** Whether a model is a server's, rather than computed here. */
const isServer = (name: string): boolean => /^https?:\/\//.test(name);

/** @throws UsageError for options that are for models that are computed here, where there are none */
export function checkComputed({ models, maxLength, engine, computeType }: EvaluateJob): void {
  if (!models.every(isServer)) return;
  const given = Object.entries({ "--max-length": maxLength, "--engine": engine, "--compute": computeType });
  for (const [option, value] of given)
    if (value !== undefined) throw new UsageError(`${option} is for models that are computed here, not for a server's`);
}

/** Opens one of a job's models. @throws UsageError for options that do not go with it */
export async function openEvaluatedModel(index: number, job: EvaluateJob): Promise<OpenedModel> {
  const name = job.models[index] ?? "";
  const cacheOf = (identity: unknown, restart: "own" | "all") =>
    ReplyCache.open(
      job.answers?.directory ?? path.join(cacheDirectory(job.cacheDir), "evaluations"),
      [ANSWERS_VERSION, identity],
      job.restart === true ? restart : undefined,
    );
  if (isServer(name)) {
    const [url = name, model] = name.split("#");
    const server = await CompletionServer.connect(url, { model });
    const cache = cacheOf([url, server.model], "all"); // what is behind an address may be another model now
    const opened = { likelihood: server, generation: server, cache };
    return { model: opened, parameters: undefined, maxLength: undefined, release: async () => {} };
  }
  const found = await findModel(name, job);
  const { parameters } = found;
  if (job.engine === "llama.cpp" && found.file === undefined)
    throw new UsageError(`--engine llama.cpp is for .gguf files; ${name} is a directory`);
  const longest = longestSequence(found);
  checkLength(job.maxLength, { maxPositions: longest }, name, "--max-length");
  const maxLength = job.maxLength ?? longest;
  if (maxLength < 2) throw new UsageError(`a longest sequence of ${maxLength} tokens leaves nothing to predict`);
  const lazy = new LazyModel(found, name, { ...job, maxLength });
  if (job.computeType === "bf16" && job.engine === "llama.cpp") throw new UsageError("--compute is for our own engine");
  const { engine = "coppice", computeType = "f32" } = job;
  const identity = job.answers?.identities[index] ?? fileIdentity(originOf(found));
  const cache = cacheOf([identity, engine, computeType, maxLength], "own");
  return { model: { likelihood: lazy, generation: lazy, cache }, parameters, maxLength, release: () => lazy.release() };
}

/** The longest sequence of a model whose file does not specify one. */
const DEFAULT_LENGTH = 2048;

const longestSequence = (found: OpenModel | RunOnlyModel): number =>
  found.checkpoint === undefined ? summarizeGguf(found.file).contextLength || DEFAULT_LENGTH : found.model.maxPositions;

/** Models with more parameters generate with their weights as stored, rather than in f32. */
const EXACT_PARAMETERS = 1e9;

interface LoadedEngine<T> {
  readonly engine: T;
  readonly release: () => Promise<void> | void;
}

/** A model that loads its engines when they are first needed. */
class LazyModel implements LikelihoodModel, GenerationModel {
  private likelihood: LoadedEngine<LikelihoodModel> | undefined;
  private generation: LoadedEngine<GenerationModel> | undefined;

  constructor(
    private readonly found: OpenModel | RunOnlyModel,
    private readonly name: string,
    private readonly job: EvaluateJob,
  ) {}

  logLikelihoods: LikelihoodModel["logLikelihoods"] = async (...request) => {
    this.likelihood ??= this.job.engine === "llama.cpp" ? await this.openLlamaCpp() : await this.openOwnEngine();
    return this.likelihood.engine.logLikelihoods(...request);
  };

  generate: GenerationModel["generate"] = async (...request) => {
    this.generation ??= await this.openLlamaCpp();
    return this.generation.engine.generate(...request);
  };

  private async openOwnEngine(): Promise<LoadedEngine<LikelihoodModel>> {
    const { job, found } = this;
    if (found.checkpoint === undefined)
      throw new FormatError(`${found.reason}. With --engine llama.cpp, llama.cpp computes likelihoods, too`);
    const tokenizer = await Tokenizer.load(found.checkpoint.directory);
    const { computeType = "f32", maxLength } = job;
    const backend = Backend.open({ ...job, instance: job.ranks?.local.rank ?? job.instance });
    try {
      const dtype = computeType === "f32" ? "f32" : "bf16";
      const weights = weightsFor(backend, found.checkpoint, dtype, job);
      const engine = new EngineLikelihoods(backend, weights, tokenizer, { maxLength, computeType });
      const { path: modelPath, directory } = found.checkpoint;
      const shared = { path: modelPath, directory, computeType };
      return {
        engine: job.ranks === undefined ? engine : sharedLikelihoods(job.ranks, engine, shared, job),
        release: () => {
          weights.free();
          backend.free();
        },
      };
    } catch (error) {
      backend.free();
      throw error;
    }
  }

  private async openLlamaCpp(): Promise<LoadedEngine<LlamaCppModel>> {
    const { job, found, name } = this;
    const exact = found.parameters <= EXACT_PARAMETERS;
    const asStored = found.file !== undefined || !exact;
    const tokenizer = found.checkpoint && (await Tokenizer.load(found.checkpoint.directory));
    const file = await runnableGguf(name, asStored ? job : { ...job, kind: "f32" });
    const { device, threads, maxLength } = job;
    try {
      const engine = await LlamaCppModel.open(file, tokenizer, { exact, maxLength, device, threads });
      return { engine, release: () => engine.dispose() };
    } catch (error) {
      throw new CoppiceError(`text cannot be generated: ${error instanceof Error ? error.message : error}`);
    }
  }

  async release(): Promise<void> {
    const { likelihood, generation } = this;
    this.likelihood = undefined;
    this.generation = undefined;
    await likelihood?.release();
    await generation?.release();
  }
}
