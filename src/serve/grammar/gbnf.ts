import { ApiError } from "../errors.js";

/**
 * The grammar language of llama.cpp: rules `name ::= body`, where a body is literals in quotes, classes of characters in brackets,
 * names, groups, `|`, and repetitions.
 */
export class GrammarRules {
  private readonly rules = new Map<string, string>();
  private counter = 0;

  /** Adds a rule, under a name of its own where none is given. @returns the name */
  add(body: string, name = `r${this.counter++}`): string {
    if (this.rules.size >= MOST_RULES) throw new ApiError(400, `the grammar has more than ${MOST_RULES} rules`);
    this.rules.set(name, body);
    return name;
  }

  /** A rule that is written once, whoever needs it. */
  once(name: string, body: () => string): string {
    if (!this.rules.has(name)) {
      this.rules.set(name, ""); // a rule may need itself
      this.rules.set(name, body());
    }
    return name;
  }

  toString(): string {
    return [...this.rules].map(([name, body]) => `${name} ::= ${body}\n`).join("");
  }
}

const MOST_RULES = 4096;

/** A text as it stands. */
export const literal = (text: string): string => `"${[...text].map(escaped).join("")}"`;

/** One of several. */
export const either = (bodies: readonly string[]): string =>
  bodies.length === 1 ? (bodies[0] ?? "") : `(${bodies.join(" | ")})`;

/** So many of a body that is one element. Many are said by tens of rules that each say some. */
export function repeated(rules: GrammarRules, element: string, min: number, max: number | undefined): string {
  if (min > MOST_COUNTED)
    throw new ApiError(400, `the grammar repeats something ${min} times: at most ${MOST_COUNTED}`);
  const most = max === undefined || max > MOST_COUNTED ? undefined : max; // no answer is as long
  if (most === 0) return '""';
  if (min === 0 && most === undefined) return `${element}*`;
  if (min === 1 && most === undefined) return `${element}+`;
  if (min === 1 && most === 1) return element;
  if (min === 0 && most === 1) return `${element}?`;
  if (Math.max(min, most ?? 0) <= MOST_REPETITIONS) return `${element}{${min},${most ?? ""}}`;
  const one = /^[\w-]+$/.test(element) ? element : rules.add(element);
  const needed = min === 0 ? [] : [exactly(rules, one, min)];
  return [...needed, most === undefined ? `${one}*` : upTo(rules, one, most - min)]
    .filter((part) => part !== "")
    .join(" ");
}

/** Of what is repeated more often, how many make a rule of their own. */
const CHUNK = 100;
const MOST_COUNTED = 1 << 20;

function exactly(rules: GrammarRules, element: string, count: number): string {
  if (count <= MOST_REPETITIONS) return count === 0 ? "" : `${element}{${count}}`;
  const chunk = rules.once(`${element}-x${CHUNK}`, () => `${element}{${CHUNK}}`);
  return `${exactly(rules, chunk, Math.floor(count / CHUNK))} ${exactly(rules, element, count % CHUNK)}`.trim();
}

function upTo(rules: GrammarRules, element: string, count: number): string {
  if (count <= MOST_REPETITIONS) return count === 0 ? "" : `${element}{0,${count}}`;
  const chunk = rules.once(`${element}-x${CHUNK}`, () => `${element}{${CHUNK}}`);
  const [whole, rest] = [Math.floor(count / CHUNK), count % CHUNK];
  const fewer = `${upTo(rules, chunk, whole - 1)} ${element}{0,${CHUNK - 1}}`;
  return `(${fewer} | ${exactly(rules, chunk, whole)} ${upTo(rules, element, rest)})`;
}

/** Repetitions are written out in memory: in one go, at most so many. */
export const MOST_REPETITIONS = 512;

/** A character in a literal or a class. */
export function escaped(character: string): string {
  const code = character.codePointAt(0) ?? 0;
  if (/[A-Za-z0-9 _]/.test(character)) return character;
  if (code < 0x100) return `\\x${code.toString(16).padStart(2, "0")}`;
  return code < 0x10000 ? `\\u${code.toString(16).padStart(4, "0")}` : `\\U${code.toString(16).padStart(8, "0")}`;
}
