import {
  type BatchItem,
  type BatchingOptions,
  type CustomBatchingPrioritizationStrategy,
  DraftSequenceTokenPredictor,
  type EvaluationPriority,
  type LlamaContext,
  type LlamaContextSequence,
  type PrioritizedBatchItem,
  type Token,
} from "node-llama-cpp";
import { OptionalPredictor } from "../../generate/optional-predictor.js";
import { ApiError } from "../errors.js";

/** One of the places of a context in which requests are computed. */
export interface Slot {
  readonly sequence: LlamaContextSequence;
  busy: boolean;
  /** Whether its next token has been asked for and not been read yet. */
  awaiting: boolean;
  /** Whether its tokens are computed in batches of their own. */
  alone: boolean;
  /** Whether a draft may guess in its text. */
  guessable: boolean;
  lastUsed: number;
  /** The prompt that is being computed in it, until it is. */
  prefill: { readonly prompt: readonly Token[]; readonly done: Promise<void> } | undefined;
}

/** A sequence that can copy the state of another one: the method is there, though not in the library's types. */
interface CopyingSequence {
  _copyStateFromOtherSequence?(other: LlamaContextSequence, upToTokenIndex: number): Promise<boolean>;
}

const DRAFT_TOKENS = 8;
/** Tokens whose keys and values are surely copied faster than computed. */
const MIN_COPIED = 16;
/** Prompt tokens in a batch while others write, who wait for the whole batch. */
const MAX_PROMPT_SHARE = 128;
/**
 * Marks tokens that are computed in batches of their own, for texts with a seed. llama.cpp's sums depend in their last digits on how many
 * tokens are computed together, and so may what is drawn. What is left of that is the prompt, which may be computed with others or be in
 * the cache: it changes a text only where a random number falls, to within these digits, between two tokens.
 */
export const ALONE: EvaluationPriority = 1;
/** How often a batch is put off, each time by some turns of the microtask queue, for texts that have just got a token. */
const PATIENCE = 32;

/** The slots of a context, which batch together and copy from each other's caches. */
export class Slots {
  private clock = 0;
  private all: readonly Slot[] = [];
  private patience = PATIENCE;
  private draft: LlamaContext | undefined;

  /** @param contextSize tokens of each slot */
  constructor(private readonly contextSize: number) {}

  /** Creates the slots. @param draft context of a smaller model, which guesses ahead */
  fill(context: LlamaContext, draft: LlamaContext | undefined, count: number): void {
    this.draft = draft;
    this.all = Array.from({ length: count }, (): Slot => {
      // a guess is waited for, where the draft is no faster than the model
      const options = { minTokens: 1, maxTokens: DRAFT_TOKENS };
      const drafter = draft && new DraftSequenceTokenPredictor(draft.getSequence(), options);
      const predictor = drafter && new OptionalPredictor(drafter, () => slot.guessable);
      const sequence = context.getSequence(predictor && { tokenPredictor: predictor });
      const slot: Slot = {
        sequence,
        busy: false,
        awaiting: false,
        alone: false,
        guessable: true,
        lastUsed: 0,
        prefill: undefined,
      };
      return slot;
    });
  }

  /** How the context is to put batches together. */
  get batching(): Required<BatchingOptions> {
    return { dispatchSchedule: (dispatch) => dispatch(), itemPrioritizationStrategy: (queue) => this.batchOf(queue) };
  }

  /**
   * A batch: the next token of each text that is being written, then prompts in the order in which they came. A text that got its
   * token late in the last batch may not have asked for the next one yet; it is waited for, lest it be computed by itself.
   */
  private batchOf({ items, size }: Parameters<CustomBatchingPrioritizationStrategy>[0]): PrioritizedBatchItem[] {
    const isAlone = ({ tokens, evaluationPriority }: BatchItem) => tokens.length === 1 && evaluationPriority === ALONE;
    const [first] = items; // has waited longest
    if (first !== undefined && isAlone(first)) return [{ item: first, processAmount: 1 }];
    const together = items.filter((item) => !isAlone(item));
    const expected = this.all.filter(({ awaiting, alone }) => awaiting && !alone).length;
    if (together.length < expected && this.patience > 0) {
      this.patience--;
      return [];
    }
    this.patience = PATIENCE;
    const next = together.filter(({ tokens }) => tokens.length === 1);
    const prompts = together.filter(({ tokens }) => tokens.length > 1);
    let left = Math.min(size, next.length === 0 ? size : next.length + MAX_PROMPT_SHARE);
    return [...next, ...prompts].flatMap((item) => {
      const processAmount = Math.min(item.tokens.length, left);
      left -= processAmount;
      return processAmount === 0 ? [] : [{ item, processAmount }];
    });
  }

  /** Share of the cache that is in use. */
  get use(): number {
    const used = this.all.reduce((sum, { sequence }) => sum + sequence.nextTokenIndex, 0);
    return used / (this.all.length * this.contextSize);
  }

  /**
   * Takes the free slot that shares the longest beginning with a prompt; among equals, the one used least recently. It is taken
   * until its `busy` is reset.
   * @throws ApiError 503 when none is free
   */
  take(prompt: readonly Token[]): Slot {
    const free = this.all.filter(({ busy }) => !busy);
    const ranked = free
      .map((slot) => ({ slot, shared: sharedLength(slot.sequence.contextTokens, prompt) }))
      .sort((a, b) => b.shared - a.shared || a.slot.lastUsed - b.slot.lastUsed);
    const best = ranked[0]?.slot;
    if (best === undefined) throw new ApiError(503, "every slot of the model is taken");
    best.busy = true;
    best.lastUsed = ++this.clock;
    return best;
  }

  /** Marks a prompt as being computed in a slot: others that begin alike wait for it. @returns what ends that */
  startPrefill(slot: Slot, prompt: readonly Token[]): () => void {
    let finish = () => {};
    const done = new Promise<void>((resolve) => {
      finish = resolve;
    });
    slot.prefill = { prompt, done };
    return () => {
      slot.prefill = undefined;
      finish();
    };
  }

  /**
   * Copies the beginning of a prompt from another slot, where that has more of it than this one; a slot that is still computing it
   * is waited for. So a beginning that several requests share is computed once.
   */
  async takeOver(slot: Slot, prompt: readonly Token[], signal: AbortSignal): Promise<void> {
    const { sequence } = slot;
    const copying = sequence as LlamaContextSequence & CopyingSequence;
    if (this.draft !== undefined || sequence.needsCheckpoints || copying._copyStateFromOtherSequence === undefined)
      return;
    const last = prompt.length - 1; // is computed in any case: it gives the first token
    const own = sharedLength(sequence.contextTokens, prompt);
    const sharedWith = (other: Slot) =>
      Math.min(last, sharedLength(other.prefill?.prompt ?? other.sequence.contextTokens, prompt));
    const [best] = this.all
      .filter((other) => other !== slot)
      .map((other) => ({ other, shared: sharedWith(other) }))
      .sort((a, b) => b.shared - a.shared || a.other.lastUsed - b.other.lastUsed);
    if (best === undefined || best.shared < own + MIN_COPIED) return;
    await best.other.prefill?.done;
    signal.throwIfAborted();
    const shared = Math.min(last, sharedLength(best.other.sequence.contextTokens, prompt));
    if (shared < own + MIN_COPIED) return;
    const copied = await copying._copyStateFromOtherSequence(best.other.sequence, shared);
    if (!copied) await sequence.clearHistory();
  }
}

/** Length of the beginning that two lists share. */
function sharedLength(a: readonly number[], b: readonly number[]): number {
  let i = 0;
  while (i < a.length && i < b.length && a[i] === b[i]) i++;
  return i;
}
