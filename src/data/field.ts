import { FormatError } from "../system/errors.js";

const isRecord = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null;

const kindOf = (value: unknown): string =>
  Array.isArray(value) ? "a list" : typeof value === "object" ? "a record" : `a ${typeof value}`;

/** The names of a record's fields, for messages. */
export const fieldNames = (record: unknown): string =>
  isRecord(record) && !Array.isArray(record) ? Object.keys(record).slice(0, 20).join(", ") : kindOf(record);

/** The column that a field's path begins with: the whole path, or what precedes one of its dots. */
export function columnOf(field: string, columns: readonly string[]): string | undefined {
  if (columns.includes(field)) return field;
  for (let dot = field.indexOf("."); dot >= 0; dot = field.indexOf(".", dot + 1))
    if (columns.includes(field.slice(0, dot))) return field.slice(0, dot);
  return undefined;
}

/**
 * The text in a field of a record. A dotted path leads into records, and into every record of a list: the texts of
 * `messages.content` are joined by line ends. A record that is itself a string is the text.
 * @returns undefined where the field is missing or null
 * @throws FormatError where it holds something other than text
 */
export function textIn(record: unknown, field: string, where: string): string | undefined {
  if (typeof record === "string") return record;
  const texts = [...leaves(record, field)].filter((value) => value !== undefined && value !== null);
  const other = texts.find((value) => typeof value !== "string");
  if (other !== undefined) {
    const inside = isRecord(other) && !Array.isArray(other) ? ` of ${Object.keys(other).slice(0, 20).join(", ")}` : "";
    throw new FormatError(
      `${where} has ${kindOf(other)}${inside} in the field "${field}", not text; name another with --field${inside === "" ? "" : `, for example ${field}.${Object.keys(other as object)[0]}`}`,
    );
  }
  return texts.length === 0 ? undefined : texts.join("\n");
}

function* leaves(value: unknown, path: string | undefined): Generator<unknown> {
  if (Array.isArray(value)) {
    for (const item of value) yield* leaves(item, path);
    return;
  }
  if (path === undefined) {
    yield value;
    return;
  }
  if (!isRecord(value)) return;
  const step = columnOf(path, Object.keys(value));
  if (step !== undefined) yield* leaves(value[step], step === path ? undefined : path.slice(step.length + 1));
}
