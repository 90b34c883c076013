import { ApiError } from "../errors.js";

/**
 * A grammar in llama.cpp's language (GBNF): rules `name ::= body`, where a body has literals in quotes, character classes in brackets,
 * names, groups, `|`, and repetitions.
 */
export class GrammarRules {
  private readonly rules = new Map<string, string>();
  private counter = 0;

  /** Adds a rule. @param name a new one by default @returns the name */
  add(body: string, name = `r${this.counter++}`): string {
    if (this.rules.size >= MAX_RULES) throw new ApiError(400, `the grammar has more than ${MAX_RULES} rules`);
    this.rules.set(name, body);
    return name;
  }

  /** Adds a rule unless it is there already. @returns its name */
  once(name: string, body: () => string): string {
    if (!this.rules.has(name)) {
      this.rules.set(name, ""); // its body may refer to it
      this.rules.set(name, body());
    }
    return name;
  }

  toString(): string {
    return [...this.rules].map(([name, body]) => `${name} ::= ${body}\n`).join("");
  }
}

const MAX_RULES = 4096;

/** A body that matches a text. */
export const literal = (text: string): string => `"${[...text].map(escaped).join("")}"`;

/** A body that matches one of several. */
export const either = (bodies: readonly string[]): string =>
  bodies.length === 1 ? (bodies[0] ?? "") : `(${bodies.join(" | ")})`;

/**
 * Repeats a body that is one element. Large counts are split over rules that repeat a chunk each.
 * @param max no limit where undefined
 * @throws ApiError 400 for a minimum that is too large
 */
export function repeated(rules: GrammarRules, element: string, min: number, max: number | undefined): string {
  if (min > MAX_COUNTED) throw new ApiError(400, `the grammar repeats something ${min} times: at most ${MAX_COUNTED}`);
  const most = max === undefined || max > MAX_COUNTED ? undefined : max; // no answer is that long
  if (most === 0) return '""';
  if (min === 0 && most === undefined) return `${element}*`;
  if (min === 1 && most === undefined) return `${element}+`;
  if (min === 1 && most === 1) return element;
  if (min === 0 && most === 1) return `${element}?`;
  if (Math.max(min, most ?? 0) <= MAX_REPETITIONS) return `${element}{${min},${most ?? ""}}`;
  const name = /^[\w-]+$/.test(element) ? element : rules.add(element);
  const required = min === 0 ? [] : [exactly(rules, name, min)];
  return [...required, most === undefined ? `${name}*` : upTo(rules, name, most - min)]
    .filter((part) => part !== "")
    .join(" ");
}

/** Repetitions that a rule of their own takes together, where there are many. */
const CHUNK = 100;
const MAX_COUNTED = 1 << 20;

function exactly(rules: GrammarRules, element: string, count: number): string {
  if (count <= MAX_REPETITIONS) return count === 0 ? "" : `${element}{${count}}`;
  const chunk = rules.once(`${element}-x${CHUNK}`, () => `${element}{${CHUNK}}`);
  return `${exactly(rules, chunk, Math.floor(count / CHUNK))} ${exactly(rules, element, count % CHUNK)}`.trim();
}

function upTo(rules: GrammarRules, element: string, count: number): string {
  if (count <= MAX_REPETITIONS) return count === 0 ? "" : `${element}{0,${count}}`;
  const chunk = rules.once(`${element}-x${CHUNK}`, () => `${element}{${CHUNK}}`);
  const [whole, rest] = [Math.floor(count / CHUNK), count % CHUNK];
  const fewer = `${upTo(rules, chunk, whole - 1)} ${element}{0,${CHUNK - 1}}`;
  return `(${fewer} | ${exactly(rules, chunk, whole)} ${upTo(rules, element, rest)})`;
}

/** Repetitions of an element at most: llama.cpp writes them out in memory. */
export const MAX_REPETITIONS = 512;

/** A character as it is written in a literal or a class. */
export function escaped(character: string): string {
  const code = character.codePointAt(0) ?? 0;
  if (/[A-Za-z0-9 _]/.test(character)) return character;
  if (code < 0x100) return `\\x${code.toString(16).padStart(2, "0")}`;
  return code < 0x10000 ? `\\u${code.toString(16).padStart(4, "0")}` : `\\U${code.toString(16).padStart(8, "0")}`;
}
