import type { Flattener } from "./flatten.js";
import { escaped, type GrammarRules, literal, repeated } from "./gbnf.js";
import { commaRule, spaceRule } from "./json-rules.js";
import { accepts, countKeyword, matches, type Reporter, type Schema } from "./schema.js";
import type { StringWriter } from "./strings.js";

/** Writes the rules of schemas. */
export interface SchemaRules extends Reporter {
  /** The rule of a schema; undefined where no value can match. */
  ruleOf(schema: unknown, at: string, depth: number): string | undefined;
}

/** A property that the schema lists. */
interface Member {
  readonly body: string;
  readonly isOptional: boolean;
}

/** How many properties there may be that the schema does not list. */
interface Limits {
  readonly min: number;
  readonly max: number | undefined;
}

/** A schema, and where it is. */
interface Place {
  readonly schema: Schema;
  readonly at: string;
  readonly depth: number;
}

type Names = ReturnType<ObjectWriter["namesOf"]>;

/** Patterns that any name matches. */
const ANY_NAME = /^(\^|\$|\^?\.\*\$?|\^?\(\.\*\)\$?)?$/;

/** Writes bodies for objects of JSON. */
export class ObjectWriter {
  constructor(
    private readonly rules: GrammarRules,
    private readonly schemas: SchemaRules,
    private readonly flattener: Flattener,
    private readonly strings: StringWriter,
  ) {}

  /** A body for the objects that a schema accepts; undefined where there are none. */
  body(schema: Schema, at: string, depth: number): string | undefined {
    const { properties = {}, patternProperties = {}, propertyNames } = schema;
    const required = (schema.required ?? []) as unknown[];
    const patterns = Object.entries(patternProperties as Schema);
    const listed = new Map(Object.entries(properties as Schema));
    for (const name of required) if (!listed.has(`${name}`)) listed.set(`${name}`, this.unlisted(`${name}`, schema));
    const names = propertyNames === undefined ? undefined : this.namesOf(propertyNames, at);
    if (names?.values !== undefined)
      for (const name of names.values)
        if (!listed.has(name) && schema.additionalProperties !== false) listed.set(name, this.unlisted(name, schema));
    const named: Member[] = [];
    for (const [name, value] of listed) {
      const isAllowed = names === undefined || names.accepts(name);
      const matching = patterns.filter(([pattern]) => matches(pattern, name)).map(([, pattern]) => pattern);
      const all = matching.length === 0 ? value : { allOf: [value, ...matching] };
      const rule = isAllowed ? this.schemas.ruleOf(all, `${at}/properties/${name}`, depth + 1) : undefined;
      const isOptional = !required.includes(name);
      if (rule === undefined && !isOptional) return undefined;
      if (rule === undefined) continue;
      named.push({
        body: this.rules.add(`${literal(JSON.stringify(name))} ":" ${spaceRule(this.rules)} ${rule}`),
        isOptional,
      });
    }
    const other = this.otherMember({ schema, at, depth }, [...listed.keys()], names);
    return this.members(named, other, this.limits(schema, named, other !== undefined, at));
  }

  /** The schema of a property that `properties` does not list. */
  private unlisted(name: string, { patternProperties = {}, additionalProperties = true }: Schema): unknown {
    const isMatched = Object.keys(patternProperties as Schema).some((pattern) => matches(pattern, name));
    return isMatched ? true : additionalProperties; // the pattern's schema is added for each property
  }

  /** What `propertyNames` says about names. */
  private namesOf(schema: unknown, at: string) {
    const alternatives = this.flattener.alternatives(schema, `${at}/propertyNames`);
    const acceptsName = (name: string) => alternatives.some((one) => accepts(one, name));
    const values = alternatives.every((one) => Array.isArray(one.enum))
      ? alternatives
          .flatMap((one) => one.enum as unknown[])
          .filter((one): one is string => typeof one === "string" && acceptsName(one))
      : undefined;
    const isFree = alternatives.some((one) => Object.keys(one).every((key) => key === "type"));
    return { accepts: acceptsName, values, isFree, schema, alternatives };
  }

  /** The rule of a property that the schema does not list; undefined where there can be none. */
  private otherMember(
    { schema, at, depth }: Place,
    listed: readonly string[],
    names: Names | undefined,
  ): string | undefined {
    const patterns = Object.entries((schema.patternProperties ?? {}) as Schema);
    const { additionalProperties } = schema;
    if (names?.values !== undefined) return undefined;
    const space = spaceRule(this.rules);
    const member = (key: string, value: unknown, where: string) => {
      const rule = this.schemas.ruleOf(value, where, depth + 1);
      return rule === undefined ? [] : [`${key} ":" ${space} ${rule}`];
    };
    if (patterns.length > 0) {
      if (patterns.length > 1)
        this.schemas.leaveToModel(`${at}/patternProperties`, "has several patterns, which may match the same name");
      const bodies = patterns.flatMap(([pattern, value]) => {
        const where = `${at}/patternProperties/${pattern}`;
        if (listed.some((name) => matches(pattern, name))) {
          this.schemas.leaveToModel(where, "matches names of listed properties too");
          return [];
        }
        const key = this.patternedName(pattern, names, where, depth);
        return key === undefined ? [] : member(key, value, where);
      });
      if (additionalProperties !== undefined && additionalProperties !== false)
        this.schemas.leaveToModel(`${at}/additionalProperties`, "cannot be combined with patterns");
      return bodies.length === 0 ? undefined : this.rules.add(bodies.join(" | "));
    }
    const others = additionalProperties ?? listed.length === 0;
    if (others === false) return undefined;
    if (names !== undefined && !names.isFree) {
      if (listed.length > 0) this.schemas.leaveToModel(`${at}/propertyNames`, "cannot be combined with properties");
      const key = this.schemas.ruleOf({ allOf: [{ type: "string" }, names.schema] }, `${at}/propertyNames`, depth + 1);
      const body = key === undefined ? [] : member(key, others, `${at}/additionalProperties`);
      return body.length === 0 ? undefined : this.rules.add(body.join(" | "));
    }
    const body = member(this.otherKey(listed), others, `${at}/additionalProperties`);
    return body.length === 0 ? undefined : this.rules.add(body.join(" | "));
  }

  /** A body for names that match a pattern and `propertyNames`. */
  private patternedName(pattern: string, names: Names | undefined, at: string, depth: number): string | undefined {
    if (names === undefined || names.isFree) return this.strings.body({ pattern }, at);
    const [{ type: _, minLength, maxLength, ...others } = {}, ...more] = names.alternatives;
    if (Object.keys(others).length + more.length > 0) {
      if (ANY_NAME.test(pattern))
        return this.schemas.ruleOf({ allOf: [{ type: "string" }, names.schema] }, at, depth + 1);
      this.schemas.leaveToModel(at, "cannot be combined with propertyNames");
    }
    return this.strings.body({ pattern, minLength, maxLength }, at);
  }

  /** How many unlisted properties there may be; undefined where no object can match. */
  private limits(schema: Schema, named: readonly Member[], isOpen: boolean, at: string): Limits | undefined {
    const [min, max] = [
      countKeyword(schema, "minProperties", at, this.schemas) ?? 0,
      countKeyword(schema, "maxProperties", at, this.schemas),
    ];
    const required = named.filter(({ isOptional }) => !isOptional).length;
    const most = isOpen ? Number.POSITIVE_INFINITY : named.length;
    if (required >= min && (max === undefined || most <= max)) return { min: 0, max: undefined };
    if (most < min || (max !== undefined && required > max)) return undefined;
    if (required === named.length) {
      const others = { min: Math.max(0, min - required), max: max === undefined ? undefined : max - required };
      // a name could be repeated, and would count once
      if (others.min > 1)
        this.schemas.leaveToModel(`${at}/minProperties`, "cannot be expressed by a grammar where names are free");
      return others;
    }
    this.schemas.leaveToModel(
      `${at}/${max === undefined ? "minProperties" : "maxProperties"}`,
      "cannot be combined with optional properties",
    );
    return { min: 0, max: undefined };
  }

  private members(named: readonly Member[], other: string | undefined, limits: Limits | undefined): string | undefined {
    if (limits === undefined) return undefined;
    const [space, comma] = [spaceRule(this.rules), commaRule(this.rules)];
    let [alone, after] = ['""', '""'];
    if (other !== undefined && limits.max !== 0) {
      const { min, max } = limits;
      const next = this.rules.add(`${comma} ${other}`);
      after = this.rules.add(repeated(this.rules, next, min, max));
      const rest = repeated(this.rules, next, Math.max(0, min - 1), max === undefined ? undefined : max - 1);
      alone = this.rules.add(min === 0 ? `(${other} ${rest})?` : `${other} ${rest}`);
    }
    for (const { body, isOptional } of [...named].reverse()) {
      const [first, next] = [`${body} ${after}`, `${comma} ${body} ${after}`];
      alone = this.rules.add(isOptional ? `${first} | ${alone}` : first);
      after = this.rules.add(isOptional ? `${next} | ${after}` : next);
    }
    return `"{" ${space} ${alone} ${space} "}"`;
  }

  /** A string other than the listed names: a second property of such a name could be of another type. */
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
      // a name must be followed by another character; no escapes, which could spell a name
      const free = `${others} [^"\\\\\\x7f\\x00-\\x1f]*`;
      const deeper = [...next].map(([head, tails]) => `${literal(head)} ${beyond(tails)}`);
      return this.rules.add([...(taken.includes("") ? [] : ['""']), free, ...deeper].join(" | "));
    };
    return this.rules.add(`"\\"" ${beyond(names.filter((name) => plain.test(name)))} "\\""`);
  }
}
