import { isDeepStrictEqual } from "node:util";
import { isRecord, matches, type Schema } from "./schema.js";

type Merge = (a: unknown, b: unknown) => unknown;
const larger: Merge = (a, b) => Math.max(Number(a), Number(b));
const smaller: Merge = (a, b) => Math.min(Number(a), Number(b));
/** How two values of a keyword are merged. Keywords that depend on others are merged separately. */
export const MERGE: Readonly<Record<string, Merge>> = {
  minimum: larger,
  exclusiveMinimum: larger,
  minLength: larger,
  minItems: larger,
  minProperties: larger,
  maximum: smaller,
  exclusiveMaximum: smaller,
  maxLength: smaller,
  maxItems: smaller,
  maxProperties: smaller,
  uniqueItems: (a, b) => a === true || b === true,
  multipleOf: (a, b) => (Number(a) % Number(b) === 0 ? a : Number(b) % Number(a) === 0 ? b : Number(a) * Number(b)),
  required: (a, b) => [...new Set([...(a as unknown[]), ...(b as unknown[])])],
  not: (a, b) => [...(a as unknown[]), ...(b as unknown[])],
  enum: (a, b) => (a as unknown[]).filter((one) => (b as unknown[]).some((other) => isDeepStrictEqual(one, other))),
  propertyNames: (a, b) => combined(a, b),
};

/** A schema that is as strict as both. */
function combined(a: unknown, b: unknown): unknown {
  if (a === true || isDeepStrictEqual(a, b)) return b;
  if (b === true) return a;
  if (a === false || b === false) return false;
  const parts = [a, b].flatMap((one) =>
    isRecord(one) && Array.isArray(one.allOf) && Object.keys(one).length === 1 ? (one.allOf as unknown[]) : [one],
  );
  const different = parts.filter((one, i) => parts.findIndex((other) => isDeepStrictEqual(one, other)) === i);
  return different.length === 1 ? different[0] : { allOf: different };
}

export function commonTypes(a: unknown, b: unknown): unknown[] | undefined {
  if (a === undefined && b === undefined) return undefined;
  if (a === undefined || b === undefined) return [a ?? b].flat();
  const [own, other] = [[a].flat(), [b].flat()];
  const both = own.filter((type) => other.includes(type) || (type === "integer" && other.includes("number")));
  const integers = other.includes("integer") && own.includes("number") && !both.includes("number") ? ["integer"] : [];
  return [...new Set([...both, ...integers])];
}

/** The schema of a property. */
export function propertySchema(schema: Schema, name: string): unknown {
  const { properties = {}, patternProperties = {}, additionalProperties = true } = schema;
  const schemas: unknown[] = Object.hasOwn(properties as object, name) ? [(properties as Schema)[name]] : [];
  for (const [pattern, own] of Object.entries(patternProperties as Schema))
    if (matches(pattern, name)) schemas.push(own);
  return schemas.length === 0 ? additionalProperties : schemas.reduce(combined, true);
}

export function mergeObjects(a: Schema, b: Schema, result: Record<string, unknown>): void {
  const constrains = (one: Schema) =>
    one.properties !== undefined || one.additionalProperties !== undefined || one.patternProperties !== undefined;
  if (!constrains(a) || !constrains(b)) return;
  const names = new Set([a, b].flatMap(({ properties = {} }) => Object.keys(properties as object)));
  result.properties = Object.fromEntries(
    [...names].map((name) => [name, combined(propertySchema(a, name), propertySchema(b, name))]),
  );
  if (a.additionalProperties !== undefined || b.additionalProperties !== undefined)
    result.additionalProperties = combined(a.additionalProperties ?? true, b.additionalProperties ?? true);
  const patterns: Record<string, unknown> = {};
  for (const [own, other] of [
    [a, b],
    [b, a],
  ] as const)
    for (const [pattern, schema] of Object.entries((own.patternProperties ?? {}) as Schema)) {
      const { [pattern]: same } = (other.patternProperties ?? {}) as Schema;
      patterns[pattern] = combined(schema, same ?? other.additionalProperties ?? true);
    }
  if (Object.keys(patterns).length > 0) result.patternProperties = patterns;
}

export function mergeArrays(a: Schema, b: Schema, result: Record<string, unknown>): void {
  const constrains = (one: Schema) => one.items !== undefined || one.prefixItems !== undefined;
  if (!constrains(a) || !constrains(b)) return;
  const prefixes = [a, b].map(({ prefixItems = [] }) => prefixItems as readonly unknown[]);
  const at = (one: Schema, i: number) => (one.prefixItems as unknown[] | undefined)?.[i] ?? one.items ?? true;
  const count = Math.max(...prefixes.map(({ length }) => length));
  if (count > 0) result.prefixItems = Array.from({ length: count }, (_, i) => combined(at(a, i), at(b, i)));
  result.items = combined(a.items ?? true, b.items ?? true);
}
