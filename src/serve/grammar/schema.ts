import { isDeepStrictEqual } from "node:util";

export type Schema = Readonly<Record<string, unknown>>;

export const TYPES = ["string", "number", "integer", "boolean", "null", "array", "object"] as const;
export type Type = (typeof TYPES)[number];

/** Is told what is wrong with a schema, or beyond a grammar. */
export interface Reporter {
  /** An error for a schema that is wrong. */
  refuse(at: string, why: string): Error;
  /** Leaves to the model what a grammar cannot express. @throws where that is not allowed */
  leaveToModel(at: string, why: string): void;
}

export const isRecord = (value: unknown): value is Schema =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** Whether a regular expression matches somewhere in a text; not where JavaScript cannot read the expression. */
export function matches(pattern: string, text: string): boolean {
  try {
    return new RegExp(pattern, "u").test(text);
  } catch {
    return false;
  }
}

/** Keywords that show which types a schema is about, where it names none. */
const KEYWORDS: Readonly<Record<string, readonly string[]>> = {
  string: ["minLength", "maxLength", "pattern", "format"],
  number: ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"],
  array: ["items", "prefixItems", "minItems", "maxItems", "uniqueItems"],
  object: [
    "properties",
    "required",
    "additionalProperties",
    "patternProperties",
    "propertyNames",
    "minProperties",
    "maxProperties",
  ],
};

/** The types of values to write for a schema; all where it is about none. */
export function writtenTypes(schema: Schema): readonly unknown[] {
  const types =
    schema.type === undefined
      ? TYPES.filter((type) => KEYWORDS[type]?.some((key) => schema[key] !== undefined))
      : [schema.type].flat();
  return types.length > 0 ? types : TYPES.filter((type) => type !== "integer");
}

/** The types of values that a schema accepts. */
export const acceptedTypes = (schema: Schema): readonly unknown[] =>
  schema.type === undefined ? TYPES : [schema.type].flat();

/** Whether a schema accepts a value, as far as that does not depend on values inside it. */
export function accepts(schema: Schema, value: unknown): boolean {
  const types = acceptedTypes(schema);
  if (Array.isArray(schema.enum) && !schema.enum.some((one) => isDeepStrictEqual(one, value))) return false;
  if (!typesOf(value).some((type) => types.includes(type))) return false;
  if (typeof value === "number") {
    const { minimum, exclusiveMinimum, maximum, exclusiveMaximum, multipleOf } = schema;
    const bounds = [
      [minimum, (bound: number) => value >= bound],
      [exclusiveMinimum, (bound: number) => value > bound],
      [maximum, (bound: number) => value <= bound],
      [exclusiveMaximum, (bound: number) => value < bound],
      [multipleOf, (step: number) => Number.isInteger(value / step)],
    ] as const;
    return bounds.every(([bound, holds]) => typeof bound !== "number" || holds(bound));
  }
  if (typeof value === "string") {
    const { minLength, maxLength, pattern } = schema;
    const { length } = [...value];
    if ((typeof minLength === "number" && length < minLength) || (typeof maxLength === "number" && length > maxLength))
      return false;
    return typeof pattern !== "string" || matches(pattern, value);
  }
  if (isRecord(value)) return ((schema.required ?? []) as string[]).every((name) => Object.hasOwn(value, name));
  return true;
}

function typesOf(value: unknown): readonly Type[] {
  if (value === null) return ["null"];
  if (Array.isArray(value)) return ["array"];
  if (typeof value === "number") return Number.isInteger(value) ? ["integer", "number"] : ["number"];
  return [typeof value as Type];
}

/** The value of a keyword that counts something; undefined where the schema lacks it. @throws where it is not a count */
export function countKeyword(schema: Schema, key: string, at: string, reporter: Reporter): number | undefined {
  const value = schema[key];
  if (value === undefined) return undefined;
  if (typeof value !== "number" || !Number.isInteger(value) || value < 0)
    throw reporter.refuse(`${at}/${key}`, "must be a whole number from 0");
  return value;
}
