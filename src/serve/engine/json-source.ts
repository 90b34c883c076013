/** Parts of JSON as they are written: numbers beyond 2^53 do not survive being read. */

/** The members of an object, or the elements of an array, that is valid JSON. */
function partsOf(json: string): string[] {
  const inner = json.trim().slice(1, -1);
  const parts: string[] = [];
  let [from, depth, isText] = [0, 0, false];
  for (let i = 0; i < inner.length; i++) {
    const character = inner[i];
    if (isText) {
      if (character === "\\") i++;
      else if (character === '"') isText = false;
    } else if (character === '"') isText = true;
    else if (character === "{" || character === "[") depth++;
    else if (character === "}" || character === "]") depth--;
    else if (character === "," && depth === 0) {
      parts.push(inner.slice(from, i));
      from = i + 1;
    }
  }
  return [...parts, inner.slice(from)];
}

/** The elements of an array that is valid JSON. */
export const elementSources = (array: string): string[] => partsOf(array);

/** The value of a member of an object that is valid JSON; undefined where it has none of this name. */
export function memberSource(object: string, name: string): string | undefined {
  for (const part of partsOf(object)) {
    const [, key = '""', value] = /^\s*("(?:[^"\\]|\\.)*")\s*:\s*(.*?)\s*$/s.exec(part) ?? [];
    if (JSON.parse(key) === name) return value;
  }
  return undefined;
}
