import { type AST, RegExpParser } from "@eslint-community/regexpp";
import { ApiError } from "../errors.js";
import { complement, DIGITS, LINE_ENDS, propertyRanges, type Range, SPACE, SURROGATES, WORD } from "./code-points.js";
import { either, escaped, type GrammarRules, literal, MAX_REPETITIONS, repeated } from "./gbnf.js";

/** How the characters of a regular expression are written, and what may surround it. */
interface Surroundings {
  /** Writes a character as a body. */
  readonly write: (character: string) => string;
  /** Code points that cannot be written as themselves. */
  readonly excluded: readonly Range[];
  /** A rule for any character, which fills unanchored ends. Where undefined, an expression matches the whole text. */
  readonly anything?: string | undefined;
}

const MAX_TEXT = 4096;
const MAX_DEPTH = 32;
/** Properties of Unicode in one expression: each takes a pass over all code points. */
const MAX_PROPERTIES = 8;

/** A whole text. */
const PLAIN: Surroundings = { write: literal, excluded: [] };

/** A string of JSON, anywhere in it, as JSON Schema defines `pattern`. @param anything rule of a string's characters */
export const insideJson = (anything: string): Surroundings => ({
  anything,
  excluded: [
    [0, 0x1f],
    [0x22, 0x22],
    [0x5c, 0x5c],
    [0x7f, 0x7f],
  ],
  write: (character) => literal(JSON.stringify(character).slice(1, -1)),
});

const refusal = (why: string, param: string): ApiError => new ApiError(400, `the regular expression ${why}`, { param });

/** @throws ApiError 400 for a text that is not a regular expression of JavaScript */
function parsed(source: string, param: string): AST.Pattern {
  if (source.length > MAX_TEXT) throw refusal(`has more than ${MAX_TEXT} characters`, param);
  try {
    return new RegExpParser({ ecmaVersion: 2024 }).parsePattern(source, 0, source.length, { unicode: true });
  } catch (error) {
    throw refusal(`cannot be read: ${error instanceof Error ? error.message : error}`, param);
  }
}

/**
 * A body that matches what a regular expression of JavaScript (with its flag u) matches: as a whole text, unless the surroundings say
 * otherwise.
 * @param param the request's field that the expression comes from
 * @throws ApiError 400 for what a grammar cannot express: assertions other than ^ and $ at the ends, back-references
 */
export function regexBody(rules: GrammarRules, source: string, param: string, around: Surroundings = PLAIN): string {
  return new RegexWriter(rules, param, around).body(parsed(source, param));
}

class RegexWriter {
  private readonly properties = new Set<string>();

  constructor(
    private readonly rules: GrammarRules,
    private readonly param: string,
    private readonly around: Surroundings,
  ) {}

  body({ alternatives }: AST.Pattern): string {
    const { anything } = this.around;
    const free = anything === undefined ? "" : `${anything}*`;
    return either(
      alternatives.map(({ elements }) => {
        const [starts, ends] = [isAnchor(elements[0], "start"), isAnchor(elements.at(-1), "end")];
        const inner = elements.slice(starts ? 1 : 0, ends ? -1 : undefined);
        return `${starts ? "" : free} ${this.sequence(inner, 0)} ${ends ? "" : free}`.trim();
      }),
    );
  }

  private sequence(elements: readonly AST.Element[], depth: number): string {
    return elements.length === 0 ? '""' : elements.map((element) => this.element(element, depth)).join(" ");
  }

  private element(node: AST.Element, depth: number): string {
    if (depth > MAX_DEPTH) throw refusal(`nests deeper than ${MAX_DEPTH}`, this.param);
    switch (node.type) {
      case "Character":
        return this.around.write(String.fromCodePoint(node.value));
      case "CharacterSet":
        return this.characterClass(this.rangesOf(node));
      case "CharacterClass": {
        const ranges = node.elements.flatMap((element) => this.rangesOf(element as AST.CharacterClassElement));
        return this.characterClass(node.negate ? complement(ranges) : ranges);
      }
      case "Group":
      case "CapturingGroup":
        return `(${node.alternatives.map(({ elements }) => this.sequence(elements, depth + 1)).join(" | ")})`;
      case "Quantifier":
        return this.quantified(node, depth);
      default:
        throw refusal(`has ${node.raw}, which a grammar cannot express`, this.param);
    }
  }

  private quantified(node: AST.Quantifier, depth: number): string {
    const max = node.max === Number.POSITIVE_INFINITY ? undefined : node.max;
    if (this.around === PLAIN && Math.max(node.min, max ?? 0) > MAX_REPETITIONS)
      throw refusal(`repeats something ${node.raw.slice(-20)} times: at most ${MAX_REPETITIONS}`, this.param);
    return repeated(this.rules, `(${this.element(node.element, depth + 1)})`, node.min, max);
  }

  private rangesOf(node: AST.CharacterClassElement | AST.CharacterSet): readonly Range[] {
    switch (node.type) {
      case "Character":
        return [[node.value, node.value]];
      case "CharacterClassRange":
        return [[node.min.value, node.max.value]];
      case "CharacterSet": {
        if (node.kind === "any") return complement(LINE_ENDS);
        if (node.kind === "property") return this.propertyRanges(node.raw);
        const ranges = { digit: DIGITS, word: WORD, space: SPACE }[node.kind];
        return node.negate ? complement(ranges) : ranges;
      }
      default:
        throw refusal("has a class within a class", this.param);
    }
  }

  private propertyRanges(raw: string): readonly Range[] {
    this.properties.add(raw);
    if (this.properties.size > MAX_PROPERTIES)
      throw refusal(`has more than ${MAX_PROPERTIES} properties of Unicode`, this.param);
    return propertyRanges(raw);
  }

  private characterClass(ranges: readonly Range[]): string {
    const writable = complement([...complement(ranges), ...this.around.excluded, SURROGATES]);
    if (writable.length === 0) throw refusal("has a class of characters that cannot be written here", this.param);
    const parts = writable.map(([from, to]) => {
      const [first, last] = [from, to].map((code) => escaped(String.fromCodePoint(code)));
      return from === to ? first : `${first}-${last}`;
    });
    return `[${parts.join("")}]`;
  }
}

const isAnchor = (node: AST.Element | undefined, kind: "start" | "end"): boolean =>
  node?.type === "Assertion" && node.kind === kind;

/** Characters that a text has. */
interface Lengths {
  readonly min: number;
  readonly max: number;
}

/** The lengths of texts that an expression matches. */
export function regexLengths(source: string, param: string): Lengths {
  const { alternatives } = parsed(source, param);
  const isWhole = alternatives.every(({ elements }) => {
    return isAnchor(elements[0], "start") && isAnchor(elements.at(-1), "end");
  });
  const { min, max } = lengthsOfAll(alternatives);
  return { min, max: isWhole ? max : Number.POSITIVE_INFINITY };
}

const lengthsOfAll = (alternatives: readonly AST.Alternative[]): Lengths => {
  const all = alternatives.map(({ elements }) => {
    const lengths = elements.map(lengthsOf);
    const sum = (bound: (of: Lengths) => number) => lengths.reduce((total, of) => total + bound(of), 0);
    return { min: sum(({ min }) => min), max: sum(({ max }) => max) };
  });
  return { min: Math.min(...all.map(({ min }) => min)), max: Math.max(...all.map(({ max }) => max)) };
};

function lengthsOf(node: AST.Element): Lengths {
  switch (node.type) {
    case "Group":
    case "CapturingGroup":
      return lengthsOfAll(node.alternatives);
    case "Quantifier": {
      const { min, max } = lengthsOf(node.element);
      return { min: min * node.min, max: max === 0 ? 0 : max * node.max };
    }
    case "Assertion":
      return { min: 0, max: 0 };
    default:
      return { min: 1, max: 1 };
  }
}

/** An expression with its lengths limited: `^[a-z]+$` from 2 to 5 is `^[a-z]{2,5}$`; undefined where it is not of such a form. */
export function withLengths(source: string, min: number, max: number | undefined, param: string): string | undefined {
  const { alternatives } = parsed(source, param);
  const [start, quantifier, end, ...more] = alternatives[0]?.elements ?? [];
  if (alternatives.length > 1 || more.length > 0 || quantifier?.type !== "Quantifier") return undefined;
  if (!isAnchor(start, "start") || !isAnchor(end, "end")) return undefined;
  const { element } = quantifier;
  if (!["Character", "CharacterClass", "CharacterSet"].includes(element.type)) return undefined;
  const [least, most] = [Math.max(min, quantifier.min), Math.min(max ?? Number.POSITIVE_INFINITY, quantifier.max)];
  return least > most ? undefined : `^${element.raw}{${least},${Number.isFinite(most) ? most : ""}}$`;
}
