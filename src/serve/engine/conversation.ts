/** A conversation to answer, whichever API it comes from. */

/** A call of a tool, written by a model. */
export interface ToolCall {
  readonly id: string;
  readonly name: string;
  /** JSON. */
  readonly arguments: string;
}

export type Turn =
  | { readonly role: "system" | "user"; readonly content: string; readonly name?: string | undefined }
  | { readonly role: "assistant"; readonly content: string; readonly calls: readonly ToolCall[] }
  | { readonly role: "tool"; readonly content: string; readonly callId: string };

export interface Tool {
  readonly name: string;
  readonly description?: string | undefined;
  /** JSON Schema of its arguments. */
  readonly parameters: Readonly<Record<string, unknown>>;
  /** Whether calls must match the whole schema: what a grammar cannot express is then refused. */
  readonly strict?: boolean | undefined;
}

/** Whether a model may, must or must not call a tool, and which ones. */
export type ToolChoice =
  | "auto"
  | "none"
  | "required"
  | { readonly names: readonly string[]; readonly mode: "auto" | "required" };

/** A form that an answer must have. */
export type Format =
  | { readonly kind: "json"; readonly schema?: unknown; readonly param: string; readonly isStrict: boolean }
  | { readonly kind: "regex"; readonly pattern: string; readonly param: string }
  | { readonly kind: "choice"; readonly options: readonly string[] }
  | { readonly kind: "grammar"; readonly text: string; readonly param: string };

/** How tokens are drawn. */
export interface Sampling {
  readonly temperature: number;
  readonly topP?: number | undefined;
  readonly topK?: number | undefined;
  readonly minP?: number | undefined;
  readonly seed?: number | undefined;
  readonly presencePenalty?: number | undefined;
  readonly frequencyPenalty?: number | undefined;
  /** Divides the odds of tokens that were already written; 1 for no penalty. */
  readonly repetitionPenalty?: number | undefined;
  /** How many of the last tokens penalties apply to; to all that were written where undefined. */
  readonly penaltyWindow?: number | undefined;
  /** Added to the logits of tokens, by their ids. */
  readonly logitBias?: Readonly<Record<string, number>> | undefined;
  readonly stops: readonly string[];
  /** Whether to go on after the model's end token. */
  readonly ignoreEnd?: boolean | undefined;
}

export interface Conversation {
  readonly turns: readonly Turn[];
  readonly tools: readonly Tool[];
  readonly toolChoice: ToolChoice;
  /** Whether one answer may call several tools. */
  readonly parallelCalls: boolean;
  readonly format?: Format | undefined;
  readonly sampling: Sampling;
  readonly maxTokens?: number | undefined;
  readonly topLogprobs?: number | undefined;
  /** What to do with a prompt that does not fit; the service's own policy where undefined. */
  readonly overflow?: Overflow | undefined;
  /** Whether to continue an answer that is the last turn, rather than to add another one. */
  readonly continues?: boolean | undefined;
  /** More variables of the model's chat template. */
  readonly templateVariables?: Readonly<Record<string, unknown>> | undefined;
}

/** Whether to refuse a prompt that is too long, or to drop its oldest part. */
export type Overflow = "refuse" | "drop-oldest";
