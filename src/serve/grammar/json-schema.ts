import { ApiError } from "../errors.js";
import { either, escaped, GrammarRules, literal, repeated } from "./gbnf.js";
import { insideJson, regexBody } from "./regex.js";

const MOST_DEPTH = 64;
/** Say something to people, nothing about what is valid. */
const ANNOTATIONS = new Set(
  "$schema $id $anchor $comment $defs definitions title description default examples deprecated readOnly writeOnly".split(
    " ",
  ),
);
const TYPES = ["string", "number", "integer", "boolean", "null", "array", "object"] as const;
type Type = (typeof TYPES)[number];
/** Keywords by the type that they speak of. */
const KEYWORDS: Readonly<Record<Type, readonly string[]>> = {
  string: ["minLength", "maxLength", "pattern", "format"],
  number: ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"],
  integer: ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"],
  ...{ boolean: [], null: [] },
  array: ["items", "prefixItems", "minItems", "maxItems"],
  object: ["properties", "required", "additionalProperties"],
};
const COMBINING = new Set(["type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"]);
const FORMATS: Readonly<Record<string, string>> = {
  date: "^\\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\\d|3[01])$",
  time: "^([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d+)?(Z|[+\\-]([01]\\d|2[0-3]):[0-5]\\d)$",
  "date-time":
    "^\\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\\d|3[01])T([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d+)?(Z|[+\\-]([01]\\d|2[0-3]):[0-5]\\d)$",
  uuid: "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
  email:
    "^[A-Za-z0-9_+\\-]+(\\.[A-Za-z0-9_+\\-]+)*@[A-Za-z0-9]([A-Za-z0-9\\-]*[A-Za-z0-9])?(\\.[A-Za-z0-9]([A-Za-z0-9\\-]*[A-Za-z0-9])?)+$",
  ipv4: "^((25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)\\.){3}(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)$",
  uri: "^[a-z][a-z0-9+\\-.]*:[!#$%&'()*+,\\-./0-9:;=?@A-Z_a-z~]+$",
};

/**
 * JSON that a schema takes, as the body of a rule: what it lets through is valid, and complete when it ends. Properties come in
 * the order in which the schema lists them, others only where it asks for them; `oneOf` is taken as `anyOf`.
 * @param param where the schema stands in the request
 * @throws ApiError 400 naming what a grammar cannot say (`not`, `multipleOf`, `uniqueItems` …)
 */
export function jsonBody(rules: GrammarRules, schema: unknown, param: string): string {
  return new SchemaWriter(rules, schema, param).body(schema, "", 0);
}

/** A grammar of JSON: of a schema, or of any object. */
export function jsonGrammar(schema: unknown, param: string): string {
  const rules = new GrammarRules();
  rules.add(jsonBody(rules, schema ?? { type: "object" }, param), "root");
  return rules.toString();
}

class SchemaWriter {
  private readonly references = new Map<string, string>();

  constructor(
    private readonly rules: GrammarRules,
    private readonly root: unknown,
    private readonly param: string,
  ) {}

  body(schema: unknown, at: string, depth: number): string {
    if (depth > MOST_DEPTH) throw this.refuse(at, `nests deeper than ${MOST_DEPTH}`);
    if (schema === true) return this.any();
    if (schema === false || typeof schema !== "object" || schema === null || Array.isArray(schema))
      throw this.refuse(at, "is no schema that anything could match");
    return this.ofObject(schema as Readonly<Record<string, unknown>>, at, depth);
  }

  private ofObject(schema: Readonly<Record<string, unknown>>, at: string, depth: number): string {
    const asserted = Object.keys(schema).filter((key) => !ANNOTATIONS.has(key));
    const unknown = asserted.find((key) => !COMBINING.has(key) && !TYPES.some((type) => KEYWORDS[type].includes(key)));
    if (unknown !== undefined) throw this.refuse(`${at}/${unknown}`, "is not supported in a schema");
    const combining = asserted.filter((key) => COMBINING.has(key) && key !== "type");
    const [first] = combining;
    if (first === undefined) return this.ofTypes(schema, asserted, at, depth);
    if (combining.length > 1) throw this.refuse(`${at}/${combining[1]}`, `cannot stand beside ${first}`);
    const beside = asserted.find(
      (key) => key !== first && !(key === "type" && (first === "enum" || first === "const")),
    );
    const value = schema[first];
    if (beside !== undefined) {
      if (first !== "anyOf" && first !== "oneOf") throw this.refuse(`${at}/${beside}`, `cannot stand beside ${first}`);
      return this.merged(schema, first, at, depth);
    }
    switch (first) {
      case "$ref":
        return this.reference(value, at, depth);
      case "const":
        return literal(JSON.stringify(value));
      case "enum":
        if (!Array.isArray(value) || value.length === 0) throw this.refuse(`${at}/enum`, "must list something");
        return either(value.map((one) => literal(JSON.stringify(one))));
      default: {
        if (!Array.isArray(value) || value.length === 0) throw this.refuse(`${at}/${first}`, "must list schemas");
        if (first === "allOf" && value.length > 1) throw this.refuse(`${at}/allOf`, "may have one schema only");
        return either(value.map((one, i) => this.body(one, `${at}/${first}/${i}`, depth + 1)));
      }
    }
  }

  /** Keywords beside a list of alternatives hold for each of them. */
  private merged(schema: Readonly<Record<string, unknown>>, key: "anyOf" | "oneOf", at: string, depth: number): string {
    const { [key]: list, ...shared } = schema;
    if (!Array.isArray(list) || list.length === 0) throw this.refuse(`${at}/${key}`, "must list schemas");
    const bodies = list.map((one: unknown, i) => {
      const own = typeof one === "object" && one !== null ? one : {};
      const clash = Object.keys(own).find((name) => name in shared && !ANNOTATIONS.has(name));
      if (clash !== undefined) throw this.refuse(`${at}/${key}/${i}/${clash}`, "stands beside the list too");
      return this.body({ ...shared, ...own }, `${at}/${key}/${i}`, depth + 1);
    });
    return either(bodies);
  }

  private ofTypes(
    schema: Readonly<Record<string, unknown>>,
    asserted: readonly string[],
    at: string,
    depth: number,
  ): string {
    const implied = TYPES.find((type) => type !== "integer" && asserted.some((key) => KEYWORDS[type].includes(key)));
    const given = schema.type === undefined ? (implied === undefined ? [] : [implied]) : [schema.type].flat();
    if (given.length === 0) return this.any();
    const types = given.map((type) => {
      if (!TYPES.includes(type as Type)) throw this.refuse(`${at}/type`, `is no type: ${JSON.stringify(type)}`);
      return type as Type;
    });
    const idle = asserted.find((key) => key !== "type" && !types.some((type) => KEYWORDS[type].includes(key)));
    if (idle !== undefined) throw this.refuse(`${at}/${idle}`, `says nothing about ${types.join(" or ")}`);
    return either(
      types.map((type) => {
        switch (type) {
          case "string":
            return this.string(schema, at);
          case "number":
          case "integer":
            return this.number(schema, type === "integer", at);
          case "array":
            return this.array(schema, at, depth);
          case "object":
            return this.object(schema, at, depth);
          default:
            return type === "null" ? '"null"' : '("true" | "false")';
        }
      }),
    );
  }

  private string(schema: Readonly<Record<string, unknown>>, at: string): string {
    const character = this.character();
    const { pattern, format } = schema;
    if (pattern !== undefined || format !== undefined) {
      const beside = ["minLength", "maxLength", ...(pattern === undefined ? [] : ["format"])].find(
        (key) => key in schema,
      );
      if (beside !== undefined) throw this.refuse(`${at}/${beside}`, "cannot stand beside pattern or format");
      const source = pattern ?? FORMATS[`${format}`];
      if (typeof source !== "string")
        throw this.refuse(
          `${at}/${pattern === undefined ? "format" : "pattern"}`,
          `is not supported: ${JSON.stringify(pattern ?? format)}`,
        );
      return this.rules.add(`"\\"" ${regexBody(source, `${this.param}${at}`, insideJson(character))} "\\""`);
    }
    const [min, max] = [this.count(schema, "minLength", at) ?? 0, this.count(schema, "maxLength", at)];
    if (max !== undefined && max < min) throw this.refuse(`${at}/maxLength`, "is less than minLength");
    if (min === 0 && max === undefined) return this.rules.once("string", () => `"\\"" ${character}* "\\""`);
    return `"\\"" ${repeated(character, min, max)} "\\""`;
  }

  private number(schema: Readonly<Record<string, unknown>>, whole: boolean, at: string): string {
    const bound = (key: string) => {
      const value = schema[key];
      if (value === undefined) return undefined;
      if (typeof value !== "number" || !Number.isFinite(value)) throw this.refuse(`${at}/${key}`, "must be a number");
      if (!whole && !Number.isInteger(value)) throw this.refuse(`${at}/${key}`, "must be whole");
      return value;
    };
    const [minimum, above, maximum, below] = ["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"].map(bound);
    const bounded = [minimum, above, maximum, below].some((value) => value !== undefined);
    if (!bounded) {
      const integer = this.rules.once("integer", () => '"-"? ("0" | [1-9] [0-9]{0,15})');
      return whole
        ? integer
        : this.rules.once("number", () => `${integer} ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?`);
    }
    if (!whole && (above !== undefined || below !== undefined))
      throw this.refuse(
        `${at}/${above === undefined ? "exclusiveMaximum" : "exclusiveMinimum"}`,
        "is only for integers",
      );
    const lows = [
      minimum === undefined ? [] : [Math.ceil(minimum)],
      above === undefined ? [] : [Math.floor(above) + 1],
    ].flat();
    const highs = [
      maximum === undefined ? [] : [Math.floor(maximum)],
      below === undefined ? [] : [Math.ceil(below) - 1],
    ].flat();
    const low = lows.length === 0 ? undefined : BigInt(Math.max(...lows));
    const high = highs.length === 0 ? undefined : BigInt(Math.min(...highs));
    if (low !== undefined && high !== undefined && low > high) throw this.refuse(at, "leaves no number");
    return whole ? integersBetween(low, high) : numbersBetween(low, high);
  }

  private array(schema: Readonly<Record<string, unknown>>, at: string, depth: number): string {
    const { items = true, prefixItems = [] } = schema;
    if (!Array.isArray(prefixItems)) throw this.refuse(`${at}/prefixItems`, "must list schemas");
    const [min, max] = [this.count(schema, "minItems", at) ?? 0, this.count(schema, "maxItems", at)];
    if (max !== undefined && max < min) throw this.refuse(`${at}/maxItems`, "is less than minItems");
    const space = this.space();
    const comma = this.rules.once("comma", () => `"," ${space}`);
    const first = prefixItems.map((one, i) => this.body(one, `${at}/prefixItems/${i}`, depth + 1));
    const open = items !== false && (max === undefined || max > first.length);
    if (min > first.length && !open) throw this.refuse(`${at}/minItems`, "is more than there can be");
    const [more, most] = [Math.max(0, min - first.length), max === undefined ? undefined : max - first.length];
    const item = open ? this.rules.add(this.body(items, `${at}/items`, depth + 1)) : "";
    const rest = open ? repeated(`(${comma} ${item})`, more, most) : "";
    if (first.length > 0) {
      if (max !== undefined && max < first.length) throw this.refuse(`${at}/maxItems`, "is less than prefixItems");
      return `"[" ${space} ${first.join(` ${comma} `)} ${rest} ${space} "]"`;
    }
    if (!open) return `"[" ${space} "]"`;
    const some = `${item} ${repeated(`(${comma} ${item})`, Math.max(0, min - 1), max === undefined ? undefined : max - 1)}`;
    return `"[" ${space} ${min === 0 ? `(${some} ${space})?` : `${some} ${space}`} "]"`;
  }

  private object(schema: Readonly<Record<string, unknown>>, at: string, depth: number): string {
    const { properties = {}, required = [], additionalProperties } = schema;
    if (typeof properties !== "object" || properties === null || Array.isArray(properties))
      throw this.refuse(`${at}/properties`, "must be an object");
    if (!Array.isArray(required)) throw this.refuse(`${at}/required`, "must list names");
    const listed = new Map(Object.entries(properties));
    for (const name of required) if (!listed.has(name)) listed.set(`${name}`, additionalProperties ?? true);
    const space = this.space();
    const others = additionalProperties ?? listed.size === 0;
    const named = [...listed].map(([name, value]) => ({
      body: this.rules.add(
        `${literal(JSON.stringify(name))} ":" ${space} ${this.body(value, `${at}/properties/${name}`, depth + 1)}`,
      ),
      optional: !required.includes(name),
    }));
    const comma = this.rules.once("comma", () => `"," ${space}`);
    let [alone, after] = ['""', '""'];
    if (others !== false) {
      const key = this.otherKey([...listed.keys()]);
      const other = this.rules.add(`${key} ":" ${space} ${this.body(others, `${at}/additionalProperties`, depth + 1)}`);
      after = this.rules.add(`(${comma} ${other})*`);
      alone = this.rules.add(`(${other} ${after})?`);
    }
    for (const { body, optional } of named.reverse()) {
      const [withOwn, joined] = [`${body} ${after}`, `${comma} ${body} ${after}`];
      alone = this.rules.add(optional ? `${withOwn} | ${alone}` : withOwn);
      after = this.rules.add(optional ? `${joined} | ${after}` : joined);
    }
    return `"{" ${space} ${alone} ${space} "}"`;
  }

  /** A string that is none of some names: a second property of a listed name could be of another type. */
  private otherKey(names: readonly string[]): string {
    if (names.length === 0) return this.rules.once("string", () => `"\\"" ${this.character()}* "\\""`);
    const plain = /^[\x20\x21\x23-\x5b\x5d-\x7e\u00a0-\ud7ff]*$/;
    const beyond = (taken: readonly string[]): string => {
      const next = new Map<string, string[]>();
      for (const name of taken) {
        const [head, ...tail] = [...name];
        if (head !== undefined) next.set(head, [...(next.get(head) ?? []), tail.join("")]);
      }
      const others = `[^"\\\\\\x7f\\x00-\\x1f${[...next.keys()].map(escaped).join("")}]`;
      // after a name's end another letter must follow; no escapes, which could spell a name
      const free = `${others} [^"\\\\\\x7f\\x00-\\x1f]*`;
      const deeper = [...next].map(([head, tails]) => `${literal(head)} ${beyond(tails)}`);
      return this.rules.add([...(taken.includes("") ? [] : ['""']), free, ...deeper].join(" | "));
    };
    return this.rules.add(`"\\"" ${beyond(names.filter((name) => plain.test(name)))} "\\""`);
  }

  private reference(value: unknown, at: string, depth: number): string {
    const pointer = typeof value === "string" && /^#(\/.*)?$/.test(value) ? value.slice(1) : undefined;
    if (pointer === undefined) throw this.refuse(`${at}/$ref`, "must be within the schema (#/$defs/…)");
    const known = this.references.get(pointer);
    if (known !== undefined) return known;
    let target: unknown = this.root;
    for (const part of pointer.split("/").slice(1)) {
      const key = decodeURIComponent(part.replace(/%(?![0-9a-fA-F]{2})/g, "%25"))
        .replace(/~1/g, "/")
        .replace(/~0/g, "~");
      target =
        typeof target === "object" && target !== null && Object.hasOwn(target, key)
          ? (target as Record<string, unknown>)[key]
          : undefined;
    }
    if (target === undefined) throw this.refuse(`${at}/$ref`, `leads nowhere: ${value}`);
    const name = this.rules.add("");
    this.references.set(pointer, name);
    return this.rules.add(this.body(target, pointer, depth + 1), name);
  }

  private any(): string {
    const { rules } = this;
    return rules.once("any", () => {
      const [space, string] = [this.space(), rules.once("string", () => `"\\"" ${this.character()}* "\\""`)];
      const number = this.number({}, false, "");
      const list = `"[" ${space} (any ("," ${space} any)* ${space})? "]"`;
      const member = `${string} ":" ${space} any`;
      return `${string} | ${number} | "true" | "false" | "null" | ${list} | "{" ${space} (${member} ("," ${space} ${member})* ${space})? "}"`;
    });
  }

  private character(): string {
    const plain = '[^"\\\\\\x7f\\x00-\\x1f]';
    return this.rules.once("char", () => `${plain} | "\\\\" (["\\\\/bfnrt] | "u" [0-9a-fA-F]{4})`);
  }

  /** Bounded: a model that is unsure could write blanks without end. */
  private space(): string {
    return this.rules.once("space", () => '" "? | "\\n" " "{0,16}');
  }

  private count(schema: Readonly<Record<string, unknown>>, key: string, at: string): number | undefined {
    const value = schema[key];
    if (value === undefined) return undefined;
    if (typeof value !== "number" || !Number.isInteger(value) || value < 0)
      throw this.refuse(`${at}/${key}`, "must be a whole number from 0");
    return value;
  }

  private refuse(at: string, why: string): ApiError {
    return new ApiError(400, `${this.param}${at}: ${why}`, { param: `${this.param}${at}`, code: "invalid_schema" });
  }
}

/** Whole numbers from one to another, both included; no bound where none is given. */
function integersBetween(low: bigint | undefined, high: bigint | undefined): string {
  const parts: string[] = [];
  if (low === undefined || low < 0n) {
    const [least, most] = [high === undefined || high >= 0n ? 1n : -high, low === undefined ? undefined : -low];
    parts.push(`"-" ${naturalsBetween(least, most)}`);
  }
  if (high === undefined || high >= 0n) parts.push(naturalsBetween(low === undefined || low < 0n ? 0n : low, high));
  return either(parts);
}

function naturalsBetween(low: bigint, high: bigint | undefined): string {
  const parts: string[] = [];
  const from = `${low}`;
  if (high === undefined) {
    parts.push(digitsBetween(from, "9".repeat(from.length)), `[1-9] [0-9]{${from.length},${from.length + 15}}`);
    return either(parts);
  }
  const to = `${high}`;
  for (let length = from.length; length <= to.length; length++) {
    const first = length === from.length ? from : `1${"0".repeat(length - 1)}`;
    parts.push(digitsBetween(first, length === to.length ? to : "9".repeat(length)));
  }
  return either(parts);
}

/** Between two numbers of as many digits. */
function digitsBetween(from: string, to: string): string {
  const [a, b] = [from[0] ?? "", to[0] ?? ""];
  const digits = (first: string, last: string) => (first === last ? `"${first}"` : `[${first}-${last}]`);
  if (from.length === 1) return digits(a, b);
  const [restA, restB] = [from.slice(1), to.slice(1)];
  const [zeros, nines] = ["0".repeat(restA.length), "9".repeat(restA.length)];
  const free = restA.length === 1 ? "[0-9]" : `[0-9]{${restA.length}}`;
  if (restA === zeros && restB === nines) return `${digits(a, b)} ${free}`;
  if (a === b) return `"${a}" ${digitsBetween(restA, restB)}`;
  const parts: string[] = [];
  const [next, before] = [restA === zeros ? a : `${Number(a) + 1}`, restB === nines ? b : `${Number(b) - 1}`];
  if (restA !== zeros) parts.push(`"${a}" ${digitsBetween(restA, nines)}`);
  if (Number(next) <= Number(before)) parts.push(`${digits(next, before)} ${free}`);
  if (restB !== nines) parts.push(`"${b}" ${digitsBetween(zeros, restB)}`);
  return either(parts);
}

/** Numbers between two whole ones, with digits after the point. */
function numbersBetween(low: bigint | undefined, high: bigint | undefined): string {
  const [fraction, zeros] = ['("." [0-9]{1,16})?', '("." "0"{1,16})?'];
  const parts: string[] = [];
  if (low === undefined || low < 0n) {
    const least = high === undefined || high >= 0n ? 0n : -high;
    if (low === undefined) parts.push(`"-" ${naturalsBetween(least, undefined)} ${fraction}`);
    else {
      if (-low - 1n >= least) parts.push(`"-" ${naturalsBetween(least, -low - 1n)} ${fraction}`);
      parts.push(`"-" "${-low}" ${zeros}`);
    }
  }
  if (high === undefined || high >= 0n) {
    const least = low === undefined || low < 0n ? 0n : low;
    if (high === undefined) parts.push(`${naturalsBetween(least, undefined)} ${fraction}`);
    else {
      if (high - 1n >= least) parts.push(`${naturalsBetween(least, high - 1n)} ${fraction}`);
      parts.push(`"${high}" ${zeros}`);
    }
  }
  return either(parts);
}
