import { formatGrammar } from "../src/serve/engine/write-task.js";
import { ApiError } from "../src/serve/errors.js";
import { checkGrammar } from "../src/serve/grammar/index.js";
import type { Random } from "../src/system/random.js";

/** The grammar of a required JSON form. */
export const jsonGrammar = (schema: unknown, options: { readonly param: string; readonly isStrict: boolean }): string =>
  formatGrammar({ kind: "json", schema, ...options }).text;

/** What comes of a schema: its grammar, strict or not, or the words in which it was refused. */
export function compiled(schema: unknown, isStrict: boolean): string | ApiError {
  try {
    const grammar = jsonGrammar(schema, { param: "schema", isStrict });
    checkGrammar(grammar, "schema");
    return grammar;
  } catch (error) {
    if (error instanceof ApiError) return error;
    throw error;
  }
}

/** A part of a grammar (GBNF as our own writers write it): what may come, how often. */
type Node =
  | { readonly kind: "text"; readonly text: string }
  | { readonly kind: "class"; readonly ranges: readonly (readonly [number, number])[]; readonly negated: boolean }
  | { readonly kind: "rule"; readonly name: string }
  | { readonly kind: "choice"; readonly options: readonly (readonly Node[])[] }
  | { readonly kind: "repeat"; readonly node: Node; readonly min: number; readonly max: number };

/** Texts that a grammar lets through, drawn at random: short ones, as it chooses what ends soonest once it is deep. */
export class GrammarSamples {
  private readonly rules = new Map<string, Node>();
  private readonly depths = new Map<string, number>();

  constructor(grammar: string) {
    for (const line of grammar.split("\n")) {
      const [, name, body] = /^([\w-]+) ::= (.*)$/s.exec(line) ?? [];
      if (name !== undefined && body !== undefined) this.rules.set(name, new Parser(body).choice());
    }
    // how deep each rule is at least: a fixed point
    for (let changed = true; changed; ) {
      changed = false;
      for (const [name, node] of this.rules) {
        const depth = 1 + this.depthOf(node);
        if (depth >= (this.depths.get(name) ?? Number.POSITIVE_INFINITY)) continue;
        this.depths.set(name, depth);
        changed = true;
      }
    }
  }

  draw(random: Random, depth = 12): string {
    return this.text({ kind: "rule", name: "root" }, random, depth);
  }

  private depthOf(node: Node): number {
    switch (node.kind) {
      case "rule":
        return this.depths.get(node.name) ?? Number.POSITIVE_INFINITY;
      case "repeat":
        return node.min === 0 ? 0 : this.depthOf(node.node);
      case "choice":
        return Math.min(...node.options.map((option) => Math.max(0, ...option.map((one) => this.depthOf(one)))));
      default:
        return 0;
    }
  }

  private text(node: Node, random: Random, depth: number): string {
    switch (node.kind) {
      case "text":
        return node.text;
      case "rule":
        return this.text(this.rules.get(node.name) as Node, random, depth - 1);
      case "class":
        return drawn(node, random);
      case "repeat": {
        const most = depth < 0 ? node.min : Math.min(node.max, node.min + 3);
        const count = node.min + random.integer(most - node.min + 1);
        return Array.from({ length: count }, () => this.text(node.node, random, depth)).join("");
      }
      default: {
        const depths = node.options.map((option) => Math.max(0, ...option.map((one) => this.depthOf(one))));
        const least = Math.min(...depths);
        const open = node.options.filter((_, i) => depth > 0 || depths[i] === least);
        const option = open[random.integer(open.length)] ?? [];
        return option.map((one) => this.text(one, random, depth)).join("");
      }
    }
  }
}

const FAVOURITES = [..."a0 -é漢😀Z"].map((one) => one.codePointAt(0) ?? 0);

function drawn({ ranges, negated }: Extract<Node, { kind: "class" }>, random: Random): string {
  const isIn = (code: number) => ranges.some(([from, to]) => code >= from && code <= to) !== negated;
  const liked = FAVOURITES.filter(isIn);
  if (negated || (liked.length > 0 && random.integer(2) === 0))
    return String.fromCodePoint(liked[random.integer(liked.length)] ?? 0x62);
  const [from, to] = ranges[random.integer(ranges.length)] ?? [0x62, 0x62];
  return String.fromCodePoint(from + random.integer(to - from + 1));
}

class Parser {
  private at = 0;

  constructor(private readonly text: string) {}

  choice(): Node {
    const options: Node[][] = [[]];
    for (;;) {
      const sign = this.match(/ *([|)]) */y);
      if (sign?.includes("|")) options.push([]);
      else if (sign !== undefined || this.at >= this.text.length) return { kind: "choice", options };
      else options.at(-1)?.push(this.quantified(this.element()));
    }
  }

  private element(): Node {
    this.match(/ +/y);
    const quoted = this.match(/"(?:[^"\\]|\\.)*"/y);
    if (quoted !== undefined) return { kind: "text", text: String.fromCodePoint(...codes(quoted.slice(1, -1))) };
    const set = this.match(/\[\^?(?:[^\]\\]|\\.)+\]/y);
    if (set !== undefined) {
      const negated = set[1] === "^";
      return { kind: "class", negated, ranges: rangesOf(set.slice(negated ? 2 : 1, -1)) };
    }
    if (this.match(/\(/y) !== undefined) return this.choice();
    const name = this.match(/[\w-]+/y);
    if (name === undefined) throw new Error(`a grammar at ${this.text.slice(this.at, this.at + 20)}`);
    return { kind: "rule", name };
  }

  private quantified(node: Node): Node {
    const sign = this.match(/[*+?]|\{[\d,]+\}/y);
    if (sign === undefined) return node;
    if (sign === "?") return { kind: "repeat", node, min: 0, max: 1 };
    const [, min = "", comma, max] = /^\{(\d+)(,?)(\d*)\}$/.exec(sign) ?? [];
    if (min === "") return { kind: "repeat", node, min: Number(sign === "+"), max: 1000 };
    return { kind: "repeat", node, min: Number(min), max: comma === "" ? Number(min) : Number(max || 1e6) };
  }

  private match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.text)?.[0];
    this.at += found?.length ?? 0;
    return found;
  }
}

const CHARACTER = /\\x([0-9a-fA-F]{2})|\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})|\\(.)|([^\\])/gsu;

function codes(text: string): number[] {
  return [...text.matchAll(CHARACTER)].map(([, x, u, long, escaped, plain]) => {
    const hex = x ?? u ?? long;
    if (hex !== undefined) return Number.parseInt(hex, 16);
    const known = { t: 9, r: 13, n: 10 }[escaped ?? ""];
    return known ?? (escaped ?? plain ?? "").codePointAt(0) ?? 0;
  });
}

function rangesOf(text: string): [number, number][] {
  const parts = [...text.matchAll(CHARACTER)].map(([one]) => one);
  const ranges: [number, number][] = [];
  for (let i = 0; i < parts.length; i++) {
    const [from = 0] = codes(parts[i] ?? "");
    const isRange = parts[i + 1] === "-" && i + 2 < parts.length;
    ranges.push([from, isRange ? (codes(parts[i + 2] ?? "")[0] ?? 0) : from]);
    if (isRange) i += 2;
  }
  return ranges;
}
