import { ApiError } from "../errors.js";
import { MOST_REPETITIONS } from "./gbnf.js";

const MOST_TEXT = 1 << 18;
const MOST_DEPTH = 64;
/** Elements of the grammar in memory, repetitions written out. */
const MOST_ELEMENTS = 1 << 18;
/** Ways to go on that are open at once. Each is looked at for each token. */
const MOST_WAYS = 4096;
/** Of these, ways that come from leaving things out: they multiply when such things repeat. */
const MOST_SKIPPING_WAYS = 256;

/** What a part of a grammar means for a reader that follows all ways at once. */
interface Cost {
  /** Whether it can be nothing. */
  readonly empty: boolean;
  /** How many ways lead into it, and how many of them leave something out before. */
  readonly ways: number;
  readonly skipping: number;
  readonly elements: number;
}

type Node =
  | { readonly kind: "terminal"; readonly elements: number }
  | { readonly kind: "rule"; readonly name: string; readonly at: number }
  | { readonly kind: "choice"; readonly options: readonly (readonly Node[])[] }
  | { readonly kind: "repeat"; readonly node: Node; readonly min: number; readonly max: number };

/**
 * Reads a grammar before llama.cpp does, which has no limits: there, a repetition of {5,2} never ends, a deep nesting overflows the
 * stack, and what may be empty and repeats within a repetition multiplies. A rule that always needs itself again would have a model
 * write without end.
 * @throws ApiError 400 saying what is wrong, and in which line
 */
export function checkGrammar(text: string, param: string): void {
  if (text.length > MOST_TEXT) throw new ApiError(400, `the grammar has more than ${MOST_TEXT} characters`, { param });
  const reader = new Reader(text, param);
  const rules = reader.rules();
  if (!rules.has("root")) throw reader.refuse("has no rule root (root ::= …)", 0);

  const known = new Map<string, Cost>();
  const under = new Set<string>();
  const ofRule = (name: string, at: number, depth: number): Cost => {
    const cost = known.get(name);
    if (cost !== undefined) return cost;
    const node = rules.get(name);
    if (node === undefined) throw reader.refuse(`has no rule ${name}`, at);
    if (under.has(name)) return { empty: false, ways: 1, skipping: 0, elements: 1 }; // comes back to itself
    if (depth > MOST_RULE_DEPTH) throw reader.refuse(`has rules in rules deeper than ${MOST_RULE_DEPTH}`, at);
    under.add(name);
    const own = costOf(node, depth + 1);
    under.delete(name);
    known.set(name, own);
    if (own.ways > MOST_WAYS || own.skipping > MOST_SKIPPING_WAYS)
      throw reader.refuse(
        `leaves too many ways open in the rule ${name}: let less that may be empty follow or repeat`,
        at,
      );
    return own;
  };
  const costOf = (node: Node, depth: number): Cost => {
    switch (node.kind) {
      case "terminal":
        return { empty: node.elements === 0, ways: 1, skipping: 0, elements: node.elements };
      case "rule":
        return { ...ofRule(node.name, node.at, depth), elements: 1 };
      case "repeat": {
        const { empty, ways, skipping, elements } = costOf(node.node, depth);
        const times = empty && Number.isFinite(node.max) ? node.max : 1;
        return {
          empty: empty || node.min === 0,
          ways: ways * times,
          skipping: skipping + ways * (times - 1),
          elements: 1 + elements * Math.max(1, Number.isFinite(node.max) ? node.max : node.min),
        };
      }
      case "choice": {
        const costs = node.options.map((option) => {
          let [empty, ways, skipping, elements] = [true, 0, 0, 1];
          for (const [i, part] of option.entries()) {
            const cost = costOf(part, depth);
            elements += cost.elements;
            if (empty) {
              skipping += i === 0 ? cost.skipping : cost.ways;
              ways += cost.ways;
            }
            empty &&= cost.empty;
          }
          return { empty, ways, skipping, elements };
        });
        const sum = (of: (cost: Cost) => number) => costs.reduce((total, cost) => total + of(cost), 0);
        const empty = costs.some((cost) => cost.empty);
        return {
          empty,
          ways: sum(({ ways }) => ways),
          skipping: sum((one) => one.skipping),
          elements: sum((one) => one.elements),
        };
      }
    }
  };
  let elements = 0;
  for (const [name, node] of rules) {
    ofRule(name, 0, 0);
    elements += costOf(node, 0).elements;
    if (elements > MOST_ELEMENTS) throw reader.refuse(`has more than ${MOST_ELEMENTS} elements`, 0);
  }
  const ending = endingRules(rules);
  for (const name of reachable(rules))
    if (!ending.has(name)) throw reader.refuse(`never ends: the rule ${name} always needs itself again`, 0);
}

/** Calls with the name of every rule that a part of a grammar refers to. */
function eachReference(node: Node, call: (name: string) => void): void {
  if (node.kind === "rule") call(node.name);
  if (node.kind === "repeat") eachReference(node.node, call);
  if (node.kind === "choice") for (const part of node.options.flat()) eachReference(part, call);
}

/** The rules that a text may come to. */
function reachable(rules: ReadonlyMap<string, Node>): ReadonlySet<string> {
  const found = new Set(["root"]);
  for (const name of found) {
    const node = rules.get(name); // a set that grows is gone through to its end
    if (node !== undefined) eachReference(node, (other) => found.add(other));
  }
  return found;
}

/** The rules that some text comes to an end of. */
function endingRules(rules: ReadonlyMap<string, Node>): ReadonlySet<string> {
  const ending = new Set<string>();
  const users = new Map<string, Set<string>>();
  for (const [user, node] of rules)
    eachReference(node, (name) => users.set(name, (users.get(name) ?? new Set()).add(user)));
  const ends = (node: Node): boolean => {
    if (node.kind === "rule") return ending.has(node.name);
    if (node.kind === "repeat") return node.min === 0 || ends(node.node);
    return node.kind === "terminal" || node.options.some((option) => option.every(ends));
  };
  const waiting = [...rules.keys()];
  for (let name = waiting.pop(); name !== undefined; name = waiting.pop()) {
    const node = rules.get(name);
    if (node === undefined || ending.has(name) || !ends(node)) continue;
    ending.add(name);
    waiting.push(...(users.get(name) ?? []));
  }
  return ending;
}

const MOST_RULE_DEPTH = 1024;

/** Reads the text of a grammar by recursive descent. */
class Reader {
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
    if (depth > MOST_DEPTH) throw this.refuse(`nests deeper than ${MOST_DEPTH}`, this.at);
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
    if (min > MOST_REPETITIONS || (max > MOST_REPETITIONS && Number.isFinite(max)))
      throw this.refuse(`repeats something ${sign} times: at most ${MOST_REPETITIONS}`, at);
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
    return [...text.matchAll(/\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\U[0-9a-fA-F]{8}|\\.|[^\\]/gsu)].map(([one]) => {
      const hex = /^\\[xuU]([0-9a-fA-F]+)$/.exec(one)?.[1];
      const code = hex === undefined ? (one.replace(/^\\/, "").codePointAt(0) ?? 0) : Number.parseInt(hex, 16);
      if (hex === undefined && one.startsWith("\\") && !/^\\[trn\\"[\]]$/.test(one))
        throw this.refuse(`has an escape that it does not know: ${one}`, at);
      if (code > 0x10ffff) throw this.refuse(`has a character that there is not: ${one}`, at);
      return { text: one, code };
    });
  }

  /** Blanks and comments; line ends too where the rule cannot end. */
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
