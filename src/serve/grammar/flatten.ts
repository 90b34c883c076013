import { isDeepStrictEqual } from "node:util";

export type Schema = Readonly<Record<string, unknown>>;

export const TYPES = ["string", "number", "integer", "boolean", "null", "array", "object"] as const;
export type Type = (typeof TYPES)[number];

/** What a schema says, told as it is found. */
export interface Reporter {
  /** For what is wrong with a schema. */
  refuse(at: string, why: string): Error;
  /** For what a grammar cannot say. @throws where nothing may be left to the model */
  leave(at: string, why: string): void;
}

/** What schemas do not say of values. */
const ANNOTATIONS = new Set(
  "$schema $id $anchor $comment $defs $vocabulary definitions title description default examples example deprecated readOnly writeOnly discriminator xml externalDocs".split(
    " ",
  ),
);
/** Keywords that no grammar says, where they say something. */
const UNSAID = [
  "if",
  "contains",
  "dependentRequired",
  "dependentSchemas",
  "dependencies",
  "unevaluatedItems",
  "$dynamicRef",
  "$recursiveRef",
] as const;
const MOST_ALTERNATIVES = 256;
/** Schemas that are looked at or merged while one is resolved: combinations multiply. */
const MOST_STEPS = 20_000;

const isRecord = (value: unknown): value is Schema =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** Resolves what schemas refer to and combine. */
export class Flattener {
  private steps = 0;
  /** Whether alternatives are looked at only to be told apart: those within them are, when they are written. */
  private isComparing = false;

  constructor(
    private readonly root: unknown,
    private readonly reporter: Reporter,
  ) {}

  /**
   * A schema as alternatives that refer to nothing and combine nothing, of which one must match; none where nothing can. `const` is
   * an `enum` there, tuples are `prefixItems`, and what several say of the same is said once.
   * @param through references that led here: one that leads back says nothing
   */
  alternatives(schema: unknown, at: string, through: ReadonlySet<string> = new Set()): Schema[] {
    this.step(at);
    if (schema === true) return [{}];
    if (schema === false) return [];
    if (!isRecord(schema)) throw this.reporter.refuse(at, "is no schema");
    const { $ref, allOf, anyOf, oneOf, unevaluatedProperties, ...own } = schema;
    let result: Schema[] = [{}];
    const narrow = (others: readonly Schema[]) => {
      result = result.flatMap((one) =>
        others.flatMap((other): Schema[] => {
          const both = this.merged(one, other, at);
          return both === undefined ? [] : [both];
        }),
      );
      if (result.length > MOST_ALTERNATIVES)
        throw this.reporter.refuse(at, `has more than ${MOST_ALTERNATIVES} alternatives`);
    };
    const found = $ref === undefined ? undefined : this.target($ref, at);
    if (found !== undefined) {
      const { target, pointer } = found;
      if (through.has(pointer)) return [];
      narrow(this.alternatives(target, pointer, new Set([...through, pointer])));
    }
    for (const [i, one] of this.list(allOf, `${at}/allOf`).entries())
      narrow(this.alternatives(one, `${at}/allOf/${i}`, through));
    narrow([this.normal(own, at)]);
    for (const [key, list] of [
      ["anyOf", anyOf],
      ["oneOf", oneOf],
    ] as const) {
      if (list === undefined) continue;
      const options = this.list(list, `${at}/${key}`).map((one, i) =>
        this.alternatives(one, `${at}/${key}/${i}`, through),
      );
      if (key === "oneOf" && !this.isComparing && !this.areApart(options, at))
        this.reporter.leave(`${at}/oneOf`, "has alternatives that may match together, which a grammar cannot tell");
      narrow(options.flat());
    }
    if (unevaluatedProperties === undefined) return result;
    return result.map((one) => ({ additionalProperties: unevaluatedProperties, ...one }));
  }

  private areApart(options: readonly (readonly Schema[])[], at: string): boolean {
    this.isComparing = true;
    try {
      return areDisjoint(options, (one) => this.alternatives(one, `${at}/oneOf`));
    } finally {
      this.isComparing = false;
    }
  }

  private step(at: string): void {
    if (++this.steps > MOST_STEPS) throw this.reporter.refuse(at, "combines more than can be resolved");
  }

  private list(value: unknown, at: string): readonly unknown[] {
    if (value === undefined) return [];
    if (!Array.isArray(value) || value.length === 0) throw this.reporter.refuse(at, "must list schemas");
    return value;
  }

  /** One schema's own keywords, each in one form. */
  private normal(given: Schema, at: string): Schema {
    const schema: Record<string, unknown> = Object.fromEntries(
      Object.entries(given).filter(([key]) => !ANNOTATIONS.has(key)),
    );
    const { nullable, items, additionalItems, minimum, maximum, exclusiveMinimum, exclusiveMaximum } = schema;
    if ("const" in schema) {
      const { enum: values } = schema;
      const isListed = !Array.isArray(values) || values.some((one) => isDeepStrictEqual(one, schema.const));
      schema.enum = isListed ? [schema.const] : [];
      delete schema.const;
    }
    if (nullable === true && schema.type !== undefined) schema.type = [...[schema.type].flat(), "null"];
    if (Array.isArray(items)) {
      schema.prefixItems = items;
      schema.items = additionalItems ?? true;
    }
    // draft 4 says whether a bound is itself left out
    if (exclusiveMinimum === true && minimum !== undefined) schema.exclusiveMinimum = minimum;
    if (exclusiveMaximum === true && maximum !== undefined) schema.exclusiveMaximum = maximum;
    for (const key of ["exclusiveMinimum", "exclusiveMaximum"])
      if (typeof schema[key] === "boolean") delete schema[key];
    for (const key of UNSAID)
      if (schema[key] !== undefined && !isDeepStrictEqual(schema[key], {}))
        this.reporter.leave(`${at}/${key}`, "is nothing that a grammar can say");
    if (schema.not !== undefined) schema.not = [schema.not];
    for (const key of ["properties", "patternProperties"])
      if (schema[key] !== undefined && !isRecord(schema[key]))
        throw this.reporter.refuse(`${at}/${key}`, "must be an object");
    for (const key of ["required", "enum", "prefixItems"])
      if (schema[key] !== undefined && !Array.isArray(schema[key]))
        throw this.reporter.refuse(`${at}/${key}`, "must be a list");
    return schema;
  }

  /** What both say; undefined where nothing can match both. */
  private merged(a: Schema, b: Schema, at: string): Schema | undefined {
    this.step(at);
    const result: Record<string, unknown> = { ...a };
    for (const [key, value] of Object.entries(b)) {
      if (!(key in a)) result[key] = value;
      else if (key in MERGE) result[key] = MERGE[key]?.(a[key], value);
      else if (!isDeepStrictEqual(a[key], value) && (key === "pattern" || key === "format"))
        this.reporter.leave(`${at}/${key}`, "is said twice, differently: a grammar cannot say both");
    }
    const types = commonTypes(a.type, b.type);
    if (types !== undefined) {
      if (types.length === 0) return undefined;
      result.type = types;
    }
    if (Array.isArray(result.enum) && result.enum.length === 0) return undefined;
    mergeObjects(a, b, result);
    mergeArrays(a, b, result);
    return result;
  }

  /** Where a reference leads; undefined where that is left to the model. */
  private target(reference: unknown, at: string): { readonly target: unknown; readonly pointer: string } | undefined {
    const leave = (why: string) => this.reporter.leave(`${at}/$ref`, why);
    if (typeof reference !== "string") throw this.reporter.refuse(`${at}/$ref`, "must be a text");
    const [base = "", fragment = ""] = reference.split("#", 2);
    const start = base === "" ? this.root : this.named(this.root, "$id", base);
    if (start === undefined) return void leave("must be within the schema (#/$defs/…)");
    if (fragment === "") return { target: start, pointer: base };
    const target = fragment.startsWith("/") ? pointedTo(start, fragment) : this.named(start, "$anchor", fragment);
    if (target === undefined) return void leave(`leads nowhere: ${reference.slice(0, 200)}`);
    return { target, pointer: fragment.startsWith("/") ? `${base}${fragment}` : `${base}#${fragment}` };
  }

  /** The schema that has a name. */
  private named(within: unknown, key: "$id" | "$anchor", name: string): unknown {
    if (typeof within !== "object" || within === null) return undefined;
    const { [key]: own } = within as Record<string, unknown>;
    if (own === name) return within;
    for (const inner of Object.values(within)) {
      if (key === "$anchor" && isRecord(inner) && inner.$id !== undefined) continue; // a document of its own
      const found = this.named(inner, key, name);
      if (found !== undefined) return found;
    }
    return undefined;
  }
}

/** What a JSON pointer leads to. */
function pointedTo(start: unknown, pointer: string): unknown {
  let target = start;
  for (const part of pointer.split("/").slice(1)) {
    const key = decoded(part).replace(/~1/g, "/").replace(/~0/g, "~");
    const isThere = typeof target === "object" && target !== null && Object.hasOwn(target, key);
    target = isThere ? (target as Record<string, unknown>)[key] : undefined;
  }
  return target;
}

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

type Both = (a: unknown, b: unknown) => unknown;
const larger: Both = (a, b) => Math.max(Number(a), Number(b));
const smaller: Both = (a, b) => Math.min(Number(a), Number(b));
/** What two keywords of the same name come to. Those that depend on others are merged apart. */
const MERGE: Readonly<Record<string, Both>> = {
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

/** A schema that says what two say. */
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

function commonTypes(a: unknown, b: unknown): unknown[] | undefined {
  if (a === undefined && b === undefined) return undefined;
  if (a === undefined || b === undefined) return [a ?? b].flat();
  const [own, other] = [[a].flat(), [b].flat()];
  const both = own.filter((type) => other.includes(type) || (type === "integer" && other.includes("number")));
  const integers = other.includes("integer") && own.includes("number") && !both.includes("number") ? ["integer"] : [];
  return [...new Set([...both, ...integers])];
}

/** What a schema says of a property. */
function ofProperty(schema: Schema, name: string): unknown {
  const { properties = {}, patternProperties = {}, additionalProperties = true } = schema;
  const said: unknown[] = Object.hasOwn(properties as object, name) ? [(properties as Schema)[name]] : [];
  for (const [pattern, own] of Object.entries(patternProperties as Schema)) if (matches(pattern, name)) said.push(own);
  return said.length === 0 ? additionalProperties : said.reduce(combined, true);
}

/** Whether an expression is found in a text; none is in one that JavaScript cannot read. */
export function matches(pattern: string, text: string): boolean {
  try {
    return new RegExp(pattern, "u").test(text);
  } catch {
    return false;
  }
}

function mergeObjects(a: Schema, b: Schema, result: Record<string, unknown>): void {
  const says = (one: Schema) =>
    one.properties !== undefined || one.additionalProperties !== undefined || one.patternProperties !== undefined;
  if (!says(a) || !says(b)) return;
  const names = new Set([a, b].flatMap(({ properties = {} }) => Object.keys(properties as object)));
  result.properties = Object.fromEntries(
    [...names].map((name) => [name, combined(ofProperty(a, name), ofProperty(b, name))]),
  );
  if (a.additionalProperties !== undefined || b.additionalProperties !== undefined)
    result.additionalProperties = combined(a.additionalProperties ?? true, b.additionalProperties ?? true);
  const patterns: Record<string, unknown> = {};
  for (const [own, other] of [
    [a, b],
    [b, a],
  ] as const)
    for (const [pattern, said] of Object.entries((own.patternProperties ?? {}) as Schema)) {
      const { [pattern]: same } = (other.patternProperties ?? {}) as Schema;
      patterns[pattern] = combined(said, same ?? other.additionalProperties ?? true);
    }
  if (Object.keys(patterns).length > 0) result.patternProperties = patterns;
}

function mergeArrays(a: Schema, b: Schema, result: Record<string, unknown>): void {
  const says = (one: Schema) => one.items !== undefined || one.prefixItems !== undefined;
  if (!says(a) || !says(b)) return;
  const prefixes = [a, b].map(({ prefixItems = [] }) => prefixItems as readonly unknown[]);
  const at = (one: Schema, i: number) => (one.prefixItems as unknown[] | undefined)?.[i] ?? one.items ?? true;
  const count = Math.max(...prefixes.map(({ length }) => length));
  if (count > 0) result.prefixItems = Array.from({ length: count }, (_, i) => combined(at(a, i), at(b, i)));
  result.items = combined(a.items ?? true, b.items ?? true);
}

/** The types that a schema speaks of, where it names none. */
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

/** The types of values that are written for a schema; all where it speaks of none. */
export function writtenTypes(schema: Schema): readonly unknown[] {
  const given =
    schema.type === undefined
      ? TYPES.filter((type) => KEYWORDS[type]?.some((key) => schema[key] !== undefined))
      : [schema.type].flat();
  return given.length > 0 ? given : TYPES.filter((type) => type !== "integer");
}

const acceptedTypes = (schema: Schema): readonly unknown[] =>
  schema.type === undefined ? TYPES : [schema.type].flat();

/** Whether no value that is written for one of several schemas can match another of them. */
function areDisjoint(
  options: readonly (readonly Schema[])[],
  resolve: (schema: unknown) => readonly Schema[],
): boolean {
  const apart = (own: Schema, other: Schema, depth: number): boolean => {
    const accepted = acceptedTypes(other);
    const shared = writtenTypes(own).filter(
      (type) =>
        accepted.includes(type) ||
        (type === "integer" && accepted.includes("number")) ||
        (type === "number" && accepted.includes("integer")),
    );
    if (shared.length === 0) return true;
    if (Array.isArray(own.enum)) return own.enum.every((value) => !accepts(other, value));
    if (Array.isArray(other.enum)) return other.enum.every((value) => !accepts(own, value));
    return shared.every((type) => type === "object" && objectsApart(own, other, depth));
  };
  const objectsApart = (own: Schema, other: Schema, depth: number): boolean => {
    if (depth > 2) return false;
    const differs = (a: Schema, b: Schema) =>
      ((a.required ?? []) as string[]).some((name) => {
        const [mine, theirs] = [ofProperty(a, name), ofProperty(b, name)];
        if (theirs === false) return true;
        if (theirs === true || mine === true) return false;
        const theirOptions = resolve(theirs);
        return resolve(mine).every((one) => theirOptions.every((two) => apart(one, two, depth + 1)));
      });
    return differs(own, other) || differs(other, own);
  };
  return options.every((own, i) =>
    options.every((other, j) => i === j || own.every((one) => other.every((two) => apart(one, two, 0)))),
  );
}

/** Whether a schema takes a value, by what it says of values that have no others in them. */
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
