import { z } from "zod";
import { wholeText } from "../kinds.js";
import { countWords } from "../python-text.js";

const row = z.object({ page: z.string() });

/** Separators of the tokenized text, and how they are written. */
const SEPARATORS: readonly (readonly [string, string])[] = [
  [" @-@ ", "-"],
  [" @,@ ", ","],
  [" @.@ ", "."],
  ...[":", ";", ".", "!", "?", ","].map((mark) => [` ${mark} `, `${mark} `] as const),
];
/** Replaced after brackets and quotation marks. */
const LAST: readonly (readonly [string, string])[] = [
  ["= = = =", "===="],
  ["= = =", "==="],
  ["= =", "=="],
  [" ° ", "°"],
  [" \n", "\n"],
  ["\n ", "\n"],
  [" N ", " 1 "],
  [" 's", "'s"],
];
const replaceAll = (text: string, pairs: readonly (readonly [string, string])[]): string =>
  pairs.reduce((left, [from, to]) => left.replaceAll(from, to), text);

/** Undoes the page's tokenization by the harness's rules. */
function detokenized(page: string): string {
  const joined = replaceAll(page.replaceAll("s '", "s'").replace(/\/' [0-9]\//g, "/'[0-9]/"), SEPARATORS);
  const enclosed = joined
    .replace(/\(\s*([^)]*?)\s*\)/g, "($1)")
    .replace(/\[\s*([^\]]*?)\s*\]/g, "[$1]")
    .replace(/\{\s*([^}]*?)\s*\}/g, "{$1}")
    .replace(/"\s*([^"]*?)\s*"/g, '"$1"')
    .replace(/'\s*([^']*?)\s*'/g, "'$1'");
  return replaceAll(enclosed, LAST);
}

/** WikiText-2 (Merity et al. 2016), page by page. Words and bytes are counted in the tokenized page. */
export const wikitext = wholeText({
  name: "wikitext",
  version: 2,
  schema: row,
  dataset: { repo: "EleutherAI/wikitext_document_level", config: "wikitext-2-raw-v1" },
  splits: { train: "train", validation: "validation", test: "test" },
  text: ({ page }) => detokenized(page),
  words: ({ page }) => countWords(page),
  bytes: ({ page }) => Buffer.byteLength(page),
});
