import { ApiError } from "../errors.js";
import { Flattener } from "./flatten.js";
import { either, type GrammarRules, literal, repeated } from "./gbnf.js";
import { commaRule, integerRule, numberRule, spaceRule } from "./json-rules.js";
import { integerBody, isBeyond, multiplesBody, type NumberBounds, numberBody } from "./numbers.js";
import { ObjectWriter, type SchemaRules } from "./objects.js";
import { accepts, countKeyword, type Schema, TYPES, type Type, writtenTypes } from "./schema.js";
import { StringWriter } from "./strings.js";

const MAX_DEPTH = 64;
/** Values nested more deeply cannot be walked. */
const MAX_NESTING = 256;

export interface SchemaOptions {
  /** The request's field that the schema comes from. */
  readonly param: string;
  /** Whether to refuse what a grammar cannot express, rather than to leave it to the model. */
  readonly isStrict: boolean;
}

/**
 * A body for the JSON that a schema accepts. If strict, whatever it matches is valid. Properties come in the order in which the schema
 * lists them, other properties only where it asks for them.
 * @throws ApiError 400 naming what is wrong with a schema, and what a grammar cannot express of a strict one (`not`, `if`, `contains` …)
 */
export function jsonBody(rules: GrammarRules, schema: unknown, options: SchemaOptions): string {
  return new SchemaWriter(rules, schema, options).whole();
}

class SchemaWriter implements SchemaRules {
  private readonly known = new Map<string, string>();
  private readonly flattener: Flattener;
  private readonly strings: StringWriter;
  private readonly objects: ObjectWriter;
  /** The first place where no value can match. */
  private emptyAt: string | undefined;

  constructor(
    private readonly rules: GrammarRules,
    private readonly root: unknown,
    private readonly options: SchemaOptions,
  ) {
    this.checkNesting(root, 0);
    this.flattener = new Flattener(root, this);
    this.strings = new StringWriter(rules, this, options.param);
    this.objects = new ObjectWriter(rules, this, this.flattener, this.strings);
  }

  refuse(at: string, why: string): ApiError {
    const param = `${this.options.param}${at}`;
    return new ApiError(400, `${param}: ${why}`, { param, code: "invalid_schema" });
  }

  leaveToModel(at: string, why: string): void {
    if (this.options.isStrict) throw this.refuse(at, why);
  }

  whole(): string {
    const rule = this.ruleOf(this.root, "", 0);
    if (rule === undefined) throw this.refuse(this.emptyAt ?? "", "no value can match this schema");
    return rule;
  }

  private checkNesting(value: unknown, depth: number): void {
    if (typeof value !== "object" || value === null) return;
    if (depth > MAX_NESTING) throw this.refuse("", `nests deeper than ${MAX_NESTING}`);
    for (const inner of Object.values(value)) this.checkNesting(inner, depth + 1);
  }

  /** The rule of a schema, which is written once however often the schema occurs. @returns undefined where no value can match */
  ruleOf(schema: unknown, at: string, depth: number): string | undefined {
    if (depth > MAX_DEPTH) throw this.refuse(at, `nests deeper than ${MAX_DEPTH}`);
    const key = JSON.stringify(schema);
    const known = this.known.get(key);
    if (known !== undefined) return known;
    const alternatives = this.flattener.alternatives(schema, at);
    if (alternatives.length === 0) return undefined;
    const name = this.rules.add("");
    this.known.set(key, name);
    const bodies = alternatives.flatMap((alternative) => this.ofFlat(alternative, at, depth) ?? []);
    if (bodies.length === 0) {
      this.emptyAt ??= at;
      this.known.delete(key);
      this.rules.add('""', name); // nobody refers to it
      return undefined;
    }
    return this.rules.add(bodies.join(" | "), name);
  }

  /** @param schema without references and combinations @returns undefined where no value can match */
  private ofFlat(schema: Schema, at: string, depth: number): string | undefined {
    const excluded = this.excluded(schema, at);
    if (excluded === undefined) return undefined;
    if (Array.isArray(schema.enum)) {
      const { enum: _, ...others } = schema;
      const values = schema.enum.filter((value) => accepts(others, value) && !excluded.values.includes(value));
      return values.length === 0 ? undefined : either(values.map((value) => literal(JSON.stringify(value))));
    }
    if (excluded.values.length > 0) this.leaveToModel(`${at}/not`, "excludes values, which a grammar cannot express");
    const types = writtenTypes(schema).filter((type) => !excluded.types.includes(type));
    const isAny = schema.type === undefined && types.length === TYPES.length - 1;
    if (isAny) return this.any();
    const bodies = types.flatMap((type) => {
      if (!TYPES.includes(type as Type)) throw this.refuse(`${at}/type`, `is not a type: ${JSON.stringify(type)}`);
      return this.ofType(type as Type, schema, at, depth) ?? [];
    });
    return bodies.length === 0 ? undefined : either(bodies);
  }

  private ofType(type: Type, schema: Schema, at: string, depth: number): string | undefined {
    switch (type) {
      case "string":
        return this.strings.body(schema, at);
      case "number":
      case "integer":
        return this.number(schema, type === "integer", at);
      case "array":
        return this.array(schema, at, depth);
      case "object":
        return this.objects.body(schema, at, depth);
      default:
        return type === "null" ? '"null"' : '("true" | "false")';
    }
  }

  /** What `not` excludes, where a grammar can express it: types, and values of an enum. @returns undefined where it excludes all */
  private excluded(schema: Schema, at: string) {
    const [types, values]: [unknown[], unknown[]] = [[], []];
    for (const not of (schema.not ?? []) as unknown[]) {
      if (not === false) continue;
      const excluded = typeof not === "object" && not !== null ? (not as Schema) : {};
      const keys = Object.keys(excluded);
      if (keys.length === 0) {
        this.emptyAt ??= `${at}/not`;
        return undefined;
      }
      if (keys.length === 1 && excluded.type !== undefined) types.push(...[excluded.type].flat());
      else if (keys.length === 1 && Array.isArray(excluded.enum)) values.push(...excluded.enum);
      else if (keys.length === 1 && "const" in excluded) values.push(excluded.const);
      else this.leaveToModel(`${at}/not`, "cannot be expressed by a grammar");
    }
    // fractions have no type of their own: where whole numbers are excluded, no number is written
    if (types.includes("number") || types.includes("integer")) types.push("integer", "number");
    return { types, values };
  }

  private number(schema: Schema, isWhole: boolean, at: string): string | undefined {
    const bound = (key: string) => {
      const value = schema[key];
      if (value === undefined) return undefined;
      if (typeof value !== "number" || !Number.isFinite(value)) throw this.refuse(`${at}/${key}`, "must be a number");
      return value;
    };
    const [minimum, exclusiveMinimum, maximum, exclusiveMaximum, step] = [
      ...["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf"].map(bound),
    ];
    const bounds: NumberBounds = { minimum, exclusiveMinimum, maximum, exclusiveMaximum };
    if (step !== undefined) {
      const body = multiplesBody(step, bounds, this.rules);
      if (body !== null) return body;
      this.leaveToModel(`${at}/multipleOf`, `of ${step} cannot be expressed by a grammar here`);
    }
    if (Object.values(bounds).every((value) => value === undefined))
      return isWhole ? integerRule(this.rules) : numberRule(this.rules);
    if (isBeyond({ minimum, exclusiveMinimum, maximum, exclusiveMaximum }))
      this.leaveToModel(at, "has bounds too large for a grammar");
    const body = isWhole ? integerBody(bounds) : numberBody(bounds);
    if (body !== null) return body;
    this.leaveToModel(at, "has bounds too close to each other for a grammar");
    return numberRule(this.rules);
  }

  private array(schema: Schema, at: string, depth: number): string | undefined {
    const { items = true, prefixItems = [] } = schema;
    const [min, max] = [countKeyword(schema, "minItems", at, this) ?? 0, countKeyword(schema, "maxItems", at, this)];
    if (schema.uniqueItems === true && (max === undefined || max > 1))
      this.leaveToModel(`${at}/uniqueItems`, "cannot be expressed by a grammar");
    if (max !== undefined && max < min) return undefined;
    const space = spaceRule(this.rules);
    const comma = commaRule(this.rules);
    const first: string[] = [];
    let isOpen = true;
    for (const [i, one] of (prefixItems as unknown[]).slice(0, max).entries()) {
      const rule = this.ruleOf(one, `${at}/prefixItems/${i}`, depth + 1);
      isOpen = rule !== undefined;
      if (rule === undefined) break;
      first.push(rule);
    }
    const item =
      isOpen && items !== false && (max === undefined || max > first.length)
        ? this.ruleOf(items, `${at}/items`, depth + 1)
        : undefined;
    if (item === undefined && min > first.length) return undefined;
    const [more, most] = [Math.max(0, min - first.length), max === undefined ? undefined : max - first.length];
    if (first.length > 0) {
      const rest = item === undefined ? "" : repeated(this.rules, this.rules.add(`${comma} ${item}`), more, most);
      return `"[" ${space} ${first.join(` ${comma} `)} ${rest} ${space} "]"`;
    }
    if (item === undefined) return `"[" ${space} "]"`;
    const others = this.rules.add(`${comma} ${item}`);
    const some = `${item} ${repeated(this.rules, others, Math.max(0, min - 1), max === undefined ? undefined : max - 1)}`;
    return `"[" ${space} ${min === 0 ? `(${some} ${space})?` : `${some} ${space}`} "]"`;
  }

  private any(): string {
    const { rules } = this;
    return rules.once("any", () => {
      const [space, string, number] = [spaceRule(this.rules), this.strings.any(), numberRule(this.rules)];
      const list = `"[" ${space} (any ("," ${space} any)* ${space})? "]"`;
      const member = `${string} ":" ${space} any`;
      return `${string} | ${number} | "true" | "false" | "null" | ${list} | "{" ${space} (${member} ("," ${space} ${member})* ${space})? "}"`;
    });
  }
}
