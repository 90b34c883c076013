import { isDeepStrictEqual } from "node:util";
import { areDisjoint } from "./disjoint.js";
import { commonTypes, MERGE, mergeArrays, mergeObjects } from "./merge.js";
import { isRecord, type Reporter, type Schema } from "./schema.js";

/** Keywords that do not constrain values. */
const ANNOTATIONS = new Set(
  "$schema $id $anchor $comment $defs $vocabulary definitions title description default examples example deprecated readOnly writeOnly discriminator xml externalDocs".split(
    " ",
  ),
);
/** Keywords that no grammar can express. */
const INEXPRESSIBLE = [
  "if",
  "contains",
  "dependentRequired",
  "dependentSchemas",
  "dependencies",
  "unevaluatedItems",
  "$dynamicRef",
  "$recursiveRef",
] as const;
const MAX_ALTERNATIVES = 256;
/** Schemas to visit or merge while one is resolved: combinations multiply. */
const MAX_STEPS = 20_000;

/** Resolves references and combinations of schemas. */
export class Flattener {
  private steps = 0;
  /** Whether alternatives are only compared: those inside them are checked when they are written. */
  private isComparing = false;

  constructor(
    private readonly root: unknown,
    private readonly reporter: Reporter,
  ) {}

  /**
   * A schema as alternatives without references and combinations, one of which must match; none where no value can. `const` becomes
   * `enum`, tuples become `prefixItems`, and keywords that are given several times are merged.
   * @param through references that led here: one that leads back adds nothing
   */
  alternatives(schema: unknown, at: string, through: ReadonlySet<string> = new Set()): Schema[] {
    this.step(at);
    if (schema === true) return [{}];
    if (schema === false) return [];
    if (!isRecord(schema)) throw this.reporter.refuse(at, "is not a schema");
    const { $ref, allOf, anyOf, oneOf, unevaluatedProperties, ...own } = schema;
    let result: Schema[] = [{}];
    const narrow = (others: readonly Schema[]) => {
      result = result.flatMap((one) =>
        others.flatMap((other): Schema[] => {
          const both = this.merged(one, other, at);
          return both === undefined ? [] : [both];
        }),
      );
      if (result.length > MAX_ALTERNATIVES)
        throw this.reporter.refuse(at, `has more than ${MAX_ALTERNATIVES} alternatives`);
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
        this.reporter.leaveToModel(
          `${at}/oneOf`,
          "has alternatives of which several may match, which a grammar cannot exclude",
        );
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
    if (++this.steps > MAX_STEPS) throw this.reporter.refuse(at, "combines more than can be resolved");
  }

  private list(value: unknown, at: string): readonly unknown[] {
    if (value === undefined) return [];
    if (!Array.isArray(value) || value.length === 0) throw this.reporter.refuse(at, "must list schemas");
    return value;
  }

  /** A schema's own keywords in a normal form. */
  private normal(own: Schema, at: string): Schema {
    const schema: Record<string, unknown> = Object.fromEntries(
      Object.entries(own).filter(([key]) => !ANNOTATIONS.has(key)),
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
    // draft 4 has booleans that exclude the bound
    if (exclusiveMinimum === true && minimum !== undefined) schema.exclusiveMinimum = minimum;
    if (exclusiveMaximum === true && maximum !== undefined) schema.exclusiveMaximum = maximum;
    for (const key of ["exclusiveMinimum", "exclusiveMaximum"])
      if (typeof schema[key] === "boolean") delete schema[key];
    for (const key of INEXPRESSIBLE)
      if (schema[key] !== undefined && !isDeepStrictEqual(schema[key], {}))
        this.reporter.leaveToModel(`${at}/${key}`, "cannot be expressed by a grammar");
    if (schema.not !== undefined) schema.not = [schema.not];
    for (const key of ["properties", "patternProperties"])
      if (schema[key] !== undefined && !isRecord(schema[key]))
        throw this.reporter.refuse(`${at}/${key}`, "must be an object");
    for (const key of ["required", "enum", "prefixItems"])
      if (schema[key] !== undefined && !Array.isArray(schema[key]))
        throw this.reporter.refuse(`${at}/${key}`, "must be a list");
    return schema;
  }

  /** A schema that is as strict as both; undefined where no value can match both. */
  private merged(a: Schema, b: Schema, at: string): Schema | undefined {
    this.step(at);
    const result: Record<string, unknown> = { ...a };
    for (const [key, value] of Object.entries(b)) {
      if (!(key in a)) result[key] = value;
      else if (key in MERGE) result[key] = MERGE[key]?.(a[key], value);
      else if (!isDeepStrictEqual(a[key], value) && (key === "pattern" || key === "format"))
        this.reporter.leaveToModel(`${at}/${key}`, "is given twice, differently: a grammar cannot express both");
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

  /** The schema that a reference leads to; undefined where it is left to the model. */
  private target(reference: unknown, at: string): { readonly target: unknown; readonly pointer: string } | undefined {
    const leave = (why: string) => this.reporter.leaveToModel(`${at}/$ref`, why);
    if (typeof reference !== "string") throw this.reporter.refuse(`${at}/$ref`, "must be a string");
    const [base = "", fragment = ""] = reference.split("#", 2);
    const start = base === "" ? this.root : this.named(this.root, "$id", base);
    if (start === undefined) return void leave("must be within the schema (#/$defs/…)");
    if (fragment === "") return { target: start, pointer: base };
    const target = fragment.startsWith("/") ? pointedTo(start, fragment) : this.named(start, "$anchor", fragment);
    if (target === undefined) return void leave(`leads nowhere: ${reference.slice(0, 200)}`);
    return { target, pointer: fragment.startsWith("/") ? `${base}${fragment}` : `${base}#${fragment}` };
  }

  /** The schema within another that has a name. */
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

/** The value that a JSON pointer leads to (RFC 6901). */
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
