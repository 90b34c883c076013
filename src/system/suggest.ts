import { readdirSync } from "node:fs";
import path from "node:path";
import { distance } from "fastest-levenshtein";

/** Of more differences than this share of a name's characters it is another name, not a slip. */
const MOST_DIFFERENT = 0.4;

/** The names that someone may have meant, most similar first; three at most. Upper and lower case count as the same. */
export function similar(name: string, known: readonly string[]): string[] {
  const lower = name.toLowerCase();
  const near = [...new Set(known)]
    .map((one) => ({ one, edits: distance(lower, one.toLowerCase()) }))
    .filter(({ one, edits }) => edits <= Math.ceil(MOST_DIFFERENT * Math.min(one.length, name.length)))
    .sort((a, b) => a.edits - b.edits);
  const [best] = near;
  return near
    .filter(({ edits }) => edits <= (best?.edits ?? 0) + 1)
    .slice(0, 3)
    .map(({ one }) => one);
}

const question = (names: readonly string[]): string =>
  names.length === 0 ? "" : ` Did you mean ${new Intl.ListFormat("en", { type: "disjunction" }).format(names)}?`;

/** For the end of a message about an unknown name: ` Did you mean q4_k_m?`, or nothing where none is similar. */
export function didYouMean(name: string, known: readonly string[]): string {
  return question(similar(name, known));
}

/** The same for a path that is not there: what lies beside where it would be. */
export function didYouMeanPath(file: string): string {
  const folder = path.dirname(file);
  let found: string[];
  try {
    found = readdirSync(folder);
  } catch {
    return "";
  }
  const names = similar(path.basename(file), found);
  const shown = file.startsWith(`.${path.sep}`) && folder === "." ? `.${path.sep}` : "";
  return question(names.map((name) => shown + path.join(folder, name)));
}
