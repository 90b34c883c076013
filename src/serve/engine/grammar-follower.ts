import { LlamaGrammarEvaluationState, type LlamaModel } from "node-llama-cpp";
import { ApiError } from "../errors.js";
import { checkGrammar } from "../grammar/index.js";
import type { TextGrammar } from "./writing.js";

/** A grammar that applies from the beginning of a text, or from the end of a text that is written in it. */
export class GrammarFollower {
  private active: LlamaGrammarEvaluationState | undefined;
  private tail = "";

  private constructor(
    private readonly state: LlamaGrammarEvaluationState,
    private readonly after: string | undefined,
  ) {
    if (after === undefined) this.active = state;
  }

  /** @throws ApiError 400 for a grammar that is wrong or that llama.cpp cannot follow */
  static async open(model: LlamaModel, { text, param, after }: TextGrammar): Promise<GrammarFollower> {
    checkGrammar(text, param);
    const grammar = await model.llama.createGrammar({ grammar: text }).catch(() => {
      throw new ApiError(400, "the grammar has a rule that begins with itself, which llama.cpp cannot follow", {
        param,
      });
    });
    return new GrammarFollower(new LlamaGrammarEvaluationState({ model, grammar }), after);
  }

  /** The state that llama.cpp is to follow now, if any. */
  get current(): LlamaGrammarEvaluationState | undefined {
    return this.active;
  }

  /** Looks for the text after which the grammar applies. */
  push(text: string): void {
    const { after } = this;
    if (after === undefined || this.active !== undefined) return;
    this.tail = (this.tail + text).slice(-after.length - text.length);
    const at = this.tail.lastIndexOf(after);
    // what the same token holds behind it is not followed
    if (at >= 0 && this.tail.slice(at + after.length).trim() === "") this.active = this.state;
  }
}
