import { availableParallelism } from "node:os";
import {
  DraftSequenceTokenPredictor,
  getLlama,
  type Llama,
  LlamaChatSession,
  LlamaCompletion,
  type LlamaContextSequence,
  LlamaLogLevel,
  type LlamaModel,
  type Token,
} from "node-llama-cpp";
import { type DeviceKind, keepThreads } from "../ggml/index.js";
import { CoppiceError, UsageError } from "../system/errors.js";
import { logOf } from "../system/log.js";
import { lostBeginning, promptTokens, type SpecialTokens } from "./prompt.js";
import { checkContext, openRunnable } from "./runnable.js";

const log = logOf("engine");

export interface EngineOptions {
  readonly device?: DeviceKind | "auto" | undefined;
  readonly threads?: number | undefined;
  /** Tokens of prompt and answer together; the model's own limit, 4096 at most, by default. */
  readonly contextSize?: number | undefined;
  /** A smaller GGUF model of the same tokenizer that guesses several tokens ahead, which the model then checks at once. */
  readonly draft?: string | undefined;
  /** Tokens guessed ahead at most; 8 by default. */
  readonly draftTokens?: number | undefined;
}

/** How the next token is chosen. */
export interface SamplingOptions {
  /** 0 takes the likeliest always; 0.8 by default. */
  readonly temperature?: number | undefined;
  readonly topK?: number | undefined;
  readonly topP?: number | undefined;
  readonly minP?: number | undefined;
  /** Divides the odds of what came lately; 1 for none, the default. */
  readonly repeatPenalty?: number | undefined;
  readonly seed?: number | undefined;
  readonly maxTokens?: number | undefined;
  /** Texts to stop at. */
  readonly stop?: readonly string[] | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Called with each piece of text as it comes. */
  readonly onText?: ((text: string) => void) | undefined;
}

/** Options for continuing a text. The begin token is always put there: the models that have one were taught with it. */
export interface CompletionOptions extends SamplingOptions, Pick<SpecialTokens, "parseSpecial"> {}

export interface Generation {
  readonly text: string;
  readonly tokens: number;
  readonly seconds: number;
  readonly tokensPerSecond: number;
  /** Why it ended: `eogToken` (the model's end), `maxTokens`, `abort`, `customStopTrigger`. */
  readonly stopReason: string;
  /** With a draft: how many of its guesses were right. */
  readonly draft?: { readonly guessed: number; readonly accepted: number } | undefined;
}

const DEFAULT_CONTEXT = 4096;
const DEFAULT_TEMPERATURE = 0.8;
const DEFAULT_DRAFT_TOKENS = 8;

/** A GGUF model that is ready to write. llama.cpp through node-llama-cpp. */
export class Engine {
  private constructor(
    private readonly model: LlamaModel,
    private readonly sequence: LlamaContextSequence,
    private readonly draftModel: LlamaModel | undefined,
  ) {}

  /** @throws FormatError when the file is not what it claims, CoppiceError when llama.cpp cannot run it */
  static async open(file: string, options: EngineOptions = {}): Promise<Engine> {
    const target = await openRunnable(file);
    const draft = options.draft === undefined ? undefined : await openRunnable(options.draft);
    const both = draft === undefined ? [target] : [target, draft];
    const limits = both.map((of) => of.contextLength || DEFAULT_CONTEXT);
    const contextSize = options.contextSize ?? Math.min(DEFAULT_CONTEXT, ...limits);
    for (const of of both) checkContext(of, contextSize);
    const model = await loadModel(target.file, options);
    let draftModel: LlamaModel | undefined;
    try {
      if (draft !== undefined) draftModel = await loadModel(draft.file, options);
      if (draftModel !== undefined) checkSameTokens(model, draftModel);
      const threads = options.threads ?? (await fastestThreads(model));
      const sequenceOf = async (of: LlamaModel) => of.createContext({ contextSize, ...(threads && { threads }) });
      const predictor =
        draftModel &&
        new DraftSequenceTokenPredictor((await sequenceOf(draftModel)).getSequence(), {
          minTokens: 1, // waits for a guess, where the draft is no faster than the model
          maxTokens: options.draftTokens ?? DEFAULT_DRAFT_TOKENS,
        });
      const context = await sequenceOf(model);
      return new Engine(model, context.getSequence(predictor && { tokenPredictor: predictor }), draftModel);
    } catch (error) {
      await model.dispose();
      await draftModel?.dispose();
      throw explained(file, error);
    }
  }

  /** Continues a text. @throws UsageError when it does not fit in the context */
  async complete(prompt: string, options: CompletionOptions = {}): Promise<Generation> {
    const tokens = promptTokens(this.model, prompt, options);
    if (tokens.length >= this.sequence.contextSize)
      throw new UsageError(
        `the prompt has ${tokens.length} tokens, the context ${this.sequence.contextSize}: shorten it, or raise --context-size`,
      );
    const completion = new LlamaCompletion({ contextSequence: this.sequence, autoDisposeSequence: false });
    const { bos, shouldPrependBosToken: begins } = this.model.tokens;
    const given = begins && tokens[0] === bos ? tokens.slice(1) : tokens; // it is put there again
    return this.timed(options, async (sampling) => {
      let beginning = "";
      let [begun, shown] = [false, false];
      const { response, metadata } = await completion.generateCompletionWithMeta(given, {
        ...sampling,
        onToken: (written) => {
          if (!begun && written[0] !== undefined) beginning = lostBeginning(this.model, tokens, written[0]);
          begun = true;
          sampling.onToken(written);
        },
        onTextChunk: (text) => {
          options.onText?.(shown ? text : beginning + text);
          shown = true;
        },
      });
      return { response: response === "" ? "" : beginning + response, metadata };
    });
  }

  /** A conversation, in the form that the model was taught. Its turns share one history. */
  chat(systemPrompt?: string): Chat {
    const session = new LlamaChatSession({
      contextSequence: this.sequence,
      autoDisposeSequence: false,
      ...(systemPrompt !== undefined && { systemPrompt }),
    });
    return {
      say: (text, options = {}) =>
        this.timed(options, async (sampling) => {
          const { responseText, stopReason } = await session.promptWithMeta(text, sampling as never);
          return { response: responseText, metadata: { stopReason } };
        }),
      reset: () => session.resetChatHistory(),
    };
  }

  private async timed(
    options: SamplingOptions,
    run: (
      sampling: ReturnType<typeof samplingOf>,
    ) => Promise<{ readonly response: string; readonly metadata: { readonly stopReason: string } }>,
  ): Promise<Generation> {
    let tokens = 0;
    const before = this.sequence.tokenPredictions;
    const started = performance.now();
    const { response, metadata } = await run(samplingOf(options, (count) => (tokens += count)));
    const seconds = (performance.now() - started) / 1000;
    const after = this.sequence.tokenPredictions;
    const accepted = after.validated - before.validated;
    return {
      text: response,
      ...{ tokens, seconds, tokensPerSecond: tokens / seconds, stopReason: metadata.stopReason },
      ...(this.draftModel && { draft: { guessed: accepted + after.refuted - before.refuted, accepted } }),
    };
  }

  /** How fast the model reads and writes here, in tokens per second. */
  async speed(
    promptTokens: number,
    generatedTokens: number,
  ): Promise<{ readonly prompt: number; readonly generation: number }> {
    const limit = Math.max(1, this.sequence.contextSize - generatedTokens - 1);
    const count = Math.min(promptTokens, limit);
    const filler = this.model.tokens.bos ?? (0 as Token);
    await this.sequence.clearHistory();
    const prompt = Array.from({ length: count }, () => filler);
    const reading = performance.now();
    await this.sequence.evaluateWithoutGeneratingNewTokens(prompt);
    const writing = performance.now();
    let written = 0;
    for await (const _ of this.sequence.evaluate([filler], { temperature: 0, yieldEogToken: true })) {
      written++;
      if (written === generatedTokens) break;
    }
    const end = performance.now();
    await this.sequence.clearHistory();
    return { prompt: (1000 * count) / (writing - reading), generation: (1000 * written) / (end - writing) };
  }

  async dispose(): Promise<void> {
    await this.model.dispose();
    await this.draftModel?.dispose();
  }
}

/** A conversation. */
export interface Chat {
  say(text: string, options?: SamplingOptions): Promise<Generation>;
  /** Forgets all that was said. */
  reset(): void;
}

const instances = new Map<string, Promise<Llama>>();

/** llama.cpp on a device, started once: each start holds on to the process. */
function started(device: DeviceKind | "auto", threads: number | undefined): Promise<Llama> {
  const key = `${device} ${threads}`;
  const known = instances.get(key);
  if (known !== undefined) return known;
  const llama = getLlama({
    ...{ gpu: device === "cpu" ? false : device, build: "never", logLevel: LlamaLogLevel.error },
    ...{ progressLogs: false, skipDownload: true },
    ...(threads !== undefined && { maxThreads: threads }),
  });
  const ready = llama.then((instance) => {
    keepThreads();
    return instance;
  });
  instances.set(key, ready);
  ready.catch(() => instances.delete(key));
  return ready;
}

/** Loads a model in llama.cpp. @throws CoppiceError when it cannot be run */
export async function loadModel(
  file: string,
  { device = "auto", threads }: Pick<EngineOptions, "device" | "threads">,
): Promise<LlamaModel> {
  const llama = await started(device, threads).catch((error: unknown) => {
    const reason = error instanceof Error ? error.message : error;
    throw new CoppiceError(`llama.cpp cannot be started on ${device} (${reason})`);
  });
  try {
    log.debug("llama.cpp loads a model", { file, device: String(llama.gpu || "cpu"), threads: llama.maxThreads });
    return await llama.loadModel({ modelPath: file, checkTensors: true });
  } catch (error) {
    throw explained(file, error);
  }
}

/** Larger models gain from every core; trying takes long only for them. */
const TRIED_BYTES = 1 << 30;
const TRIED_TOKENS = 4;

/**
 * The number of threads that writes fastest on this processor: for a small model, starting and joining threads can cost more than
 * they save. Undefined leaves the choice to llama.cpp.
 */
export async function fastestThreads(model: LlamaModel): Promise<number | undefined> {
  const cores = availableParallelism();
  if (cores === 1 || model.size > TRIED_BYTES || model.gpuLayers > 0) return undefined;
  const timed: { readonly threads: number; readonly milliseconds: number }[] = [];
  for (const threads of new Set([1, Math.ceil(cores / 2), cores])) {
    const context = await model.createContext({ contextSize: 64, threads });
    const tokens = context
      .getSequence()
      .evaluate([model.tokens.bos ?? (0 as Token)], { temperature: 0, yieldEogToken: true });
    await tokens.next(); // the first one also warms up
    const started = performance.now();
    for (let i = 0; i < TRIED_TOKENS; i++) await tokens.next();
    timed.push({ threads, milliseconds: performance.now() - started });
    await tokens.return();
    await context.dispose();
  }
  return timed.sort((a, b) => a.milliseconds - b.milliseconds)[0]?.threads;
}

const explained = (file: string, error: unknown): Error =>
  error instanceof CoppiceError
    ? error
    : new CoppiceError(`llama.cpp cannot run ${file} (${error instanceof Error ? error.message : error})`);

/** A draft's guesses mean nothing in another vocabulary. */
export function checkSameTokens(model: LlamaModel, draft: LlamaModel): void {
  const sample = "The same text, 123 — même texte.";
  const [ours, theirs] = [model, draft].map((of) => of.tokenize(sample).join());
  if (ours !== theirs) throw new UsageError("the draft model has another tokenizer: it cannot guess for this one");
}

function samplingOf(options: SamplingOptions, count: (tokens: number) => void) {
  const {
    temperature = DEFAULT_TEMPERATURE,
    topK,
    topP,
    minP,
    repeatPenalty,
    seed,
    maxTokens,
    stop,
    signal,
    onText,
  } = options;
  return {
    temperature,
    ...(topK !== undefined && { topK }),
    ...(topP !== undefined && { topP }),
    ...(minP !== undefined && { minP }),
    ...(seed !== undefined && { seed }),
    ...(maxTokens !== undefined && { maxTokens }),
    repeatPenalty: repeatPenalty === undefined || repeatPenalty === 1 ? (false as const) : { penalty: repeatPenalty },
    ...(stop !== undefined && stop.length > 0 && { customStopTriggers: [...stop] }),
    ...(signal && { signal, stopOnAbortSignal: true }),
    ...(onText && { onTextChunk: onText }),
    onToken: (tokens: readonly Token[]) => count(tokens.length),
  };
}
