import type { TextTokenizer } from "../data/index.js";
import { elementAt } from "../system/arrays.js";
import { CoppiceError } from "../system/errors.js";
import { trimEnd } from "./python-text.js";
import type { LogLikelihoodRequest, RollingRequest } from "./requests.js";

/** Token ids to be scored, and those before them. */
export interface TokenPair {
  readonly context: readonly number[];
  readonly continuation: readonly number[];
}

/** Encodes texts as token ids by the harness's rules (lm_eval/models/huggingface.py and api/model.py, 0.4.13). */
export class RequestEncoder {
  private readonly prefix: number;
  private readonly prefixText: string;

  /** @throws CoppiceError when the tokenizer has neither a begin nor an end token */
  private constructor(
    private readonly tokenizer: TextTokenizer,
    prefix: { readonly id: number; readonly text: string },
  ) {
    this.prefix = prefix.id;
    this.prefixText = prefix.text;
  }

  static of(tokenizer: TextTokenizer): RequestEncoder {
    const prefix = tokenizer.bos ?? tokenizer.eos;
    if (prefix === undefined)
      throw new CoppiceError(
        "the tokenizer has neither a begin nor an end of sequence token: name one in tokenizer_config.json",
      );
    return new RequestEncoder(tokenizer, prefix);
  }

  /** Ids of texts with the tokenizer's special tokens, which are not added to texts that already begin with them. */
  async texts(texts: readonly string[]): Promise<number[][]> {
    const plain = texts.map((text) => text.startsWith(this.prefixText));
    const [withSpecial, without] = await Promise.all([
      this.tokenizer.encode(
        texts.filter((_, i) => !plain[i]),
        true,
      ),
      this.tokenizer.encode(
        texts.filter((_, i) => plain[i]),
        false,
      ),
    ]);
    let [nextPlain, nextSpecial] = [0, 0];
    return plain.map((isPlain) => (isPlain ? elementAt(without, nextPlain++) : elementAt(withSpecial, nextSpecial++)));
  }

  /**
   * Ids of contexts and continuations. Trailing white space of a context belongs to the continuation, and the pair is split
   * where the context's own ids end, so that a token across the boundary counts as continuation.
   */
  async pairs(requests: readonly LogLikelihoodRequest[]): Promise<TokenPair[]> {
    const texts = new Map<string, number>(); // encoded once each: the options of a question share their context
    const place = (text: string): number => {
      const known = texts.get(text);
      if (known !== undefined) return known;
      texts.set(text, texts.size);
      return texts.size - 1;
    };
    const bare: string[] = [];
    const places = requests.map(({ context, continuation }) => {
      if (context === "") return { bare: bare.push(continuation) - 1 };
      const trimmed = trimEnd(context);
      return { context: place(trimmed), whole: place(context + continuation) };
    });
    const [ids, bareIds] = await Promise.all([this.texts([...texts.keys()]), this.tokenizer.encode(bare, false)]);
    return places.map((at) => {
      if (at.bare !== undefined) {
        const own = elementAt(bareIds, at.bare);
        const rest = own[0] === this.prefix ? own.slice(1) : own;
        return { context: [this.prefix], continuation: rest };
      }
      const [context, whole] = [elementAt(ids, at.context), elementAt(ids, at.whole)];
      return { context, continuation: whole.slice(context.length) };
    });
  }

  /**
   * Splits a text into windows that predict at most `length` ids each and every id once. Each window is filled up with the ids
   * before those it predicts.
   */
  async windows(request: RollingRequest, length: number): Promise<TokenPair[]> {
    const ids = elementAt(await this.texts([request.text]), 0);
    const first = Math.min(length, ids.length);
    const result: TokenPair[] = first === 0 ? [] : [{ context: [this.prefix], continuation: ids.slice(0, first) }];
    for (let done = first; done < ids.length; ) {
      const end = Math.min(ids.length, done + length);
      result.push({ context: ids.slice(end - length - 1, done), continuation: ids.slice(done, end) });
      done = end;
    }
    return result;
  }
}
