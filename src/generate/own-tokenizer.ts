import type { LlamaModel, Token } from "node-llama-cpp";
import type { SpecialToken, TextTokenizer } from "../data/index.js";
import { tokenize } from "./tokenize.js";

/** llama.cpp's own tokenizer of a loaded model. */
export class OwnTokenizer implements TextTokenizer {
  readonly bos: SpecialToken | undefined;
  readonly eos: SpecialToken | undefined;
  readonly ends: ReadonlySet<number>;

  constructor(private readonly model: LlamaModel) {
    this.bos = this.special(model.tokens.bos);
    this.eos = this.special(model.tokens.eos);
    this.ends = new Set([model.tokens.eos, model.tokens.eot].filter((id) => id !== null));
  }

  private special(id: Token | null): SpecialToken | undefined {
    return id === null ? undefined : { id, text: this.model.detokenize([id], true) };
  }

  async encode(texts: readonly string[], addSpecialTokens: boolean): Promise<number[][]> {
    const { bos, shouldPrependBosToken } = this.model.tokens;
    const first = addSpecialTokens && shouldPrependBosToken && bos !== null ? [bos] : [];
    return texts.map((text) => [...first, ...tokenize(this.model, text, true)]);
  }

  async decode(ids: readonly number[]): Promise<string> {
    return this.model.detokenize(ids as Token[]);
  }
}
