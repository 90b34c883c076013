/** What a benchmark asks of a language model, under the harness's names. */

/** How probable a text is after another. */
export interface LogLikelihoodRequest {
  readonly kind: "log-likelihood";
  readonly context: string;
  readonly continuation: string;
}

/** How probable a whole text is, each token given as much before it as the model reads. */
export interface RollingRequest {
  readonly kind: "rolling";
  readonly text: string;
}

/** What the model writes after a text. */
export interface GenerateRequest {
  readonly kind: "generate";
  readonly context: string;
  /** The text ends before the first of these. */
  readonly until: readonly string[];
  readonly maxTokens: number;
  /** 0, the default, takes the most probable token each time. */
  readonly temperature?: number | undefined;
  readonly topP?: number | undefined;
  /** Numbers the samples that are drawn of one text; also the seed. */
  readonly sample?: number | undefined;
}

export type Request = LogLikelihoodRequest | RollingRequest | GenerateRequest;

/** Answer to a request for likelihoods. */
export interface Likelihood {
  /** Sum over the text's tokens, in nats. */
  readonly logLikelihood: number;
  /** Whether each token was the most probable one; always false for rolling requests. */
  readonly isGreedy: boolean;
}

/** Answer to a request. */
export type Reply = Likelihood | string;

/** Called with each answer as it is known; `index` is the request's. Answers come in any order. */
export type OnReply<T extends Reply> = (index: number, reply: T) => void;

export interface AskOptions {
  /** Asks to stop between two batches. */
  readonly signal?: AbortSignal | undefined;
}

/** Answers requests for likelihoods. */
export interface LikelihoodModel {
  logLikelihoods(
    requests: readonly (LogLikelihoodRequest | RollingRequest)[],
    onReply: OnReply<Likelihood>,
    options?: AskOptions,
  ): Promise<void>;
}

/** Answers requests for text. */
export interface GenerationModel {
  generate(requests: readonly GenerateRequest[], onReply: OnReply<string>, options?: AskOptions): Promise<void>;
}

/** Where a text is cut: before the first occurrence of the first term that occurs, then of the next, as the harness cuts. */
export function cutAt(text: string, until: readonly string[]): string {
  let result = text;
  for (const term of until) if (term !== "") result = result.split(term, 1)[0] ?? "";
  return result;
}
