/** What a protocol's request comes down to, whichever protocol it is. */

/** A call of a tool that a model asks for. */
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
  /** Whether a call must match the schema in all that it says: what a grammar cannot say is then refused. */
  readonly strict?: boolean | undefined;
}

/** Whether a model may, must or must not call a tool; which ones it may or must call. */
export type ToolChoice =
  | "auto"
  | "none"
  | "required"
  | { readonly names: readonly string[]; readonly mode: "auto" | "required" };

/** What an answer must look like. */
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
  /** Divides the odds of what was written; 1 for none. */
  readonly repetitionPenalty?: number | undefined;
  /** How many of the last tokens are punished for; all that were written where it is not given. */
  readonly penaltyWindow?: number | undefined;
  /** Added to the logits of tokens, by their ids. */
  readonly logitBias?: Readonly<Record<string, number>> | undefined;
  readonly stops: readonly string[];
  /** Goes on after the model's own end. */
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
  /** What is done with a prompt that does not fit; the service's own policy where it is not given. */
  readonly overflow?: Overflow | undefined;
  /** Whether an answer that is the last turn is gone on with, rather than followed by another. */
  readonly continues?: boolean | undefined;
  /** More of what the model's chat template reads. */
  readonly templateVariables?: Readonly<Record<string, unknown>> | undefined;
}

/** Refuse a prompt that is too long, or leave its oldest part out. */
export type Overflow = "refuse" | "drop-oldest";
