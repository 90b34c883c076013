/** Ranges of code points. */

export type Range = readonly [from: number, to: number];

const LAST = 0x10ffff;
export const DIGITS: Range[] = [[0x30, 0x39]];
export const WORD: Range[] = [
  [0x30, 0x39],
  [0x41, 0x5a],
  [0x5f, 0x5f],
  [0x61, 0x7a],
];
export const SPACE: Range[] = [
  [9, 13],
  [0x20, 0x20],
  [0xa0, 0xa0],
  [0x2028, 0x2029],
  [0x3000, 0x3000],
  [0xfeff, 0xfeff],
];
export const LINE_ENDS: Range[] = [
  [10, 10],
  [13, 13],
  [0x2028, 0x2029],
];
export const SURROGATES: Range = [0xd800, 0xdfff];
/** Properties of Unicode whose ranges are kept. */
const MAX_KNOWN_PROPERTIES = 1024;
const knownProperties = new Map<string, readonly Range[]>();
const BEFORE_SURROGATES = 0xd800;
/** Code points of the basic plane without the surrogates. */
const BASIC = 0x10000 - 0x800;
let everything: string | undefined;

/** All characters in order of their code points. */
function everyCharacter(): string {
  const parts: string[] = [];
  for (let code = 0; code <= LAST; code++)
    if (code < SURROGATES[0] || code > SURROGATES[1]) parts.push(String.fromCodePoint(code));
  return parts.join("");
}

/** The code points that have a property of Unicode (`\\p{Letter}`, `\\P{Letter}`), as JavaScript knows them. */
export function propertyRanges(raw: string): readonly Range[] {
  const known = knownProperties.get(raw);
  if (known !== undefined) return known;
  everything ??= everyCharacter();
  const codeAt = (index: number): number => {
    if (index < BEFORE_SURROGATES) return index;
    return index < BASIC ? index + 0x800 : 0x10000 + ((index - BASIC) >> 1);
  };
  const ranges = [...everything.matchAll(new RegExp(`${raw}+`, "gu"))].map(
    ({ 0: run, index }): Range => [codeAt(index), codeAt(index + run.length - 1)],
  );
  if (knownProperties.size >= MAX_KNOWN_PROPERTIES) knownProperties.clear();
  knownProperties.set(raw, ranges);
  return ranges;
}

/** All other code points. */
export function complement(ranges: readonly Range[]): Range[] {
  const result: Range[] = [];
  let next = 0;
  for (const [from, to] of [...ranges].sort((a, b) => a[0] - b[0])) {
    if (from > next) result.push([next, from - 1]);
    next = Math.max(next, to + 1);
  }
  if (next <= LAST) result.push([next, LAST]);
  return result;
}
