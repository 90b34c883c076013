import type { ControlledEvaluateInputItem, LlamaContextSequence, LlamaModel, Token } from "node-llama-cpp";
import type { TextTokenizer } from "../data/index.js";
import {
  type AskOptions,
  cutAt,
  type GenerateRequest,
  type GenerationModel,
  type Likelihood,
  type LikelihoodModel,
  type LogLikelihoodRequest,
  type OnReply,
  RequestEncoder,
  type RollingRequest,
  type TokenPair,
} from "../evaluate/index.js";
import { defined } from "../system/defined.js";
import { CoppiceError, UsageError } from "../system/errors.js";
import { type EngineOptions, fastestThreads, loadModel } from "./engine.js";
import { OwnTokenizer } from "./own-tokenizer.js";
import { checkContext, openRunnable } from "./runnable.js";

export interface LlamaCppOptions extends Pick<EngineOptions, "device" | "threads"> {
  /** The longest sequence; longer prompts lose their beginning. The model's own limit by default. */
  readonly maxLength?: number | undefined;
  /** Keep keys and values in f32 rather than f16, so that the text is the one that exact arithmetic would generate. */
  readonly exact?: boolean | undefined;
}

const DEFAULT_LENGTH = 2048;

/** A model for benchmarks that llama.cpp computes. Texts are encoded and decoded by the benchmark's own tokenizer. */
export class LlamaCppModel implements GenerationModel, LikelihoodModel {
  private readonly encoder: RequestEncoder;

  private constructor(
    private readonly model: LlamaModel,
    private readonly tokenizer: TextTokenizer,
    private readonly maxLength: number,
    private readonly options: Pick<LlamaCppOptions, "threads" | "exact">,
  ) {
    this.encoder = RequestEncoder.of(tokenizer);
  }

  /**
   * @param tokenizer the benchmark's; llama.cpp's own for the model when undefined
   * @throws FormatError when the file is invalid, CoppiceError when llama.cpp cannot run it
   */
  static async open(
    file: string,
    tokenizer: TextTokenizer | undefined,
    options: LlamaCppOptions = {},
  ): Promise<LlamaCppModel> {
    const target = await openRunnable(file);
    const length = options.maxLength ?? (target.contextLength || DEFAULT_LENGTH);
    checkContext(target, length);
    const model = await loadModel(target.file, options);
    const threads = options.threads ?? (await fastestThreads(model));
    return new LlamaCppModel(model, tokenizer ?? new OwnTokenizer(model), length, { threads, exact: options.exact });
  }

  async generate(
    requests: readonly GenerateRequest[],
    onReply: OnReply<string>,
    { signal }: AskOptions = {},
  ): Promise<void> {
    const encoded = await this.encoder.texts(requests.map(({ context }) => context));
    const prompts = requests.map(({ maxTokens }, i) => {
      const room = this.maxLength - maxTokens;
      if (room < 1)
        throw new UsageError(
          `generating ${maxTokens} tokens leaves no room for a prompt in the model's ${this.maxLength}: give --max-gen-tokens less than that, or a larger --max-length`,
        );
      return (encoded[i] ?? []).slice(-room);
    });
    const lengths = prompts.map((prompt, i) => prompt.length + (requests[i] as GenerateRequest).maxTokens);
    await this.withSequence(lengths, async (sequence) => {
      for (const index of byPrefix(prompts)) {
        if (signal?.aborted) return;
        onReply(index, await this.continueText(sequence, prompts[index] ?? [], requests[index] as GenerateRequest));
      }
    });
  }

  private async continueText(
    sequence: LlamaContextSequence,
    prompt: readonly number[],
    request: GenerateRequest,
  ): Promise<string> {
    const { until, maxTokens, temperature = 0, topP = 1, sample = 0 } = request;
    const rest = await reuseState(sequence, prompt);
    const generated: number[] = [];
    let text = "";
    const greedy = { temperature, yieldEogToken: true as const, seed: sample + 1 };
    const sampling = temperature > 0 ? { ...greedy, topP, topK: 0, minP: 0 } : greedy;
    for await (const token of sequence.evaluate(rest, sampling)) {
      if (this.tokenizer.ends.has(token) || this.model.isEogToken(token)) break;
      generated.push(token);
      text = await this.tokenizer.decode(generated);
      if (generated.length >= maxTokens || until.some((term) => term !== "" && text.includes(term))) break;
    }
    return cutAt(text, this.tokenizer.eos === undefined ? until : [...until, this.tokenizer.eos.text]);
  }

  async logLikelihoods(
    requests: readonly (LogLikelihoodRequest | RollingRequest)[],
    onReply: OnReply<Likelihood>,
    { signal }: AskOptions = {},
  ): Promise<void> {
    const pairs: { readonly owner: number; readonly pair: TokenPair }[] = [];
    for (const [owner, request] of requests.entries()) {
      const encoded =
        request.kind === "rolling"
          ? await this.encoder.windows(request, this.maxLength)
          : await this.encoder.pairs([request]);
      for (const pair of encoded) pairs.push({ owner, pair });
    }
    const inputs = pairs.map(({ pair: { context, continuation } }) =>
      [...context, ...continuation].slice(-(this.maxLength + 1)),
    );
    const sums = requests.map(({ kind }) => ({ logLikelihood: 0, isGreedy: kind === "log-likelihood", pairsLeft: 0 }));
    for (const { owner } of pairs) (sums[owner] as (typeof sums)[number]).pairsLeft++;
    sums.forEach(({ pairsLeft, ...empty }, owner) => {
      if (pairsLeft === 0) onReply(owner, empty);
    });
    const lengths = inputs.map((input) => input.length);
    await this.withSequence(lengths, async (sequence) => {
      for (const index of byPrefix(inputs)) {
        if (signal?.aborted) return;
        const { owner, pair } = pairs[index] as (typeof pairs)[number];
        const { logLikelihood, isGreedy } = await score(sequence, inputs[index] ?? [], pair.continuation.length);
        const sum = sums[owner] as (typeof sums)[number];
        sum.logLikelihood += logLikelihood;
        sum.isGreedy &&= isGreedy;
        if (--sum.pairsLeft === 0) onReply(owner, { logLikelihood: sum.logLikelihood, isGreedy: sum.isGreedy });
      }
    });
  }

  /** Works in a context that is just long enough for sequences of the given lengths. */
  private async withSequence(
    lengths: readonly number[],
    work: (sequence: LlamaContextSequence) => Promise<void>,
  ): Promise<void> {
    const { threads, exact = false } = this.options;
    const cacheType = exact ? ("F32" as const) : undefined;
    const options = defined({
      contextSize: lengths.reduce((a, b) => Math.max(a, b), 1) + SPARE_TOKENS,
      flashAttention: false,
      threads,
      experimentalKvCacheKeyType: cacheType,
      experimentalKvCacheValueType: cacheType,
    });
    const context = await this.model.createContext(options);
    try {
      await work(context.getSequence());
    } finally {
      await context.dispose();
    }
  }

  dispose(): Promise<void> {
    return this.model.dispose();
  }
}

/** Room in a context beyond its longest sequence. */
const SPARE_TOKENS = 8;

/** The order in which neighbors share the longest prefixes, which are then computed only once. */
const byPrefix = (inputs: readonly (readonly number[])[]): number[] =>
  inputs.map((_, i) => i).sort((a, b) => compareIds(inputs[a] ?? [], inputs[b] ?? []));

function compareIds(a: readonly number[], b: readonly number[]): number {
  const different = a.findIndex((id, i) => id !== b[i]);
  const [x, y] = [a[different], b[different]];
  return x === undefined || y === undefined ? a.length - b.length : x - y;
}

/** Keeps the part of the sequence's state that is a prefix of the ids. @returns the other ids, at least one */
async function reuseState(sequence: LlamaContextSequence, ids: readonly number[]): Promise<Token[]> {
  const tokens = ids as Token[];
  await sequence.adaptStateToTokens(tokens.slice(0, -1), false);
  return tokens.slice(sequence.nextTokenIndex);
}

/** The log-likelihood of the last `count` ids after those before them. */
async function score(sequence: LlamaContextSequence, ids: readonly number[], count: number) {
  const first = ids.length - Math.min(count, ids.length - 1); // the first id that is predicted
  const input = ids.slice(0, -1);
  // reuse the state only up to the token that predicts the first id: its logits are needed
  const rest = await reuseState(sequence, input.slice(0, first));
  const from = first - rest.length;
  const sampling = { temperature: 1, topK: 0, topP: 1, minP: 0 }; // leaves the model's logits as they are
  const items = input.slice(from).map((token, i): ControlledEvaluateInputItem => {
    const next = from + i + 1;
    if (next < first) return token as Token;
    const filter = { tokens: [ids[next] as Token], includeTop: 1 }; // includeMax does not return the maximum in 3.22
    return [token as Token, { generateNext: { logits: { filter }, totalLogitWeight: true, options: sampling } }];
  });
  const outputs = await sequence.controlledEvaluate(items);
  let logLikelihood = 0;
  let isGreedy = true;
  for (let place = first; place < ids.length; place++) {
    const { logits, totalLogitWeight } = outputs[place - 1 - from]?.next ?? {};
    const logit = logits?.get(ids[place] as Token) ?? Number.NaN;
    const largest = Math.max(...(logits?.values() ?? []));
    logLikelihood += logit - largest - Math.log(totalLogitWeight ?? Number.NaN); // weights are e^(logit - largest)
    isGreedy &&= logit === largest;
  }
  if (!Number.isFinite(logLikelihood))
    throw new CoppiceError("llama.cpp gives log-likelihoods that are not finite: the model's weights are damaged");
  return { logLikelihood, isGreedy };
}
