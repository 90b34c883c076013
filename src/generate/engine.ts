import { availableParallelism } from "node:os";
import {
  DraftSequenceTokenPredictor,
  LlamaChatSession,
  LlamaCompletion,
  type LlamaContext,
  type LlamaContextSequence,
  type LlamaModel,
  type Token,
} from "node-llama-cpp";
import type { DeviceKind } from "../ggml/index.js";
import { defined } from "../system/defined.js";
import { CoppiceError, UsageError } from "../system/errors.js";
import { logOf } from "../system/log.js";
import { OptionalPredictor } from "./optional-predictor.js";
import { lostBeginning, promptTokens, type SpecialTokens } from "./prompt.js";
import { checkContext, openRunnable } from "./runnable.js";
import { startLlama } from "./start-llama.js";
import { isTooLongToSplit } from "./tokenize.js";

const log = logOf("engine");

export interface EngineOptions {
  readonly device?: DeviceKind | "auto" | undefined;
  readonly threads?: number | undefined;
  /** Tokens of prompt and answer together; by default the model's own limit, but at most 4096. */
  readonly contextSize?: number | undefined;
  /**
   * A smaller GGUF model with the same tokenizer that drafts several tokens ahead, which the model then checks at once. Texts that
   * are drawn with a seed are written without it: what is drawn would depend on what it guesses.
   */
  readonly draft?: string | undefined;
  /** The largest number of tokens that are drafted ahead; 8 by default. */
  readonly draftTokens?: number | undefined;
  /** Called with what the user should know although the model runs. */
  readonly onNote?: ((note: string) => void) | undefined;
}

/** How the next token is chosen. */
export interface SamplingOptions {
  /** 0 always takes the most likely token; 0.8 by default. */
  readonly temperature?: number | undefined;
  readonly topK?: number | undefined;
  readonly topP?: number | undefined;
  readonly minP?: number | undefined;
  /** Divides the odds of recent tokens; 1, the default, changes nothing. */
  readonly repeatPenalty?: number | undefined;
  /** For random numbers: with the same seed a text is the same, with a draft model or without. */
  readonly seed?: number | undefined;
  readonly maxTokens?: number | undefined;
  /** Texts to stop at. */
  readonly stop?: readonly string[] | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Called with each part of the text as it is generated. */
  readonly onText?: ((text: string) => void) | undefined;
}

/** Options for continuing a text. The begin token always comes first: models that have one were trained with it. */
export interface CompletionOptions extends SamplingOptions, Pick<SpecialTokens, "parseSpecial"> {}

export interface GeneratedText {
  readonly text: string;
  readonly tokens: number;
  readonly seconds: number;
  readonly tokensPerSecond: number;
  /** Why it ended: `eogToken` (the model ended it), `maxTokens`, `abort` or `customStopTrigger`. */
  readonly stopReason: string;
  /** With a draft model: how many of its tokens were accepted. */
  readonly draft?: { readonly guessed: number; readonly accepted: number } | undefined;
}

const DEFAULT_CONTEXT = 4096;
const DEFAULT_TEMPERATURE = 0.8;
const DEFAULT_DRAFT_TOKENS = 8;

/** A draft model, and whether it may guess in the text that is being written. */
interface Draft {
  readonly model: LlamaModel;
  mayGuess: boolean;
}

/** A GGUF model, loaded in llama.cpp through node-llama-cpp. */
export class Engine {
  private constructor(
    private readonly model: LlamaModel,
    private readonly sequence: LlamaContextSequence,
    private readonly draft: Draft | undefined,
  ) {}

  /** @throws FormatError when the file is invalid, CoppiceError when llama.cpp cannot run it */
  static async open(file: string, options: EngineOptions = {}): Promise<Engine> {
    const target = await openRunnable(file);
    const draftTarget = options.draft === undefined ? undefined : await openRunnable(options.draft);
    const files = draftTarget === undefined ? [target] : [target, draftTarget];
    const limits = files.map(({ contextLength }) => contextLength || DEFAULT_CONTEXT);
    const contextSize = options.contextSize ?? Math.min(DEFAULT_CONTEXT, ...limits);
    for (const file of files) checkContext(file, contextSize, options.onNote);
    const model = await loadModel(target.file, options);
    let draft: Draft | undefined;
    try {
      if (draftTarget !== undefined) draft = { model: await loadModel(draftTarget.file, options), mayGuess: true };
      if (draft !== undefined) checkSameTokens(model, draft.model);
      const threads = options.threads ?? (await fastestThreads(model));
      const contextOf = (of: LlamaModel) => of.createContext(defined({ contextSize, threads }));
      const tokenPredictor = draft && predictorOf(draft, await contextOf(draft.model), options.draftTokens);
      const context = await contextOf(model);
      return new Engine(model, context.getSequence(defined({ tokenPredictor })), draft);
    } catch (error) {
      await model.dispose();
      await draft?.model.dispose();
      throw cannotRun(file, error);
    }
  }

  /** Continues a text. @throws UsageError when the prompt does not fit in the context */
  async complete(prompt: string, options: CompletionOptions = {}): Promise<GeneratedText> {
    const tokens = promptTokens(this.model, prompt, options);
    if (tokens.length >= this.sequence.contextSize)
      throw new UsageError(
        `the prompt has ${tokens.length} tokens, the context ${this.sequence.contextSize}: shorten it, or raise --context-size`,
      );
    const completion = new LlamaCompletion({ contextSequence: this.sequence, autoDisposeSequence: false });
    const { bos, shouldPrependBosToken } = this.model.tokens;
    const input = shouldPrependBosToken && tokens[0] === bos ? tokens.slice(1) : tokens; // LlamaCompletion prepends it again
    return this.timed(options, async (sampling) => {
      let beginning = "";
      let [isFirstToken, isFirstChunk] = [true, true];
      const { response, metadata } = await completion.generateCompletionWithMeta(input, {
        ...sampling,
        onToken: (generated) => {
          if (isFirstToken && generated[0] !== undefined) beginning = lostBeginning(this.model, tokens, generated[0]);
          isFirstToken = false;
          sampling.onToken(generated);
        },
        onTextChunk: (text) => {
          options.onText?.(isFirstChunk ? beginning + text : text);
          isFirstChunk = false;
        },
      });
      return { response: response === "" ? "" : beginning + response, metadata };
    });
  }

  /** A conversation in the model's own chat format. Its turns share one history. */
  chat(systemPrompt?: string): Chat {
    const contextSequence = this.sequence;
    const session = new LlamaChatSession(defined({ contextSequence, autoDisposeSequence: false, systemPrompt }));
    // the library would put a prompt of its own in the place of none
    const begin = () => (systemPrompt === undefined ? session.setChatHistory([]) : session.resetChatHistory());
    begin();
    return {
      say: async (text, options = {}) => {
        // the library's session gives it to llama.cpp as a whole
        if (isTooLongToSplit(this.model, text))
          throw new UsageError("this model cannot read so long a word: put a space at least every 2000 characters");
        return this.timed(options, async (sampling) => {
          const { responseText, stopReason } = await session.promptWithMeta(text, sampling as never);
          return { response: responseText, metadata: { stopReason } };
        });
      },
      reset: begin,
    };
  }

  private async timed(
    options: SamplingOptions,
    run: (
      sampling: ReturnType<typeof samplingOf>,
    ) => Promise<{ readonly response: string; readonly metadata: { readonly stopReason: string } }>,
  ): Promise<GeneratedText> {
    let tokens = 0;
    const { draft } = this;
    if (draft !== undefined) draft.mayGuess = options.seed === undefined || options.temperature === 0;
    const before = this.sequence.tokenPredictions;
    const started = performance.now();
    const { response, metadata } = await run(samplingOf(options, (count) => (tokens += count)));
    const seconds = (performance.now() - started) / 1000;
    const after = this.sequence.tokenPredictions;
    const accepted = after.validated - before.validated;
    const guessed = accepted + after.refuted - before.refuted;
    return {
      text: response,
      tokens,
      seconds,
      tokensPerSecond: tokens / seconds,
      stopReason: metadata.stopReason,
      draft: draft && { guessed, accepted },
    };
  }

  /** How fast the model reads a prompt and generates here, in tokens per second. */
  async speed(
    promptTokens: number,
    generatedTokens: number,
  ): Promise<{ readonly prompt: number; readonly generation: number }> {
    const limit = Math.max(1, this.sequence.contextSize - generatedTokens - 1);
    const count = Math.min(promptTokens, limit);
    const filler = this.model.tokens.bos ?? (0 as Token);
    await this.sequence.clearHistory();
    const prompt = Array.from({ length: count }, () => filler);
    const promptStart = performance.now();
    await this.sequence.evaluateWithoutGeneratingNewTokens(prompt);
    const generationStart = performance.now();
    let generated = 0;
    for await (const _ of this.sequence.evaluate([filler], { temperature: 0, yieldEogToken: true })) {
      generated++;
      if (generated === generatedTokens) break;
    }
    const end = performance.now();
    await this.sequence.clearHistory();
    return {
      prompt: (1000 * count) / (generationStart - promptStart),
      generation: (1000 * generated) / (end - generationStart),
    };
  }

  async dispose(): Promise<void> {
    await this.model.dispose();
    await this.draft?.model.dispose();
  }
}

const predictorOf = (draft: Draft, context: LlamaContext, draftTokens = DEFAULT_DRAFT_TOKENS): OptionalPredictor =>
  new OptionalPredictor(
    new DraftSequenceTokenPredictor(context.getSequence(), {
      minTokens: 1, // wait for a draft, even if the draft model is no faster than the model
      maxTokens: draftTokens,
    }),
    () => draft.mayGuess,
  );

/** A conversation. */
export interface Chat {
  say(text: string, options?: SamplingOptions): Promise<GeneratedText>;
  /** Forgets the conversation so far. */
  reset(): void;
}

/** Loads a model in llama.cpp. @throws CoppiceError when llama.cpp cannot be started or cannot run the model */
export async function loadModel(
  file: string,
  { device = "auto", threads }: Pick<EngineOptions, "device" | "threads">,
): Promise<LlamaModel> {
  const llama = await startLlama(device, threads);
  try {
    log.debug("llama.cpp loads a model", { file, device: String(llama.gpu || "cpu"), threads: llama.maxThreads });
    const gpuLayers = device === "cpu" ? 0 : undefined; // the build may contain a GPU's backend
    return await llama.loadModel(defined({ modelPath: file, checkTensors: true, gpuLayers }));
  } catch (error) {
    throw cannotRun(file, error);
  }
}

/** Larger models benefit from every core, and trying them would take long. */
const TRIED_BYTES = 1 << 30;
const TRIED_TOKENS = 4;

/**
 * The number of threads that generates fastest on this processor: with a small model, starting and joining threads can cost more
 * than they save. Undefined leaves the choice to llama.cpp.
 */
export async function fastestThreads(model: LlamaModel): Promise<number | undefined> {
  const cores = availableParallelism();
  if (cores === 1 || model.size > TRIED_BYTES || model.gpuLayers > 0) return undefined;
  const timings: { readonly threads: number; readonly milliseconds: number }[] = [];
  for (const threads of new Set([1, Math.ceil(cores / 2), cores])) {
    const context = await model.createContext({ contextSize: 64, threads });
    const tokens = context
      .getSequence()
      .evaluate([model.tokens.bos ?? (0 as Token)], { temperature: 0, yieldEogToken: true });
    await tokens.next(); // warms up
    const started = performance.now();
    for (let i = 0; i < TRIED_TOKENS; i++) await tokens.next();
    timings.push({ threads, milliseconds: performance.now() - started });
    await tokens.return();
    await context.dispose();
  }
  return timings.sort((a, b) => a.milliseconds - b.milliseconds)[0]?.threads;
}

const cannotRun = (file: string, error: unknown): Error =>
  error instanceof CoppiceError
    ? error
    : new CoppiceError(`llama.cpp cannot run ${file} (${error instanceof Error ? error.message : error})`);

/** @throws UsageError when a draft model has another tokenizer, so that its tokens would mean nothing to the model */
export function checkSameTokens(model: LlamaModel, draft: LlamaModel): void {
  const sample = "The same text, 123 — même texte.";
  if (model.tokenize(sample).join() !== draft.tokenize(sample).join())
    throw new UsageError("the draft model has another tokenizer: choose one with the model's own");
}

/** node-llama-cpp's options for sampling. @param count called with the number of tokens that were generated */
function samplingOf(options: SamplingOptions, count: (tokens: number) => void) {
  const {
    temperature = DEFAULT_TEMPERATURE,
    topK,
    topP,
    minP,
    repeatPenalty = 1,
    seed,
    maxTokens,
    stop = [],
  } = options;
  return defined({
    temperature,
    topK,
    topP,
    minP,
    seed,
    maxTokens,
    repeatPenalty: repeatPenalty === 1 ? (false as const) : { penalty: repeatPenalty },
    customStopTriggers: stop.length > 0 ? [...stop] : undefined,
    signal: options.signal,
    stopOnAbortSignal: true,
    onTextChunk: options.onText,
    onToken: (tokens: readonly Token[]) => count(tokens.length),
  });
}
