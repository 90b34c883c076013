import {
  type BatchItem,
  type BatchingOptions,
  type CustomBatchingPrioritizationStrategy,
  DraftSequenceTokenPredictor,
  type LlamaContext,
  type LlamaContextSequence,
  type PrioritizedBatchItem,
  type Token,
} from "node-llama-cpp";
import { ApiError } from "../errors.js";

/** One of the places in which a request is computed, and what is in it. */
export interface Slot {
  readonly sequence: LlamaContextSequence;
  busy: boolean;
  /** Whether its next token has been asked for, and was not looked at yet. */
  awaiting: boolean;
  /** Whether its tokens are computed by themselves. */
  alone: boolean;
  lastUsed: number;
  /** The prompt that is being computed there, until it is. */
  prefill: { readonly prompt: readonly Token[]; readonly done: Promise<void> } | undefined;
}

/** A sequence that can take over what another one has computed: there, though not in the library's types. */
interface CopyingSequence {
  _copyStateFromOtherSequence?(other: LlamaContextSequence, upToTokenIndex: number): Promise<boolean>;
}

const DRAFT_TOKENS = 8;
/** Copying this many tokens' keys and values is surely faster than computing them. */
const WORTH_COPYING = 16;
/** Tokens of prompts in a batch while others write: they wait for the whole of it. */
const PROMPT_SHARE = 128;
/**
 * Marks tokens that are computed in batches of their own. llama.cpp's sums depend in their last digits on how many are computed
 * together, and so may what is drawn: a text that is to come out the same again must not depend on who else writes.
 */
export const ALONE = 1;
/** Times that a batch is put off, each some turns of the microtask queue, for those who have a token and ask for the next. */
const PATIENCE = 32;

/** The places of a context, and what their caches have in common. */
export class Slots {
  private clock = 0;
  private all: readonly Slot[] = [];
  private patience = PATIENCE;
  private draft: LlamaContext | undefined;

  /** @param contextSize tokens of each */
  constructor(private readonly contextSize: number) {}

  /** Makes the places. @param draft a smaller model's context, which guesses ahead */
  fill(context: LlamaContext, draft: LlamaContext | undefined, count: number): void {
    this.draft = draft;
    this.all = Array.from({ length: count }, (): Slot => {
      // a guess is waited for, where the draft is no faster than the model
      const options = { minTokens: 1, maxTokens: DRAFT_TOKENS };
      const predictor = draft && new DraftSequenceTokenPredictor(draft.getSequence(), options);
      const sequence = context.getSequence(predictor && { tokenPredictor: predictor });
      return { sequence, busy: false, awaiting: false, alone: false, lastUsed: 0, prefill: undefined };
    });
  }

  /** How their context puts batches together. */
  get batching(): Required<BatchingOptions> {
    return { dispatchSchedule: (dispatch) => dispatch(), itemPrioritizationStrategy: (queue) => this.batchOf(queue) };
  }

  /**
   * A batch: the next token of each text that is being written, then prompts in the order in which they came. All who write are in
   * it: those who got their tokens last in the batch before have not asked for the next yet, and would else be computed by themselves.
   */
  private batchOf({ items, size }: Parameters<CustomBatchingPrioritizationStrategy>[0]): PrioritizedBatchItem[] {
    const isAlone = ({ tokens, evaluationPriority }: BatchItem) => tokens.length === 1 && evaluationPriority === ALONE;
    const [first] = items; // who has waited for longest
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
    let left = Math.min(size, next.length === 0 ? size : next.length + PROMPT_SHARE);
    return [...next, ...prompts].flatMap((item) => {
      const processAmount = Math.min(item.tokens.length, left);
      left -= processAmount;
      return processAmount === 0 ? [] : [{ item, processAmount }];
    });
  }

  /** Share of the cache that holds something. */
  get use(): number {
    const used = this.all.reduce((sum, { sequence }) => sum + sequence.nextTokenIndex, 0);
    return used / (this.all.length * this.contextSize);
  }

  /**
   * The free slot whose content begins as the prompt does for longest; the one that was not used for longest among equals. It is
   * taken until it is no longer `busy`.
   * @throws ApiError 503 when every one is taken
   */
  take(prompt: readonly Token[]): Slot {
    const free = this.all.filter(({ busy }) => !busy);
    const ranked = free
      .map((slot) => ({ slot, shared: sharedLength(slot.sequence.contextTokens, prompt) }))
      .sort((a, b) => b.shared - a.shared || a.slot.lastUsed - b.slot.lastUsed);
    const best = ranked[0]?.slot;
    if (best === undefined) throw new ApiError(503, "every place of the model is taken");
    best.busy = true;
    best.lastUsed = ++this.clock;
    return best;
  }

  /**
   * Takes over what another slot has of a prompt, where it has more than this one; one that is computing it is waited for. So a
   * beginning that several requests share is computed once.
   */
  async takeOver(slot: Slot, prompt: readonly Token[], signal: AbortSignal): Promise<void> {
    const { sequence } = slot;
    const copying = sequence as LlamaContextSequence & CopyingSequence;
    if (this.draft !== undefined || sequence.needsCheckpoints || copying._copyStateFromOtherSequence === undefined)
      return;
    const last = prompt.length - 1; // is computed in any case: what comes next depends on it
    const own = sharedLength(sequence.contextTokens, prompt);
    const sharedWith = (other: Slot) =>
      Math.min(last, sharedLength(other.prefill?.prompt ?? other.sequence.contextTokens, prompt));
    const [best] = this.all
      .filter((other) => other !== slot)
      .map((other) => ({ other, shared: sharedWith(other) }))
      .sort((a, b) => b.shared - a.shared || a.other.lastUsed - b.other.lastUsed);
    if (best === undefined || best.shared < own + WORTH_COPYING) return;
    await best.other.prefill?.done;
    signal.throwIfAborted();
    const shared = Math.min(last, sharedLength(best.other.sequence.contextTokens, prompt));
    if (shared < own + WORTH_COPYING) return;
    const copied = await copying._copyStateFromOtherSequence(best.other.sequence, shared);
    if (!copied) await sequence.clearHistory();
  }
}

function sharedLength(a: readonly number[], b: readonly number[]): number {
  let i = 0;
  while (i < a.length && i < b.length && a[i] === b[i]) i++;
  return i;
}
