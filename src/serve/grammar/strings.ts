import { GrammarRules, repeated } from "./gbnf.js";
import { insideJson, regexBody, regexLengths, withLengths } from "./regex.js";
import { countKeyword, matches, type Reporter, type Schema } from "./schema.js";

/** A format of strings, with examples: a pattern that matches them all is taken for the same format in other words. */
interface StringFormat {
  readonly pattern: string;
  readonly examples: readonly string[];
}

const DATE = "(0[1-9]|1[0-2])-(0[1-9]|1\\d|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31";
const TIME = "([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,6})?(Z|[+\\-]([01]\\d|2[0-3]):[0-5]\\d)";
const OCTET = "(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)";
const LABEL = "[A-Za-z0-9]([A-Za-z0-9\\-]{0,61}[A-Za-z0-9])?";
/** A label of a host in a URI, which ends in a letter, lest it be taken for an address. */
const NAME = "[a-z]([a-z0-9]{0,20}[a-z])?(-[a-z]{1,20}){0,2}";
const IPV6 = "([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}|([0-9a-f]{1,4}:){1,5}(:[0-9a-f]{1,4}){1,2}|::([0-9a-f]{1,4})?";

/** Formats that can be enforced: each pattern is a subset of RFC 3339, 4122, 5321, 3986, 2673 or ISO 8601. */
const FORMATS: Readonly<Record<string, StringFormat>> = {
  date: { pattern: `^\\d{4}-(${DATE})$`, examples: ["2024-02-28", "1999-12-31"] },
  time: { pattern: `^${TIME}$`, examples: ["23:59:59Z"] },
  "date-time": { pattern: `^\\d{4}-(${DATE})T${TIME}$`, examples: ["2024-02-28T23:59:59Z"] },
  uuid: {
    pattern: "^[0-9a-f]{8}-[0-9a-f]{4}-[47][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
    examples: ["f47ac10b-58cc-4372-a567-0e02b2c3d479"],
  },
  email: {
    pattern: `^[A-Za-z0-9_+\\-]{1,20}(\\.[A-Za-z0-9_+\\-]{1,12}){0,3}@(${LABEL}\\.){1,2}[A-Za-z]{2,24}$`,
    examples: ["ada.l+x@example.org", "a@b-c.example.com"],
  },
  hostname: { pattern: `^${LABEL}(\\.${LABEL}){0,3}$`, examples: ["example.org", "a-b"] },
  ipv4: { pattern: `^(${OCTET}\\.){3}${OCTET}$`, examples: ["192.168.0.1"] },
  ipv6: { pattern: `^(${IPV6})$`, examples: ["2001:0db8:0000:0000:0000:ff00:0042:8329", "1:2::3"] },
  uri: {
    pattern: `^https?://${NAME}(\\.${NAME}){0,3}\\.[a-z]{2,8}(:\\d{1,4})?(/[A-Za-z0-9._~\\-]{0,40}){0,12}(\\?[A-Za-z0-9._~=&\\-]{0,80})?$`,
    examples: ["https://example.org/a?b=c"],
  },
  duration: {
    pattern: "^P(\\d{1,9}W|\\d{1,9}D(T\\d{1,9}H(\\d{1,9}M(\\d{1,9}S)?)?)?|T\\d{1,9}(H|M|S))$",
    examples: ["P3D", "PT36H"],
  },
  base64: { pattern: "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$", examples: ["YWJj", "YQ=="] },
  base64url: { pattern: "^([A-Za-z0-9_\\-]{4})*$", examples: ["YWJj"] },
  "json-pointer": { pattern: "^(/[A-Za-z0-9._\\-]*)*$", examples: ["/a/0"] },
  regex: { pattern: "^[A-Za-z0-9 ]*$", examples: ["abc"] },
};
/** Other names of formats. */
const ALIASES: Readonly<Record<string, string>> = {
  "idn-email": "email",
  "idn-hostname": "hostname",
  "iso-date": "date",
  "iso-time": "time",
  "iso-date-time": "date-time",
  iri: "uri",
  url: "uri",
  "uri-reference": "uri",
  "iri-reference": "uri",
  "uri-template": "uri",
  guid: "uuid",
  uuid4: "uuid",
  uuidv4: "uuid",
  byte: "base64",
};
/** Formats that mean something to programs, and allow any string. */
const OPEN_FORMATS = new Set(
  "int32 int64 float double decimal password binary text textarea string color file path".split(" "),
);

/** Writes bodies for strings of JSON. */
export class StringWriter {
  constructor(
    private readonly rules: GrammarRules,
    private readonly reporter: Reporter,
    private readonly param: string,
  ) {}

  /** A rule for any string. */
  any(): string {
    const character = this.character();
    return this.rules.once("string", () => `"\\"" ${character}* "\\""`);
  }

  /** A body for the strings that a schema accepts; undefined where there are none. */
  body(schema: Schema, at: string): string | undefined {
    const [min, max] = [
      countKeyword(schema, "minLength", at, this.reporter) ?? 0,
      countKeyword(schema, "maxLength", at, this.reporter),
    ];
    if (max !== undefined && max < min) return undefined;
    const pattern = this.patternOf(schema, at, min, max);
    if (pattern !== undefined) return pattern;
    if (min === 0 && max === undefined) return this.any();
    return `"\\"" ${repeated(this.rules, this.character(), min, max)} "\\""`;
  }

  /** A body for a schema's pattern or format; undefined where it has none that a grammar can express. */
  private patternOf(schema: Schema, at: string, min: number, max: number | undefined): string | undefined {
    const { pattern, format } = schema;
    const known = typeof format === "string" ? FORMATS[ALIASES[format] ?? format] : undefined;
    if (format !== undefined && known === undefined && !OPEN_FORMATS.has(`${format}`) && pattern === undefined)
      this.reporter.leaveToModel(`${at}/format`, `is not supported: ${JSON.stringify(format)?.slice(0, 100)}`);
    if (pattern === undefined) return known && this.matching(known.pattern, `${at}/format`, min, max);
    if (typeof pattern !== "string") throw this.reporter.refuse(`${at}/pattern`, "must be a string");
    const isSame = known?.examples.every((example) => matches(pattern, example)) === true;
    const refused = this.refusalOf(pattern, at);
    if (refused === undefined) {
      if (known !== undefined && !isSame)
        this.reporter.leaveToModel(`${at}/format`, "cannot be combined with another pattern");
      return this.matching(pattern, `${at}/pattern`, min, max);
    }
    if (!isSame) this.reporter.leaveToModel(`${at}/pattern`, refused);
    return known && this.matching(known.pattern, `${at}/format`, min, max);
  }

  /** Why a grammar cannot express a pattern; undefined where it can. */
  private refusalOf(pattern: string, at: string): string | undefined {
    try {
      regexBody(new GrammarRules(), pattern, `${this.param}${at}/pattern`, insideJson("char"));
      return undefined;
    } catch (error) {
      return error instanceof Error ? error.message : `${error}`;
    }
  }

  /** A body for strings that match a pattern, of a length within bounds. */
  private matching(pattern: string, at: string, min: number, max: number | undefined): string {
    const where = `${this.param}${at}`;
    const lengths = regexLengths(pattern, where);
    const isWithin = lengths.min >= min && lengths.max <= (max ?? Number.POSITIVE_INFINITY);
    const source = isWithin ? pattern : withLengths(pattern, min, max, where);
    if (source === undefined)
      this.reporter.leaveToModel(
        at.replace(/\w+$/, lengths.min < min ? "minLength" : "maxLength"),
        "cannot be combined with a pattern",
      );
    const around = insideJson(this.character());
    return this.rules.add(`"\\"" ${regexBody(this.rules, source ?? pattern, where, around)} "\\""`);
  }

  /** A rule for a character of a string. Half a character (`\ud83d`) cannot be written: it would count as one. */
  private character(): string {
    const plain = '[^"\\\\\\x7f\\x00-\\x1f]';
    return this.rules.once(
      "char",
      () => `${plain} | "\\\\" (["\\\\/bfnrt] | "u" ([0-9a-ce-fA-CE-F] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2}))`,
    );
  }
}
