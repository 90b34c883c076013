import { chatTemplateIn } from "../checkpoint/index.js";
import { type Corpus, type CorpusOptions, openCorpus, Tokenizer, type TokenStream } from "../data/index.js";
import type { Model } from "../models/index.js";
import { CoppiceError } from "../system/errors.js";
import type { JobOptions } from "./job.js";
import { noteOverlap } from "./sanity.js";

/** Where training and validation tokens come from. */
export interface DataOptions extends Pick<CorpusOptions, "field" | "separator" | "cacheDir"> {
  readonly data: readonly string[];
  /** Held-out text; by default a share of the documents, or the end of the text if there are few documents. */
  readonly validation?: readonly string[] | undefined;
}

/** The share of the documents that is held out when there is no validation data. */
const HELD_OUT_SHARE = 0.02;
/** No more is needed to tell models apart, and measuring more of a large corpus would take as long as training. */
const MOST_VALIDATION_TOKENS = 2 ** 18;
/** Where more than this share was held out, documents are few and of unequal length. */
const MOST_HELD_OUT = 0.1;
/** A loss on fewer tokens than this would be meaningless. */
const MIN_VALIDATION_TOKENS = 256;
/** The smallest share of the text to train on. */
const MIN_TRAINED_SHARE = 0.8;

/** The model that reads the data, and the directory of its tokenizer. */
export interface Reader {
  readonly directory: string;
  readonly model: Pick<Model, "needsBeginToken">;
}

/** Opens training and validation tokens for a model. */
export async function openData(
  reader: Reader,
  data: DataOptions,
  options: JobOptions,
): Promise<{ readonly train: TokenStream; readonly validation: TokenStream }> {
  const noteMissingConversations = ({ conversations }: Corpus) => {
    if (conversations > 0 || chatTemplateIn(reader.directory) === undefined) return;
    options.onNote?.(
      "the model has a chat template, but the data has no conversations: what is fitted to plain text alone may no longer answer; give conversations, too (rows with messages)",
    );
  };
  if (data.validation !== undefined && data.validation.length > 0) {
    const train = await openTokens(data.data, reader, data, options);
    const validation = await openTokens(data.validation, reader, data, options);
    noteMissingConversations(train);
    noteOverlap(train, validation, options);
    return { train: train.train, validation: validation.train };
  }
  const byDocument = await openTokens(data.data, reader, data, options, HELD_OUT_SHARE);
  noteMissingConversations(byDocument);
  const heldOut = byDocument.heldOut.length;
  if (heldOut >= MIN_VALIDATION_TOKENS && heldOut <= MOST_HELD_OUT * (byDocument.train.length + heldOut))
    return { train: byDocument.train, validation: beginningOf(byDocument.heldOut) };
  // there are few documents, or only one: hold out the end of the text
  const { train } = heldOut === 0 ? byDocument : await openTokens(data.data, reader, data, options);
  const share = Math.min(MOST_VALIDATION_TOKENS, Math.ceil(HELD_OUT_SHARE * train.length));
  const end = train.length - Math.max(MIN_VALIDATION_TOKENS, share);
  if (end < MIN_TRAINED_SHARE * train.length)
    throw new CoppiceError(
      `the data has only ${train.length} tokens, of which ${MIN_VALIDATION_TOKENS} are needed for validation: give more data, or validation data (--validation)`,
    );
  return { train: train.part(0, end), validation: train.part(end, train.length) };
}

const beginningOf = (stream: TokenStream): TokenStream =>
  stream.length > MOST_VALIDATION_TOKENS ? stream.part(0, MOST_VALIDATION_TOKENS) : stream;

/** Tokenizes data, or opens it from the cache. */
export async function openTokens(
  inputs: readonly string[],
  { directory, model }: Reader,
  data: Omit<DataOptions, "data" | "validation">,
  options: JobOptions,
  heldOutShare = 0,
): Promise<Corpus> {
  const tokenizer = await Tokenizer.load(directory);
  const { revision: _, ...hub } = options.hub ?? {}; // the revision is the model's
  const corpus = await openCorpus(inputs, tokenizer, {
    ...data,
    heldOutShare,
    hub: { ...hub, signal: options.signal },
    onNote: options.onNote,
    signal: options.signal,
    onProgress: ({ tokens, bytes, totalBytes }) =>
      options.onProgress?.({
        stage: "tokenize",
        done: bytes,
        total: totalBytes,
        unit: "bytes",
        detail: `${tokens} tokens`,
      }),
  });
  const { beginToken } = tokenizer;
  if (!model.needsBeginToken || beginToken === undefined) return corpus;
  return {
    ...corpus,
    train: corpus.train.beginningWith(beginToken),
    heldOut: corpus.heldOut.beginningWith(beginToken),
  };
}
