/** Requests of a benchmark to a language model, by the harness's names. */

/** Asks how probable a text is after another. */
export interface LogLikelihoodRequest {
  readonly kind: "log-likelihood";
  readonly context: string;
  readonly continuation: string;
}

/** Asks how probable a whole text is, each token after as much context as the model reads. */
export interface RollingRequest {
  readonly kind: "rolling";
  readonly text: string;
}

/** Asks the model to continue a text. */
export interface GenerateRequest {
  readonly kind: "generate";
  readonly context: string;
  /** Generation stops before the first of these. */
  readonly until: readonly string[];
  readonly maxTokens: number;
  /** 0, the default, takes the most probable token each time. */
  readonly temperature?: number | undefined;
  readonly topP?: number | undefined;
  /** Distinguishes samples for the same context; also the seed. */
  readonly sample?: number | undefined;
}

export type Request = LogLikelihoodRequest | RollingRequest | GenerateRequest;

/** Reply to a request for likelihoods. */
export interface Likelihood {
  /** Sum over the text's tokens, in nats. */
  readonly logLikelihood: number;
  /** Whether each token was the most probable one; always false for rolling requests, undefined where a server does not say. */
  readonly isGreedy: boolean | undefined;
}

/** Reply to a request. */
export type Reply = Likelihood | string;

/** Called with each reply as it arrives, in any order; `index` is the request's. */
export type OnReply<T extends Reply> = (index: number, reply: T) => void;

export interface AskOptions {
  /** Stops between two batches when aborted. */
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

/** Truncates a text as the harness does: before the first occurrence of each term in turn. */
export function cutAt(text: string, until: readonly string[]): string {
  let result = text;
  for (const term of until) if (term !== "") result = result.split(term, 1)[0] ?? "";
  return result;
}
