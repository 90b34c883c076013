import { ApiError } from "../errors.js";
import { accepts, Flattener, matches, type Reporter, type Schema, TYPES, type Type, writtenTypes } from "./flatten.js";
import { either, escaped, GrammarRules, literal, repeated } from "./gbnf.js";
import { integerBody, multiplesBody, type NumberBounds, numberBody } from "./numbers.js";
import { StringWriter } from "./strings.js";

const MOST_DEPTH = 64;
/** Deeper, a schema cannot be walked. */
const MOST_NESTING = 256;

export interface SchemaOptions {
  /** Where the schema stands in the request. */
  readonly param: string;
  /** Whether what a grammar cannot say is refused; else it is left to the model. */
  readonly isStrict: boolean;
}

/**
 * JSON that a schema takes, as the body of a rule. Where it is strict, what it lets through is valid, and complete when it ends.
 * Properties come in the order in which the schema lists them, others only where it asks for them.
 * @throws ApiError 400 naming what is wrong with a schema, and what a grammar cannot say of a strict one (`not`, `if`, `contains` …)
 */
export function jsonBody(rules: GrammarRules, schema: unknown, options: SchemaOptions): string {
  return new SchemaWriter(rules, schema, options).whole();
}

/** A grammar of JSON: of a schema, or of any object. */
export function jsonGrammar(schema: unknown, options: SchemaOptions): string {
  const rules = new GrammarRules();
  rules.add(jsonBody(rules, schema ?? { type: "object" }, options), "root");
  return rules.toString();
}

/** Patterns that any name matches. */
const ANY_NAME = /^(\^|\$|\^?\.\*\$?|\^?\(\.\*\)\$?)?$/;

class SchemaWriter implements Reporter {
  private readonly known = new Map<string, string>();
  private readonly flattener: Flattener;
  private readonly strings: StringWriter;
  /** Where it was first found that nothing can match. */
  private emptyAt: string | undefined;

  constructor(
    private readonly rules: GrammarRules,
    private readonly root: unknown,
    private readonly options: SchemaOptions,
  ) {
    this.checkNesting(root, 0);
    this.flattener = new Flattener(root, this);
    this.strings = new StringWriter(rules, this, options.param);
  }

  refuse(at: string, why: string): ApiError {
    const param = `${this.options.param}${at}`;
    return new ApiError(400, `${param}: ${why}`, { param, code: "invalid_schema" });
  }

  leave(at: string, why: string): void {
    if (this.options.isStrict) throw this.refuse(at, why);
  }

  whole(): string {
    const rule = this.ruleOf(this.root, "", 0);
    if (rule === undefined) throw this.refuse(this.emptyAt ?? "", "is no schema that anything could match");
    return rule;
  }

  private checkNesting(value: unknown, depth: number): void {
    if (typeof value !== "object" || value === null) return;
    if (depth > MOST_NESTING) throw this.refuse("", `nests deeper than ${MOST_NESTING}`);
    for (const inner of Object.values(value)) this.checkNesting(inner, depth + 1);
  }

  /** The rule of a schema, which is written once, wherever it stands. @returns undefined where nothing can match */
  private ruleOf(schema: unknown, at: string, depth: number): string | undefined {
    if (depth > MOST_DEPTH) throw this.refuse(at, `nests deeper than ${MOST_DEPTH}`);
    const key = JSON.stringify(schema);
    const known = this.known.get(key);
    if (known !== undefined) return known;
    const alternatives = this.flattener.alternatives(schema, at);
    if (alternatives.length === 0) return undefined;
    const name = this.rules.add("");
    this.known.set(key, name);
    const bodies = alternatives.flatMap((one) => this.ofFlat(one, at, depth) ?? []);
    if (bodies.length === 0) {
      this.emptyAt ??= at;
      this.known.delete(key);
      this.rules.add('""', name); // nobody refers to it
      return undefined;
    }
    return this.rules.add(bodies.join(" | "), name);
  }

  /** @returns undefined where nothing can match */
  private ofFlat(schema: Schema, at: string, depth: number): string | undefined {
    const excluded = this.excluded(schema, at);
    if (excluded === undefined) return undefined;
    if (Array.isArray(schema.enum)) {
      const values = schema.enum.filter((value) => accepts(schema, value) && !excluded.values.includes(value));
      return values.length === 0 ? undefined : either(values.map((value) => literal(JSON.stringify(value))));
    }
    if (excluded.values.length > 0) this.leave(`${at}/not`, "excludes values, which a grammar cannot say");
    const types = writtenTypes(schema).filter((type) => !excluded.types.includes(type));
    const isAny = schema.type === undefined && types.length === TYPES.length - 1;
    if (isAny) return this.any();
    const bodies = types.flatMap((type) => {
      if (!TYPES.includes(type as Type)) throw this.refuse(`${at}/type`, `is no type: ${JSON.stringify(type)}`);
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
        return this.object(schema, at, depth);
      default:
        return type === "null" ? '"null"' : '("true" | "false")';
    }
  }

  /** What `not` excludes, where that can be said: types, and values of an enum. @returns undefined where it excludes all */
  private excluded(schema: Schema, at: string) {
    const [types, values]: [unknown[], unknown[]] = [[], []];
    for (const one of (schema.not ?? []) as unknown[]) {
      if (one === false) continue;
      const own = typeof one === "object" && one !== null ? (one as Schema) : {};
      const keys = Object.keys(own);
      if (keys.length === 0) {
        this.emptyAt ??= `${at}/not`;
        return undefined;
      }
      if (keys.length === 1 && own.type !== undefined) types.push(...[own.type].flat());
      else if (keys.length === 1 && Array.isArray(own.enum)) values.push(...own.enum);
      else if (keys.length === 1 && "const" in own) values.push(own.const);
      else this.leave(`${at}/not`, "is nothing that a grammar can say");
    }
    // numbers that are not whole are no type: without whole ones, no number is written
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
      this.leave(`${at}/multipleOf`, `of ${step} is nothing that a grammar can say here`);
    }
    if (Object.values(bounds).every((value) => value === undefined)) return isWhole ? this.integer() : this.anyNumber();
    const body = isWhole ? integerBody(bounds) : numberBody(bounds);
    if (body !== null) return body;
    this.leave(at, "leaves numbers too close to each other for a grammar");
    return this.anyNumber();
  }

  private integer(): string {
    return this.rules.once("integer", () => '"-"? ("0" | [1-9] [0-9]{0,15})');
  }

  private anyNumber(): string {
    const integer = this.integer();
    return this.rules.once("number", () => `${integer} ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?`);
  }

  private array(schema: Schema, at: string, depth: number): string | undefined {
    const { items = true, prefixItems = [] } = schema;
    const [min, max] = [this.count(schema, "minItems", at) ?? 0, this.count(schema, "maxItems", at)];
    if (schema.uniqueItems === true && (max === undefined || max > 1))
      this.leave(`${at}/uniqueItems`, "is nothing that a grammar can say");
    if (max !== undefined && max < min) return undefined;
    const space = this.space();
    const comma = this.comma();
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

  private object(schema: Schema, at: string, depth: number): string | undefined {
    const { properties = {}, patternProperties = {}, propertyNames } = schema;
    const required = (schema.required ?? []) as unknown[];
    const patterns = Object.entries(patternProperties as Schema);
    const listed = new Map(Object.entries(properties as Schema));
    for (const name of required) if (!listed.has(`${name}`)) listed.set(`${name}`, this.unlisted(`${name}`, schema));
    const names = propertyNames === undefined ? undefined : this.namesOf(propertyNames, at);
    if (names?.values !== undefined)
      for (const name of names.values)
        if (!listed.has(name) && schema.additionalProperties !== false) listed.set(name, this.unlisted(name, schema));
    const named: { readonly body: string; readonly isOptional: boolean }[] = [];
    for (const [name, value] of listed) {
      const isAllowed = names === undefined || names.takes(name);
      const own = patterns.filter(([pattern]) => matches(pattern, name)).map(([, said]) => said);
      const all = own.length === 0 ? value : { allOf: [value, ...own] };
      const rule = isAllowed ? this.ruleOf(all, `${at}/properties/${name}`, depth + 1) : undefined;
      const isOptional = !required.includes(name);
      if (rule === undefined && !isOptional) return undefined;
      if (rule === undefined) continue;
      named.push({ body: this.rules.add(`${literal(JSON.stringify(name))} ":" ${this.space()} ${rule}`), isOptional });
    }
    const other = this.otherMember(schema, [...listed.keys()], names, at, depth);
    return this.members(named, other, this.limits(schema, named, other !== undefined, at));
  }

  /** What a property must match that no list names. */
  private unlisted(name: string, { patternProperties = {}, additionalProperties = true }: Schema): unknown {
    const isMatched = Object.keys(patternProperties as Schema).some((pattern) => matches(pattern, name));
    return isMatched ? true : additionalProperties; // what its pattern says is added for each property
  }

  /** What names of properties may be. */
  private namesOf(schema: unknown, at: string) {
    const own = this.flattener.alternatives(schema, `${at}/propertyNames`);
    const takes = (name: string) => own.some((one) => accepts(one, name));
    const values = own.every((one) => Array.isArray(one.enum))
      ? own
          .flatMap((one) => one.enum as unknown[])
          .filter((one): one is string => typeof one === "string" && takes(one))
      : undefined;
    const isFree = own.some((one) => Object.keys(one).every((key) => key === "type"));
    return { takes, values, isFree, schema, own };
  }

  /** The rule of a member that the schema does not name; undefined where there can be none. */
  private otherMember(
    schema: Schema,
    listed: readonly string[],
    names: ReturnType<SchemaWriter["namesOf"]> | undefined,
    at: string,
    depth: number,
  ): string | undefined {
    const patterns = Object.entries((schema.patternProperties ?? {}) as Schema);
    const given = schema.additionalProperties;
    if (names?.values !== undefined) return undefined;
    const space = this.space();
    const member = (key: string, said: unknown, where: string) => {
      const rule = this.ruleOf(said, where, depth + 1);
      return rule === undefined ? [] : [`${key} ":" ${space} ${rule}`];
    };
    if (patterns.length > 0) {
      if (patterns.length > 1) this.leave(`${at}/patternProperties`, "has several patterns, which may match together");
      const bodies = patterns.flatMap(([pattern, said]) => {
        const where = `${at}/patternProperties/${pattern}`;
        if (listed.some((name) => matches(pattern, name))) {
          this.leave(where, "matches names of properties too");
          return [];
        }
        const key = this.patternedName(pattern, names, where, depth);
        return key === undefined ? [] : member(key, said, where);
      });
      if (given !== undefined && given !== false) this.leave(`${at}/additionalProperties`, "stands beside patterns");
      return bodies.length === 0 ? undefined : this.rules.add(bodies.join(" | "));
    }
    const others = given ?? listed.length === 0;
    if (others === false) return undefined;
    if (names !== undefined && !names.isFree) {
      if (listed.length > 0) this.leave(`${at}/propertyNames`, "stands beside properties");
      const key = this.ruleOf({ allOf: [{ type: "string" }, names.schema] }, `${at}/propertyNames`, depth + 1);
      const body = key === undefined ? [] : member(key, others, `${at}/additionalProperties`);
      return body.length === 0 ? undefined : this.rules.add(body.join(" | "));
    }
    const body = member(this.otherKey(listed), others, `${at}/additionalProperties`);
    return body.length === 0 ? undefined : this.rules.add(body.join(" | "));
  }

  /** A name that matches a pattern, and what is said of all names beside it. */
  private patternedName(
    pattern: string,
    names: ReturnType<SchemaWriter["namesOf"]> | undefined,
    at: string,
    depth: number,
  ): string | undefined {
    if (names === undefined || names.isFree) return this.strings.body({ pattern }, at);
    const [{ type: _, minLength, maxLength, ...others } = {}, ...more] = names.own;
    if (Object.keys(others).length + more.length > 0) {
      if (ANY_NAME.test(pattern)) return this.ruleOf({ allOf: [{ type: "string" }, names.schema] }, at, depth + 1);
      this.leave(at, "stands beside what propertyNames says");
    }
    return this.strings.body({ pattern, minLength, maxLength }, at);
  }

  /** How many members there may be, where that can be said: of those that no list names. */
  private limits(
    schema: Schema,
    named: readonly { readonly isOptional: boolean }[],
    isOpen: boolean,
    at: string,
  ): { readonly min: number; readonly max: number | undefined } | undefined {
    const [min, max] = [this.count(schema, "minProperties", at) ?? 0, this.count(schema, "maxProperties", at)];
    const sure = named.filter(({ isOptional }) => !isOptional).length;
    const most = isOpen ? Number.POSITIVE_INFINITY : named.length;
    if (sure >= min && (max === undefined || most <= max)) return { min: 0, max: undefined };
    if (most < min || (max !== undefined && sure > max)) return undefined;
    if (sure === named.length) {
      const others = { min: Math.max(0, min - sure), max: max === undefined ? undefined : max - sure };
      // names could come twice, and count once
      if (others.min > 1) this.leave(`${at}/minProperties`, "is nothing that a grammar can say of free names");
      return others;
    }
    this.leave(`${at}/${max === undefined ? "minProperties" : "maxProperties"}`, "stands beside optional properties");
    return { min: 0, max: undefined };
  }

  private members(
    named: readonly { readonly body: string; readonly isOptional: boolean }[],
    other: string | undefined,
    limits: { readonly min: number; readonly max: number | undefined } | undefined,
  ): string | undefined {
    if (limits === undefined) return undefined;
    const [space, comma] = [this.space(), this.comma()];
    let [alone, after] = ['""', '""'];
    if (other !== undefined && limits.max !== 0) {
      const { min, max } = limits;
      const next = this.rules.add(`${comma} ${other}`);
      after = this.rules.add(repeated(this.rules, next, min, max));
      const rest = repeated(this.rules, next, Math.max(0, min - 1), max === undefined ? undefined : max - 1);
      alone = this.rules.add(min === 0 ? `(${other} ${rest})?` : `${other} ${rest}`);
    }
    for (const { body, isOptional } of [...named].reverse()) {
      const [withOwn, joined] = [`${body} ${after}`, `${comma} ${body} ${after}`];
      alone = this.rules.add(isOptional ? `${withOwn} | ${alone}` : withOwn);
      after = this.rules.add(isOptional ? `${joined} | ${after}` : joined);
    }
    return `"{" ${space} ${alone} ${space} "}"`;
  }

  /** A string that is none of some names: a second property of a listed name could be of another type. */
  private otherKey(names: readonly string[]): string {
    if (names.length === 0) return this.strings.any();
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

  private any(): string {
    const { rules } = this;
    return rules.once("any", () => {
      const [space, string, number] = [this.space(), this.strings.any(), this.anyNumber()];
      const list = `"[" ${space} (any ("," ${space} any)* ${space})? "]"`;
      const member = `${string} ":" ${space} any`;
      return `${string} | ${number} | "true" | "false" | "null" | ${list} | "{" ${space} (${member} ("," ${space} ${member})* ${space})? "}"`;
    });
  }

  /** Bounded: a model that is unsure could write blanks without end. */
  private space(): string {
    return this.rules.once("space", () => '" "? | "\\n" " "{0,16}');
  }

  private comma(): string {
    const space = this.space();
    return this.rules.once("comma", () => `"," ${space}`);
  }

  private count(schema: Schema, key: string, at: string): number | undefined {
    const value = schema[key];
    if (value === undefined) return undefined;
    if (typeof value !== "number" || !Number.isInteger(value) || value < 0)
      throw this.refuse(`${at}/${key}`, "must be a whole number from 0");
    return value;
  }
}
