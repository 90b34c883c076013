import { ApiError } from "../errors.js";
import { MAX_REPETITIONS } from "./gbnf.js";

const MAX_DEPTH = 64;

/** A part of a grammar. */
export type Node =
  | { readonly kind: "terminal"; readonly elements: number }
  | { readonly kind: "rule"; readonly name: string; readonly at: number }
  | { readonly kind: "choice"; readonly options: readonly (readonly Node[])[] }
  | { readonly kind: "repeat"; readonly node: Node; readonly min: number; readonly max: number };

/** Reads the text of a grammar (GBNF) by recursive descent. */
export class GrammarReader {
  private at = 0;

  constructor(
    private readonly text: string,
    private readonly param: string,
  ) {}

  refuse(why: string, at: number): ApiError {
    const line = at === 0 ? "" : ` (line ${this.text.slice(0, at).split("\n").length})`;
    return new ApiError(400, `the grammar ${why}${line}`, { param: this.param, code: "invalid_grammar" });
  }

  rules(): Map<string, Node> {
    const rules = new Map<string, Node>();
    this.blanks(true);
    while (this.at < this.text.length) {
      const at = this.at;
      const name = this.match(/[a-zA-Z0-9-]+/y) ?? this.expected("a rule's name");
      this.blanks(false);
      if (this.match(/::=/y) === undefined) this.expected("::=");
      this.blanks(true);
      if (rules.has(name)) throw this.refuse(`has two rules ${name}`, at);
      rules.set(name, this.choice(0));
      if (this.at < this.text.length && this.match(/[\r\n]+/y) === undefined) this.expected("the end of the line");
      this.blanks(true);
    }
    return rules;
  }

  private choice(depth: number): Node {
    if (depth > MAX_DEPTH) throw this.refuse(`nests deeper than ${MAX_DEPTH}`, this.at);
    const options: Node[][] = [];
    do {
      this.blanks(true);
      options.push(this.sequence(depth));
    } while (this.match(/\|/y) !== undefined);
    return { kind: "choice", options };
  }

  private sequence(depth: number): Node[] {
    const nodes: Node[] = [];
    for (;;) {
      const at = this.at;
      const node = this.element(depth);
      if (node === undefined) return nodes;
      this.blanks(depth > 0);
      nodes.push(this.quantified(node, at));
      this.blanks(depth > 0);
    }
  }

  private element(depth: number): Node | undefined {
    const at = this.at;
    const quoted = this.match(/"(?:[^"\\\n]|\\.)*"/y);
    if (quoted !== undefined) return { kind: "terminal", elements: this.characters(quoted, at) };
    const set = this.match(/\[\^?(?:[^\]\\\n]|\\.)+\]/y);
    if (set !== undefined) return { kind: "terminal", elements: this.ranges(set, at) };
    if (this.match(/\./y) !== undefined) return { kind: "terminal", elements: 1 };
    if (this.match(/\(/y) !== undefined) {
      const node = this.choice(depth + 1);
      this.blanks(true);
      if (this.match(/\)/y) === undefined) this.expected(")");
      return node;
    }
    const name = this.match(/[a-zA-Z0-9-]+/y);
    return name === undefined ? undefined : { kind: "rule", name, at };
  }

  private quantified(node: Node, at: number): Node {
    const sign = this.match(/[*+?]|\{[^}\n]*\}/y);
    if (sign === undefined) return node;
    if (node.kind === "terminal" && node.elements === 0) throw this.refuse("repeats an empty text", at);
    const signs: Record<string, readonly [number, number]> = {
      "*": [0, Number.POSITIVE_INFINITY],
      "+": [1, Number.POSITIVE_INFINITY],
      "?": [0, 1],
    };
    const [, least = "", open, most] = /^\{\s*(\d+)\s*(?:(,)\s*(\d+)?\s*)?\}$/.exec(sign) ?? [];
    const [min, max] = signs[sign] ?? [
      least === "" ? Number.NaN : Number(least),
      open === undefined ? Number(least) : most === undefined ? Number.POSITIVE_INFINITY : Number(most),
    ];
    if (!(min <= max) || max === 0) throw this.refuse(`repeats something ${sign} times`, at);
    if (min > MAX_REPETITIONS || (max > MAX_REPETITIONS && Number.isFinite(max)))
      throw this.refuse(`repeats something ${sign} times: at most ${MAX_REPETITIONS}`, at);
    if (this.match(/[*+?{]/y) !== undefined) throw this.refuse("repeats a repetition: put it in parentheses", at);
    return { kind: "repeat", node, min, max };
  }

  private characters(quoted: string, at: number): number {
    return this.decoded(quoted.slice(1, -1), at).length;
  }

  private ranges(set: string, at: number): number {
    const codes = this.decoded(set.slice(set[1] === "^" ? 2 : 1, -1), at);
    for (let i = 1; i + 1 < codes.length; i++) {
      const [from = 0, to = 0] = [codes[i - 1]?.code, codes[i + 1]?.code];
      if (codes[i]?.text !== "-") continue;
      if (from > to) throw this.refuse(`has a range that ends before it begins: ${set}`, at);
      i++;
    }
    return codes.length;
  }

  private decoded(text: string, at: number): { readonly text: string; readonly code: number }[] {
    return [...text.matchAll(/\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\U[0-9a-fA-F]{8}|\\.|[^\\]/gsu)].map(
      ([character]) => {
        const hex = /^\\[xuU]([0-9a-fA-F]+)$/.exec(character)?.[1];
        const code = hex === undefined ? (character.replace(/^\\/, "").codePointAt(0) ?? 0) : Number.parseInt(hex, 16);
        if (hex === undefined && character.startsWith("\\") && !/^\\[trn\\"[\]]$/.test(character))
          throw this.refuse(`has an unknown escape: ${character}`, at);
        if (code > 0x10ffff) throw this.refuse(`has a code point beyond U+10FFFF: ${character}`, at);
        return { text: character, code };
      },
    );
  }

  /** Skips blanks and comments. @param lines whether also line ends, where the rule cannot end */
  private blanks(lines: boolean): void {
    while (this.match(lines ? /[ \t\r\n]+|#[^\n]*/y : /[ \t]+|#[^\n]*/y) !== undefined);
  }

  private match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.at;
    const [found] = pattern.exec(this.text) ?? [];
    if (found !== undefined) this.at += found.length;
    return found;
  }

  private expected(what: string): never {
    const found = this.text.slice(this.at, this.at + 10) || "its end";
    throw this.refuse(`has ${JSON.stringify(found)} where ${what} should be`, this.at);
  }
}
