import type { Token } from "node-llama-cpp";
import type { Sampling } from "./conversation.js";

/** What is to be written after a prompt. */
export interface WriteRequest extends Sampling {
  readonly prompt: readonly Token[];
  readonly maxTokens: number | undefined;
  /** How many of the most probable tokens to tell of, beside the one taken. */
  readonly topLogprobs?: number | undefined;
  /** What may be written: from the beginning on, or from where a text was written. */
  readonly grammar?: { readonly text: string; readonly param: string; readonly after?: string | undefined } | undefined;
  /** Whether special tokens are shown as text. */
  readonly special?: boolean | undefined;
  readonly signal: AbortSignal;
}

export interface TokenLogprob {
  /** Its text, or its bytes written out (`\\xf0\\x9f`) where they are a part of a letter. */
  readonly token: string;
  /** Its own, whatever of a letter they are. */
  readonly bytes: readonly number[];
  /** Null for a prompt's first token, which comes after nothing. */
  readonly logprob: number | null;
}

export interface WrittenToken extends TokenLogprob {
  /** The most probable ones in its place; null where nothing is before it. */
  readonly top: readonly TokenLogprob[] | null;
  /** Code points that it adds to the text; a letter of several tokens comes with the last of them. */
  readonly width: number;
}

/** Some text as it was written. */
export interface Piece {
  readonly text: string;
  /** The tokens whose text ends in it; only where they were asked for. */
  readonly tokens: readonly WrittenToken[];
}

export interface Written {
  readonly finishReason: "stop" | "length";
  /** The text that it stopped at, where it was one of the request's. */
  readonly stoppedAt: string | undefined;
  readonly promptTokens: number;
  /** Of these, found in the cache. */
  readonly cachedTokens: number;
  readonly completionTokens: number;
}
