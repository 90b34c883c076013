import type {
  ControlledEvaluateInputItem,
  LlamaContext,
  LlamaContextSequence,
  LlamaModel,
  Token,
} from "node-llama-cpp";
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
import { CoppiceError, UsageError } from "../system/errors.js";
import { type EngineOptions, fastestThreads, loadModel } from "./engine.js";
import { OwnTokenizer } from "./own-tokenizer.js";
import { checkContext, openRunnable } from "./runnable.js";

export interface LlamaCppOptions extends Pick<EngineOptions, "device" | "threads"> {
  /** Longest sequence; prompts lose their beginning to fit. The model's own limit by default. */
  readonly maxLength?: number | undefined;
  /** Keys and values in f32 rather than f16: what is written is then what exact arithmetic would write. */
  readonly exact?: boolean | undefined;
}

const DEFAULT_LENGTH = 2048;

/** Benchmarks on llama.cpp: token ids go in as the benchmark's own tokenizer makes them, and come out. */
export class LlamaCppModel implements GenerationModel, LikelihoodModel {
  private readonly encoder: RequestEncoder;

  private constructor(
    private readonly model: LlamaModel,
    private readonly tokenizer: TextTokenizer,
    private readonly maxLength: number,
    private readonly threads: number | undefined,
    private readonly exact: boolean,
  ) {
    this.encoder = RequestEncoder.of(tokenizer);
  }

  /**
   * @param tokenizer the benchmark's; the model's own in llama.cpp where undefined
   * @throws FormatError when the file is not what it claims, CoppiceError when llama.cpp cannot run it
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
    return new LlamaCppModel(model, tokenizer ?? new OwnTokenizer(model), length, threads, options.exact ?? false);
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
          `${maxTokens} tokens are to be written, the model reads ${this.maxLength} in all: give --max-gen-tokens less, or --max-length more`,
        );
      return (encoded[i] ?? []).slice(-room);
    });
    const longest = requests.reduce(
      (most, { maxTokens }, i) => Math.max(most, (prompts[i]?.length ?? 0) + maxTokens),
      1,
    );
    await this.withSequence(longest, async (sequence) => {
      for (const index of inOrder(prompts)) {
        if (signal?.aborted) return;
        onReply(index, await this.write(sequence, prompts[index] ?? [], requests[index] as GenerateRequest));
      }
    });
  }

  private async write(sequence: LlamaContextSequence, prompt: number[], request: GenerateRequest): Promise<string> {
    const { until, maxTokens, temperature = 0, topP, sample = 0 } = request;
    const rest = await continueFrom(sequence, prompt);
    const written: number[] = [];
    let text = "";
    const tokens = sequence.evaluate(rest, {
      ...{ temperature, yieldEogToken: true as const, seed: sample + 1 },
      ...(temperature > 0 && { topP: topP ?? 1, topK: 0, minP: 0 }),
    });
    for await (const token of tokens) {
      if (token === this.tokenizer.eos?.id) break;
      written.push(token);
      text = await this.tokenizer.decode(written);
      if (written.length >= maxTokens || until.some((term) => term !== "" && text.includes(term))) break;
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
      const own =
        request.kind === "rolling"
          ? await this.encoder.windows(request, this.maxLength)
          : await this.encoder.pairs([request]);
      for (const pair of own) pairs.push({ owner, pair });
    }
    const inputs = pairs.map(({ pair: { context, continuation } }) =>
      [...context, ...continuation].slice(-(this.maxLength + 1)),
    );
    const sums = requests.map(({ kind }) => ({ logLikelihood: 0, isGreedy: kind === "log-likelihood", left: 0 }));
    for (const { owner } of pairs) (sums[owner] as { left: number }).left++;
    sums.forEach(({ left, ...nothing }, owner) => {
      if (left === 0) onReply(owner, nothing);
    });
    const longest = inputs.reduce((most, input) => Math.max(most, input.length), 1);
    await this.withSequence(longest, async (sequence) => {
      for (const index of inOrder(inputs)) {
        if (signal?.aborted) return;
        const { owner, pair } = pairs[index] as (typeof pairs)[number];
        const { logLikelihood, isGreedy } = await score(sequence, inputs[index] ?? [], pair.continuation.length);
        const sum = sums[owner] as (typeof sums)[number];
        sum.logLikelihood += logLikelihood;
        sum.isGreedy &&= isGreedy;
        if (--sum.left === 0) onReply(owner, { logLikelihood: sum.logLikelihood, isGreedy: sum.isGreedy });
      }
    });
  }

  /** A context that is just as long as needed. */
  private async withSequence(length: number, work: (sequence: LlamaContextSequence) => Promise<void>): Promise<void> {
    const context: LlamaContext = await this.model.createContext({
      ...{ contextSize: length + 8, flashAttention: false },
      ...(this.threads !== undefined && { threads: this.threads }),
      ...(this.exact && { experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32" }),
    });
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

/** Neighbours share as much of their beginning as can be, which is then computed once. */
const inOrder = (inputs: readonly (readonly number[])[]): number[] =>
  inputs.map((_, i) => i).sort((a, b) => compareIds(inputs[a] ?? [], inputs[b] ?? []));

function compareIds(a: readonly number[], b: readonly number[]): number {
  for (let i = 0; i < Math.min(a.length, b.length); i++) if (a[i] !== b[i]) return (a[i] ?? 0) - (b[i] ?? 0);
  return a.length - b.length;
}

/** Keeps what the sequence's state has in common with the ids. @returns the others, one at least */
async function continueFrom(sequence: LlamaContextSequence, ids: readonly number[]): Promise<Token[]> {
  const tokens = ids as Token[];
  await sequence.adaptStateToTokens(tokens.slice(0, -1), false);
  return tokens.slice(sequence.nextTokenIndex);
}

/** Log-likelihood of the last `count` ids, given those before them. */
async function score(sequence: LlamaContextSequence, ids: readonly number[], count: number) {
  const first = ids.length - Math.min(count, ids.length - 1); // the first id that is predicted
  const input = ids.slice(0, -1);
  // the state is kept up to before the first token whose successor is wanted
  const rest = await continueFrom(sequence, input.slice(0, first));
  const from = first - rest.length;
  const sampling = { temperature: 1, topK: 0, topP: 1, minP: 0 }; // none: the model's own logits
  const all = input.slice(from).map((token, i): ControlledEvaluateInputItem => {
    const next = from + i + 1;
    if (next < first) return token as Token;
    const filter = { tokens: [ids[next] as Token], includeTop: 1 }; // 3.22 gives no maximum by includeMax
    return [token as Token, { generateNext: { logits: { filter }, totalLogitWeight: true, options: sampling } }];
  });
  const outputs = await sequence.controlledEvaluate(all);
  let logLikelihood = 0;
  let isGreedy = true;
  for (let place = first; place < ids.length; place++) {
    const { logits, totalLogitWeight } = outputs[place - 1 - from]?.next ?? {};
    const own = logits?.get(ids[place] as Token) ?? Number.NaN;
    const most = Math.max(...(logits?.values() ?? []));
    logLikelihood += own - most - Math.log(totalLogitWeight ?? Number.NaN); // the weights are e^(logit - most)
    isGreedy &&= own === most;
  }
  if (!Number.isFinite(logLikelihood))
    throw new CoppiceError("llama.cpp gives log-likelihoods that are not finite: the model's weights are damaged");
  return { logLikelihood, isGreedy };
}
