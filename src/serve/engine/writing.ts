import type { Token } from "node-llama-cpp";
import type { Sampling } from "./conversation.js";

/** A grammar that a text must follow. */
export interface TextGrammar {
  /** GBNF with a rule `root`. */
  readonly text: string;
  /** The request's field that it comes from. */
  readonly param: string;
  /** The grammar applies only from the end of this text on; from the beginning where undefined. */
  readonly after?: string | undefined;
}

/** A request to continue a prompt. */
export interface WriteRequest extends Sampling {
  readonly prompt: readonly Token[];
  readonly maxTokens: number | undefined;
  /** How many of the most probable tokens to report, beside the one taken; no log-probabilities where undefined. */
  readonly topLogprobs?: number | undefined;
  readonly grammar?: TextGrammar | undefined;
  /** Whether special tokens are shown as text. */
  readonly special?: boolean | undefined;
  readonly signal: AbortSignal;
}

export interface TokenLogprob {
  /** Its text, or its bytes as escapes (`\\xf0\\x9f`) where they are only part of a character. */
  readonly token: string;
  readonly bytes: readonly number[];
  /** Natural logarithm; null for a prompt's first token, which follows nothing. */
  readonly logprob: number | null;
}

export interface WrittenToken extends TokenLogprob {
  /** The most probable tokens in its place; null for a prompt's first token. */
  readonly top: readonly TokenLogprob[] | null;
  /** Code points that it adds to the text; a character of several tokens is counted with the last of them. */
  readonly width: number;
}

/** A chunk of a text, as it is streamed. */
export interface TextChunk {
  readonly text: string;
  /** The tokens whose text ends in this chunk; empty unless log-probabilities were asked for. */
  readonly tokens: readonly WrittenToken[];
  /** How many tokens have been written so far. */
  readonly written: number;
}

/** How writing a text ended. */
export interface WriteResult {
  readonly finishReason: "stop" | "length";
  /** The stop text that ended it, if one did. */
  readonly stoppedAt: string | undefined;
  readonly promptTokens: number;
  /** Prompt tokens that were found in the cache. */
  readonly cachedTokens: number;
  readonly completionTokens: number;
}
