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

/** So many of a body that is one element. */
export function repeated(element: string, min: number, max: number | undefined): string {
  if (Math.max(min, max ?? 0) > MOST_REPETITIONS)
    throw new ApiError(
      400,
      `the grammar repeats something ${Math.max(min, max ?? 0)} times: at most ${MOST_REPETITIONS}`,
    );
  if (max === undefined) return min === 0 ? `${element}*` : min === 1 ? `${element}+` : `${element}{${min},}`;
  if (max === 0) return '""';
  if (min === 0 && max === 1) return `${element}?`;
  return min === 1 && max === 1 ? element : `${element}{${min},${max}}`;
}

/** Repetitions are written out in memory. */
export const MOST_REPETITIONS = 512;

/** A character in a literal or a class. */
export function escaped(character: string): string {
  const code = character.codePointAt(0) ?? 0;
  if (/[A-Za-z0-9 _]/.test(character)) return character;
  if (code < 0x100) return `\\x${code.toString(16).padStart(2, "0")}`;
  return code < 0x10000 ? `\\u${code.toString(16).padStart(4, "0")}` : `\\U${code.toString(16).padStart(8, "0")}`;
}
