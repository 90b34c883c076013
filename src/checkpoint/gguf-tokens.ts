/** What both directions between `tokenizer.json` and GGUF metadata know of tokens. */

/** Kinds of tokens, as GGUF numbers them. */
export const TOKEN = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

/** What stands for a space in SentencePiece's tokens. */
export const SPACE = "▁";

/** The two halves of a merge that is written as one string. */
export function splitMerge(merge: string): readonly [string, string] {
  const at = merge.indexOf(" ", 1); // the first half may itself begin with a space
  return [merge.slice(0, at), merge.slice(at + 1)];
}
