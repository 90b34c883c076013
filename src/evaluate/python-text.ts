/** Python's text functions where JavaScript's differ, so that prompts and scores equal the harness's byte for byte. */

/** Characters for which Python's `str.isspace` is true. */
const SPACE = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const LEADING = new RegExp(`^[${SPACE}]+`);
const TRAILING = new RegExp(`[${SPACE}]+$`);

/** `str.rstrip()` */
export const trimEnd = (text: string): string => text.replace(TRAILING, "");
/** `str.lstrip()` */
export const trimStart = (text: string): string => text.replace(LEADING, "");
/** `str.strip()` */
export const trim = (text: string): string => trimStart(trimEnd(text));

/** How many parts `re.split(r"\s+", text)` gives, empty ones at the ends included. */
export const countWords = (text: string): number => text.split(new RegExp(`[${SPACE}]+`)).length;

/** `str.capitalize()`: the first letter in title case, all others in lower case. */
export function capitalize(text: string): string {
  const [first = ""] = text;
  // the whole text is lowercased at once: the form of a final sigma depends on the letters before it
  return titleCase(first) + text.toLowerCase().slice(first.toLowerCase().length);
}

/** JavaScript has no title case; it differs from upper case in a few ligatures and digraphs, which become "Dz" and the like. */
function titleCase(letter: string): string {
  const digraph = "ǄǅǆǇǈǉǊǋǌǱǲǳ".indexOf(letter);
  if (letter !== "" && digraph >= 0) return "ǅǅǅǈǈǈǋǋǋǲǲǲ"[digraph] ?? letter;
  const upper = [...letter.toUpperCase()];
  const cased = upper.findIndex((one) => one.toLowerCase() !== one); // "ŉ" becomes an apostrophe and an N
  return upper.map((one, i) => (i > cased ? one.toLowerCase() : one)).join("");
}

/** `len(text)`: code points. */
export function length(text: string): number {
  let count = 0;
  for (const _ of text) count++;
  return count;
}
