import { z } from "zod";
import { elementAt } from "../system/arrays.js";
import { CoppiceError, FormatError } from "../system/errors.js";
import { trimEnd } from "./python-text.js";
import {
  type AskOptions,
  cutAt,
  type GenerateRequest,
  type GenerationModel,
  type Likelihood,
  type LikelihoodModel,
  type LogLikelihoodRequest,
  type OnReply,
  type Reply,
  type Request,
  type RollingRequest,
} from "./requests.js";

export interface ServerOptions {
  /** The model's name on the server; the first that it lists by default. */
  readonly model?: string | undefined;
  /** OPENAI_API_KEY by default. */
  readonly apiKey?: string | undefined;
  /** How many requests are sent at once; 8 by default. */
  readonly concurrency?: number | undefined;
}

const CONCURRENCY = 8;
const ATTEMPTS = 4;
const TIMEOUT_MS = 600_000;
/** The API allows four stop sequences. */
const MOST_STOPS = 4;

const modelsSchema = z.object({ data: z.tuple([z.object({ id: z.string() })], z.unknown()) });
const choiceSchema = z.object({
  text: z.string(),
  logprobs: z
    .object({
      token_logprobs: z.array(z.number().nullable()),
      text_offset: z.array(z.number()).optional(),
      tokens: z.array(z.string()).nullish(),
      top_logprobs: z.array(z.record(z.string(), z.number()).nullable()).nullish(),
    })
    .nullish(),
});
const completionSchema = z.object({ choices: z.tuple([choiceSchema], z.unknown()) });
type Completion = z.infer<typeof choiceSchema>;

/**
 * Which tokens make up the end of the prompt, from character `first` on: [from, to). By the tokens' texts, not by the offsets that servers
 * give: beside parts of characters vLLM's are wrong, in a way of its own in each release.
 * @param firstHasNone whether the first token has no log-probability, because nothing is before it
 * @returns undefined where it cannot be told
 */
function tokensFrom(prompt: string, first: number, tokens: readonly string[], firstHasNone: boolean) {
  const [begin = ""] = tokens;
  // vLLM puts a begin token before the prompt, with a text, which other servers leave out
  const skipped = begin !== "" && firstHasNone && !prompt.startsWith(begin) ? 1 : 0;
  const wanted = prompt.slice(first);
  // behind the prompt comes the token that was generated, if any
  for (const to of [tokens.length - 1, tokens.length]) {
    if (ascii(tokens.slice(skipped, to).join("")) !== ascii(prompt)) continue;
    if (first === 0) return { from: skipped, to };
    let [text, from] = ["", to];
    while (from > skipped && text.length < wanted.length) text = tokens[--from] + text;
    if (!text.endsWith(wanted)) continue;
    if (text !== wanted) return { from: from + 1, to }; // a token that begins before is not counted
    // of a character's parts a server may show the whole with the last, and nothing with the others
    const mayHaveParts = /[^\0-\x7f]/.test(tokens[from] ?? "");
    while (mayHaveParts && from > skipped && tokens[from - 1] === "") from--;
    return { from, to };
  }
  return undefined;
}

/** A text without what tokens may be parts of. */
const ascii = (text: string): string => text.replace(/[^\0-\x7f]/g, "");

/**
 * A model on any server with OpenAI's completions API. Likelihoods need one that returns the prompt with log-probabilities
 * (`echo` and `logprobs`: vLLM, llama-cpp-python and others do; OpenAI's own and chat-only servers do not).
 */
export class CompletionServer implements LikelihoodModel, GenerationModel {
  private constructor(
    private readonly url: string,
    readonly model: string,
    private readonly options: ServerOptions,
  ) {}

  /** @param url including the version: http://localhost:8000/v1 @throws CoppiceError when nothing answers there */
  static async connect(url: string, options: ServerOptions = {}): Promise<CompletionServer> {
    const base = url.replace(/\/+$/, "");
    if (options.model !== undefined) return new CompletionServer(base, options.model, options);
    const listed = await fetchJson(`${base}/models`, { headers: headersOf(options) }, 1);
    const models = modelsSchema.safeParse(listed);
    if (!models.success) throw new FormatError(`${base}/models does not list models; name one: ${base}#NAME`);
    return new CompletionServer(base, models.data.data[0].id, options);
  }

  logLikelihoods(
    requests: readonly (LogLikelihoodRequest | RollingRequest)[],
    onReply: OnReply<Likelihood>,
    options: AskOptions = {},
  ): Promise<void> {
    return this.all(requests, onReply, options, (request, signal) => this.likelihood(request, signal));
  }

  generate(requests: readonly GenerateRequest[], onReply: OnReply<string>, options: AskOptions = {}): Promise<void> {
    return this.all(requests, onReply, options, async (request, signal) => {
      const { context, until, maxTokens, temperature, topP, sample } = request;
      const body = {
        prompt: context,
        max_tokens: maxTokens,
        temperature: temperature ?? 0,
        stop: until.length > 0 ? until.slice(0, MOST_STOPS) : undefined,
        top_p: topP,
        seed: sample,
      };
      const { text } = await this.complete(body, signal);
      return cutAt(text, until);
    });
  }

  /** Sends several requests at once, started in order. When one fails, no more are sent, and no answers are waited for. */
  private async all<Q extends Request, A extends Reply>(
    requests: readonly Q[],
    onReply: OnReply<A>,
    { signal }: AskOptions,
    answer: (request: Q, stop: AbortSignal) => Promise<A>,
  ): Promise<void> {
    let next = 0;
    const failed = new AbortController();
    const worker = async () => {
      try {
        while (next < requests.length && !signal?.aborted && !failed.signal.aborted) {
          const index = next++;
          onReply(index, await answer(elementAt(requests, index), failed.signal));
        }
      } catch (error) {
        failed.abort(error);
        throw error;
      }
    };
    await Promise.all(Array.from({ length: this.options.concurrency ?? CONCURRENCY }, worker));
  }

  private async likelihood(request: LogLikelihoodRequest | RollingRequest, stop: AbortSignal): Promise<Likelihood> {
    const context = request.kind === "rolling" ? "" : trimEnd(request.context);
    const prompt = request.kind === "rolling" ? request.text : request.context + request.continuation;
    const body = { prompt, max_tokens: 1, temperature: 0, echo: true, logprobs: 1 };
    const { logprobs } = await this.complete(body, stop);
    const { tokens, text_offset: offsets = [0] } = logprobs ?? {};
    if (logprobs === null || logprobs === undefined || tokens === null || tokens === undefined || offsets[0] !== 0)
      throw new CoppiceError(
        `${this.url} does not return log-probabilities of the prompt (echo with logprobs), which this benchmark needs; tasks that generate text do work: gsm8k, xlsum_english, mbpp, humaneval`,
      );
    let logLikelihood = 0;
    let isGreedy: boolean | undefined = request.kind === "log-likelihood";
    const counted = tokensFrom(prompt, context.length, tokens, logprobs.token_logprobs[0] === null);
    if (counted === undefined)
      throw new CoppiceError(
        `${this.url} splits the prompt into tokens that do not make it up, so that their log-probabilities cannot be told apart; tasks that generate text do work: gsm8k, xlsum_english, mbpp, humaneval`,
      );
    for (let i = counted.from; i < counted.to; i++) {
      const own = logprobs.token_logprobs[i];
      if (own === null || own === undefined) continue; // nothing is before the first token
      logLikelihood += own;
      const best = Object.values(logprobs.top_logprobs?.[i] ?? {});
      if (best.length === 0) isGreedy = isGreedy === false ? false : undefined;
      else isGreedy &&= best.every((other) => other <= own);
    }
    return { logLikelihood, isGreedy };
  }

  private async complete(body: Readonly<Record<string, unknown>>, stop: AbortSignal): Promise<Completion> {
    const response = await fetchJson(`${this.url}/completions`, {
      method: "POST",
      headers: { ...headersOf(this.options), "content-type": "application/json" },
      body: JSON.stringify({ model: this.model, ...body }),
      signal: stop,
    });
    const parsed = completionSchema.safeParse(response);
    if (!parsed.success)
      throw new FormatError(
        `${this.url}/completions answered in an unexpected form: ${parsed.error.issues[0]?.message}`,
      );
    return parsed.data.choices[0];
  }
}

const headersOf = ({ apiKey = process.env.OPENAI_API_KEY }: ServerOptions): Record<string, string> =>
  apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` };

/** Fetches JSON, and tries again when the server is busy or cannot be reached. */
async function fetchJson(url: string, init: RequestInit, attempts = ATTEMPTS): Promise<unknown> {
  for (let attempt = 1; ; attempt++) {
    let problem: string;
    try {
      const signals = [AbortSignal.timeout(TIMEOUT_MS), ...(init.signal ? [init.signal] : [])];
      const response = await fetch(url, { ...init, signal: AbortSignal.any(signals) });
      const text = await bodyOf(response);
      if (response.ok) return JSON.parse(text);
      problem = `${response.status} ${text.slice(0, 300)}`;
      if (response.status !== 429 && response.status < 500) throw new CoppiceError(`${url} answered ${problem}`);
    } catch (error) {
      if (error instanceof CoppiceError || init.signal?.aborted) throw error;
      if (error instanceof SyntaxError) throw new FormatError(`${url} did not answer with JSON (${error.message})`);
      const cause = error instanceof Error && error.cause instanceof Error ? `: ${error.cause.message}` : "";
      problem = `${error instanceof Error ? error.message : error}${cause}`;
    }
    if (attempt === attempts) throw new CoppiceError(`${url} cannot be reached: ${problem}`);
    await new Promise((resolve) => setTimeout(resolve, 250 * 2 ** attempt));
  }
}

/** Larger than any answer to one prompt. */
const MOST_BYTES = 256 << 20;

async function bodyOf(response: Response): Promise<string> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of (response.body ?? []) as AsyncIterable<Uint8Array>) {
    bytes += chunk.byteLength;
    if (bytes > MOST_BYTES) throw new FormatError(`${response.url} answered more than ${MOST_BYTES} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}
