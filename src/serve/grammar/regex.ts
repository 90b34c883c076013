import { type AST, RegExpParser } from "@eslint-community/regexpp";
import { ApiError } from "../errors.js";
import { either, escaped, type GrammarRules, literal, MOST_REPETITIONS, repeated } from "./gbnf.js";

/** What a regular expression's characters become, and what may stand around it. */
interface Surroundings {
  /** A character as it is written there. */
  readonly write: (character: string) => string;
  /** Code points that cannot be written as themselves there. */
  readonly excluded: readonly Range[];
  /** Any text, put where an expression is not anchored; none means that it is anchored. */
  readonly anything?: string | undefined;
}

type Range = readonly [from: number, to: number];

const LAST = 0x10ffff;
const DIGITS: Range[] = [[0x30, 0x39]];
const WORD: Range[] = [
  [0x30, 0x39],
  [0x41, 0x5a],
  [0x5f, 0x5f],
  [0x61, 0x7a],
];
const SPACE: Range[] = [
  [9, 13],
  [0x20, 0x20],
  [0xa0, 0xa0],
  [0x2028, 0x2029],
  [0x3000, 0x3000],
  [0xfeff, 0xfeff],
];
const LINE_ENDS: Range[] = [
  [10, 10],
  [13, 13],
  [0x2028, 0x2029],
];
const SURROGATES: Range = [0xd800, 0xdfff];
const MOST_TEXT = 4096;
const MOST_DEPTH = 32;
/** Properties of Unicode in one expression: each takes a look at all code points. */
const MOST_PROPERTIES = 8;
const MOST_PROPERTIES_KNOWN = 1024;

/** A whole text that an expression matches. */
const PLAIN: Surroundings = { write: literal, excluded: [] };

/** In a string of JSON, anywhere in it as JSON Schema has it. @param anything rule of a string's characters */
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

/** @throws ApiError 400 for what is no regular expression of JavaScript */
function parsed(source: string, param: string): AST.Pattern {
  const refuse = (why: string) => new ApiError(400, `the regular expression ${why}`, { param });
  if (source.length > MOST_TEXT) throw refuse(`has more than ${MOST_TEXT} characters`);
  try {
    return new RegExpParser({ ecmaVersion: 2024 }).parsePattern(source, 0, source.length, { unicode: true });
  } catch (error) {
    throw refuse(`cannot be read: ${error instanceof Error ? error.message : error}`);
  }
}

/**
 * A regular expression of JavaScript (with its flag u) as the body of a grammar's rule. The text must match as a whole, unless what is around says otherwise.
 * @throws ApiError 400 for what a grammar cannot say: assertions other than ^ and $ at the ends, references back
 */
export function regexBody(rules: GrammarRules, source: string, param: string, around: Surroundings = PLAIN): string {
  const refuse = (why: string) => new ApiError(400, `the regular expression ${why}`, { param });
  const pattern = parsed(source, param);
  const properties = new Set<string>();

  const rangesOf = (node: AST.CharacterClassElement | AST.CharacterSet): readonly Range[] => {
    switch (node.type) {
      case "Character":
        return [[node.value, node.value]];
      case "CharacterClassRange":
        return [[node.min.value, node.max.value]];
      case "CharacterSet": {
        if (node.kind === "any") return complement(LINE_ENDS);
        if (node.kind === "property") {
          properties.add(node.raw);
          if (properties.size > MOST_PROPERTIES) throw refuse(`has more than ${MOST_PROPERTIES} properties of Unicode`);
          return propertyRanges(node.raw);
        }
        const ranges = { digit: DIGITS, word: WORD, space: SPACE }[node.kind];
        return node.negate ? complement(ranges) : ranges;
      }
      default:
        throw refuse("has a class within a class");
    }
  };
  const oneOf = (ranges: readonly Range[]): string => {
    const left = complement([...complement(ranges), ...around.excluded, SURROGATES]);
    if (left.length === 0) throw refuse("has a class of characters that cannot be written here");
    const parts = left.map(([from, to]) => {
      const [first, last] = [from, to].map((code) => escaped(String.fromCodePoint(code)));
      return from === to ? first : `${first}-${last}`;
    });
    return `[${parts.join("")}]`;
  };
  const element = (node: AST.Element, depth: number): string => {
    if (depth > MOST_DEPTH) throw refuse(`nests deeper than ${MOST_DEPTH}`);
    switch (node.type) {
      case "Character":
        return around.write(String.fromCodePoint(node.value));
      case "CharacterSet":
        return oneOf(rangesOf(node));
      case "CharacterClass": {
        const ranges = node.elements.flatMap((one) => rangesOf(one as AST.CharacterClassElement));
        return oneOf(node.negate ? complement(ranges) : ranges);
      }
      case "Group":
      case "CapturingGroup":
        return `(${node.alternatives.map((one) => sequence(one.elements, depth + 1)).join(" | ")})`;
      case "Quantifier": {
        const max = node.max === Number.POSITIVE_INFINITY ? undefined : node.max;
        if (around === PLAIN && Math.max(node.min, max ?? 0) > MOST_REPETITIONS)
          throw refuse(`repeats something ${node.raw.slice(-20)} times: at most ${MOST_REPETITIONS}`);
        return repeated(rules, `(${element(node.element, depth + 1)})`, node.min, max);
      }
      case "Assertion":
        throw refuse(`has ${node.raw}, which a grammar cannot say`);
      default:
        throw refuse(`has ${node.raw}, which a grammar cannot say`);
    }
  };
  const sequence = (elements: readonly AST.Element[], depth: number): string =>
    elements.length === 0 ? '""' : elements.map((one) => element(one, depth)).join(" ");

  const isAnchor = (node: AST.Element | undefined, kind: "start" | "end") =>
    node?.type === "Assertion" && node.kind === kind;
  return either(
    pattern.alternatives.map(({ elements }) => {
      const [starts, ends] = [isAnchor(elements[0], "start"), isAnchor(elements.at(-1), "end")];
      const inner = elements.slice(starts ? 1 : 0, ends ? -1 : undefined);
      const free = around.anything === undefined ? "" : `${around.anything}*`;
      return `${starts ? "" : free} ${sequence(inner, 0)} ${ends ? "" : free}`.trim();
    }),
  );
}

const propertiesKnown = new Map<string, readonly Range[]>();
const BEFORE_SURROGATES = 0xd800;
/** Code points of the basic plane that are letters: all but the surrogates. */
const BASIC = 0x10000 - 0x800;
let everything: string | undefined;

/** All code points in their order. */
function everyLetter(): string {
  const parts: string[] = [];
  for (let code = 0; code <= LAST; code++)
    if (code < SURROGATES[0] || code > SURROGATES[1]) parts.push(String.fromCodePoint(code));
  return parts.join("");
}

/** The code points of which a property of Unicode holds (`\\p{Letter}`, `\\P{Letter}`): JavaScript knows them. */
function propertyRanges(raw: string): readonly Range[] {
  const known = propertiesKnown.get(raw);
  if (known !== undefined) return known;
  everything ??= everyLetter();
  const codeAt = (index: number): number => {
    if (index < BEFORE_SURROGATES) return index;
    return index < BASIC ? index + 0x800 : 0x10000 + ((index - BASIC) >> 1);
  };
  const ranges = [...everything.matchAll(new RegExp(`${raw}+`, "gu"))].map(
    ({ 0: run, index }): Range => [codeAt(index), codeAt(index + run.length - 1)],
  );
  if (propertiesKnown.size >= MOST_PROPERTIES_KNOWN) propertiesKnown.clear();
  propertiesKnown.set(raw, ranges);
  return ranges;
}

interface Lengths {
  readonly min: number;
  readonly max: number;
}

/** How many characters texts have in which an expression is found. */
export function regexLengths(source: string, param: string): Lengths {
  const { alternatives } = parsed(source, param);
  const isWhole = alternatives.every(({ elements }) => {
    const [first, last] = [elements[0], elements.at(-1)];
    return first?.type === "Assertion" && first.kind === "start" && last?.type === "Assertion" && last.kind === "end";
  });
  const { min, max } = lengthsOfAll(alternatives);
  return { min, max: isWhole ? max : Number.POSITIVE_INFINITY };
}

const lengthsOfAll = (alternatives: readonly AST.Alternative[]): Lengths => {
  const all = alternatives.map(({ elements }) => {
    const each = elements.map(lengthsOf);
    const sum = (of: (one: { min: number; max: number }) => number) => each.reduce((total, one) => total + of(one), 0);
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

/** An expression of the same characters, as many as are asked for: `^[a-z]+$` with from 2 to 5 is `^[a-z]{2,5}$`; undefined for others. */
export function withLengths(source: string, min: number, max: number | undefined, param: string): string | undefined {
  const { alternatives } = parsed(source, param);
  const [start, quantifier, end, ...more] = alternatives[0]?.elements ?? [];
  if (alternatives.length > 1 || more.length > 0 || quantifier?.type !== "Quantifier") return undefined;
  if (start?.type !== "Assertion" || start.kind !== "start" || end?.type !== "Assertion" || end.kind !== "end")
    return undefined;
  const { element } = quantifier;
  if (!["Character", "CharacterClass", "CharacterSet"].includes(element.type)) return undefined;
  const [least, most] = [Math.max(min, quantifier.min), Math.min(max ?? Number.POSITIVE_INFINITY, quantifier.max)];
  return least > most ? undefined : `^${element.raw}{${least},${Number.isFinite(most) ? most : ""}}$`;
}

/** All other code points. */
function complement(ranges: readonly Range[]): Range[] {
  const result: Range[] = [];
  let next = 0;
  for (const [from, to] of [...ranges].sort((a, b) => a[0] - b[0])) {
    if (from > next) result.push([next, from - 1]);
    next = Math.max(next, to + 1);
  }
  if (next <= LAST) result.push([next, LAST]);
  return result;
}
