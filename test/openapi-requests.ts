import fc from "fast-check";

export type Json = Readonly<Record<string, unknown>>;

/** A request as a document allows it, or nearly. */
export interface GeneratedRequest {
  readonly method: string;
  /** With its parameters filled in. */
  readonly path: string;
  /** What it is called in the document. */
  readonly operation: string;
  readonly contentType: string | undefined;
  readonly body: string | undefined;
}

/** Own values of fields and parameters, by their names: ids that exist, lengths that do not take long. */
export type Known = Readonly<Record<string, fc.Arbitrary<unknown>>>;

const ANYTHING = fc.oneof(
  fc.string({ maxLength: 20 }),
  fc.integer(),
  fc.double(),
  fc.boolean(),
  fc.constant(null),
  fc.array(fc.string({ maxLength: 5 }), { maxLength: 3 }),
  fc.object({ maxDepth: 1, maxKeys: 3 }),
);
const DEEPEST = 5;

/** Requests that an OpenAPI 3.1 document describes. @param strange of how many values one is something else than described */
export function requestsOf(document: Json, known: Known = {}, strange = 40): fc.Arbitrary<GeneratedRequest> {
  const values = new Values(document, known, strange);
  const operations = Object.entries(document.paths as Record<string, Record<string, Json>>).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method: method.toUpperCase(), operation })),
  );
  return fc.oneof(
    ...operations.map(({ path, method, operation }) => {
      const parameters = (operation.parameters ?? []) as readonly Json[];
      const given = fc.record(
        Object.fromEntries(
          parameters.map(({ name, schema }) => [`${name}`, known[`${name}`] ?? values.of(schema as Json, 0)]),
        ),
        { requiredKeys: parameters.filter(({ required }) => required).map(({ name }) => `${name}`) },
      ) as fc.Arbitrary<Record<string, unknown>>;
      return fc.tuple(given, bodyOf(operation, values)).map(([own, { contentType, body }]): GeneratedRequest => {
        const text = (name: string) => encodeURIComponent(`${own[name] ?? ""}`.replace(/\p{Surrogate}/gu, ""));
        const query = parameters.filter(({ in: where, name }) => where === "query" && own[`${name}`] !== undefined);
        const filled = path.replace(/\{(\w+)\}/g, (_, name: string) => text(name));
        const search = query.map(({ name }) => `${name}=${text(`${name}`)}`).join("&");
        return {
          method,
          path: search === "" ? filled : `${filled}?${search}`,
          contentType,
          body,
          operation: `${operation.operationId}`,
        };
      });
    }),
  );
}

function bodyOf(operation: Json, values: Values): fc.Arbitrary<Pick<GeneratedRequest, "contentType" | "body">> {
  const { content } = (operation.requestBody ?? {}) as { content?: Record<string, { schema: Json }> };
  const json = content?.["application/json"];
  if (json !== undefined) {
    const written = values.of(json.schema, 0).map((value) => JSON.stringify(value) ?? "");
    const body = fc.oneof({ weight: 30, arbitrary: written }, { weight: 1, arbitrary: fc.string({ maxLength: 60 }) });
    return body.map((text) => ({ contentType: "application/json", body: text }));
  }
  const contentType = Object.keys(content ?? {})[0];
  if (contentType === undefined) return fc.constant({ contentType: undefined, body: undefined });
  return fc.string({ maxLength: 200 }).map((body) => ({ contentType, body }));
}

/** Values that JSON Schemas describe, as far as our documents use them. */
class Values {
  constructor(
    private readonly document: Json,
    private readonly known: Known,
    private readonly strange: number,
  ) {}

  of(schema: Json, depth: number): fc.Arbitrary<unknown> {
    const good = this.described(schema, depth);
    return this.strange === 0
      ? good
      : fc.oneof({ weight: this.strange, arbitrary: good }, { weight: 1, arbitrary: ANYTHING });
  }

  private described(schema: Json, depth: number): fc.Arbitrary<unknown> {
    const { $ref, anyOf, oneOf, allOf, const: constant, enum: listed, type } = schema;
    if (typeof $ref === "string") return this.described(this.referenced($ref), depth);
    const alternatives = (anyOf ?? oneOf) as readonly Json[] | undefined;
    if (alternatives !== undefined) {
      const flat = alternatives.filter(({ type: kind }) => kind !== "object" && kind !== "array");
      const usable = depth >= DEEPEST && flat.length > 0 ? flat : alternatives;
      return fc.oneof(...usable.map((one) => this.described(one, depth)));
    }
    if (Array.isArray(allOf)) return this.described(Object.assign({}, ...(allOf as Json[])), depth);
    if (constant !== undefined) return fc.constant(constant);
    if (Array.isArray(listed)) return fc.constantFrom(...(listed as unknown[]));
    switch (type) {
      case "object":
        return this.object(schema, depth);
      case "array":
        return this.array(schema, depth);
      case "string":
        return stringOf(schema);
      case "integer":
      case "number":
        return numberOf(schema);
      case "boolean":
        return fc.boolean();
      case "null":
        return fc.constant(null);
      default:
        return ANYTHING;
    }
  }

  private referenced(reference: string): Json {
    const found = reference
      .replace(/^#\//, "")
      .split("/")
      .reduce<unknown>((at, key) => (at as Json)[key], this.document);
    return found as Json;
  }

  private object(schema: Json, depth: number): fc.Arbitrary<unknown> {
    const { properties = {}, required = [], additionalProperties, propertyNames } = schema;
    const names = Object.entries(properties as Record<string, Json>);
    const needed = required as readonly string[];
    const own = fc.record(
      Object.fromEntries(
        names
          .filter(([name]) => depth < DEEPEST || needed.includes(name))
          .map(([name, value]) => [name, this.known[name] ?? this.of(value, depth + 1)]),
      ),
      { requiredKeys: needed.filter((name) => names.some(([one]) => one === name)) },
    ) as fc.Arbitrary<object>;
    // most have few of the fields that may be left out: those that exclude each other would seldom pass
    const optional = names.map(([name]) => name).filter((name) => !needed.includes(name));
    const few = fc
      .tuple(own, fc.subarray(optional, { maxLength: Math.min(3, optional.length) }))
      .map(([whole, kept]) =>
        Object.fromEntries(Object.entries(whole).filter(([name]) => needed.includes(name) || kept.includes(name))),
      );
    const known: fc.Arbitrary<object> =
      optional.length > 6 ? fc.oneof({ weight: 4, arbitrary: few }, { weight: 1, arbitrary: own }) : own;
    if (additionalProperties === undefined || additionalProperties === false) return known;
    const value = additionalProperties === true ? ANYTHING : this.of(additionalProperties as Json, depth + 1);
    const name = propertyNames === undefined ? fc.string({ maxLength: 8 }) : stringOf(propertyNames as Json);
    return fc.tuple(known, fc.dictionary(name, value, { maxKeys: 3 })).map(([a, b]) => ({ ...b, ...a }));
  }

  private array({ items = {}, minItems = 0, maxItems = 3 }: Json, depth: number): fc.Arbitrary<unknown> {
    const least = Number(minItems);
    return fc.array(this.of(items as Json, depth + 1), {
      minLength: least,
      maxLength: Math.max(least, Math.min(Number(maxItems), least + 3)),
    });
  }
}

function stringOf({ pattern, minLength = 0, maxLength = 30, format }: Json): fc.Arbitrary<string> {
  if (format === "uuid") return fc.uuid();
  if (typeof pattern === "string" && format === undefined) return fc.stringMatching(new RegExp(pattern));
  const least = Number(minLength);
  return fc.string({ minLength: least, maxLength: Math.max(least, Math.min(30, Number(maxLength))), unit: "grapheme" });
}

function numberOf({ type, minimum, maximum, exclusiveMinimum, exclusiveMaximum }: Json): fc.Arbitrary<number> {
  const [low, high] = [Number(minimum ?? exclusiveMinimum ?? -1000), Number(maximum ?? exclusiveMaximum ?? 1000)];
  if (type === "integer")
    return fc.oneof(fc.integer({ min: low, max: Math.min(high, low + 8) }), fc.integer({ min: low, max: high }));
  return fc.double({
    min: low,
    max: high,
    noNaN: true,
    minExcluded: exclusiveMinimum !== undefined,
    maxExcluded: exclusiveMaximum !== undefined,
  });
}
