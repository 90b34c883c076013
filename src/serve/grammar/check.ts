import { ApiError } from "../errors.js";
import { GrammarReader, type Node } from "./reader.js";

const MAX_TEXT = 1 << 18;
const MAX_RULE_DEPTH = 1024;
/** Elements of the grammar in memory, with repetitions written out. */
const MAX_ELEMENTS = 1 << 18;
/** Ways to go on that are open at once. Each is looked at for each token. */
const MAX_WAYS = 4096;
/** Of these, ways that come from skipping optional parts: they multiply when such parts repeat. */
const MAX_SKIPPING_WAYS = 256;

/** What a part of a grammar costs a reader that follows all ways at once. */
interface Cost {
  /** Whether it matches the empty text. */
  readonly empty: boolean;
  /** How many ways lead into it. */
  readonly ways: number;
  /** How many of these skip something before. */
  readonly skipping: number;
  readonly elements: number;
}

/**
 * Checks a grammar before llama.cpp reads it, which sets no limits: there, a repetition of {5,2} never ends, deep nesting overflows the
 * stack, and optional parts that repeat within a repetition multiply. A rule that always needs itself again would make a model write
 * without end.
 * @param param the request's field that the grammar comes from
 * @throws ApiError 400 saying what is wrong, and in which line
 */
export function checkGrammar(text: string, param: string): void {
  if (text.length > MAX_TEXT) throw new ApiError(400, `the grammar has more than ${MAX_TEXT} characters`, { param });
  const reader = new GrammarReader(text, param);
  const rules = reader.rules();
  if (!rules.has("root")) throw reader.refuse("has no rule root (root ::= …)", 0);
  new CostMeter(rules, reader).check();
  const ending = endingRules(rules);
  for (const name of reachable(rules))
    if (!ending.has(name)) throw reader.refuse(`never ends: the rule ${name} always needs itself again`, 0);
}

/** Adds up what rules cost. */
class CostMeter {
  private readonly known = new Map<string, Cost>();
  /** The rules that are being measured, one inside another. */
  private readonly open = new Set<string>();

  constructor(
    private readonly rules: ReadonlyMap<string, Node>,
    private readonly reader: GrammarReader,
  ) {}

  /** @throws ApiError 400 for a grammar that costs too much */
  check(): void {
    let elements = 0;
    for (const [name, node] of this.rules) {
      this.ofRule(name, 0, 0);
      elements += this.of(node, 0).elements;
      if (elements > MAX_ELEMENTS) throw this.reader.refuse(`has more than ${MAX_ELEMENTS} elements`, 0);
    }
  }

  private ofRule(name: string, at: number, depth: number): Cost {
    const known = this.known.get(name);
    if (known !== undefined) return known;
    const node = this.rules.get(name);
    if (node === undefined) throw this.reader.refuse(`has no rule ${name}`, at);
    if (this.open.has(name)) return { empty: false, ways: 1, skipping: 0, elements: 1 }; // comes back to itself
    if (depth > MAX_RULE_DEPTH) throw this.reader.refuse(`has rules in rules deeper than ${MAX_RULE_DEPTH}`, at);
    this.open.add(name);
    const cost = this.of(node, depth + 1);
    this.open.delete(name);
    this.known.set(name, cost);
    if (cost.ways > MAX_WAYS || cost.skipping > MAX_SKIPPING_WAYS)
      throw this.reader.refuse(
        `leaves too many ways open in the rule ${name}: let fewer optional parts follow each other or repeat`,
        at,
      );
    return cost;
  }

  private of(node: Node, depth: number): Cost {
    switch (node.kind) {
      case "terminal":
        return { empty: node.elements === 0, ways: 1, skipping: 0, elements: node.elements };
      case "rule":
        return { ...this.ofRule(node.name, node.at, depth), elements: 1 };
      case "repeat": {
        const { empty, ways, skipping, elements } = this.of(node.node, depth);
        const times = empty && Number.isFinite(node.max) ? node.max : 1;
        return {
          empty: empty || node.min === 0,
          ways: ways * times,
          skipping: skipping + ways * (times - 1),
          elements: 1 + elements * Math.max(1, Number.isFinite(node.max) ? node.max : node.min),
        };
      }
      case "choice": {
        const costs = node.options.map((option) => this.ofSequence(option, depth));
        const sum = (count: (cost: Cost) => number) => costs.reduce((total, cost) => total + count(cost), 0);
        return {
          empty: costs.some(({ empty }) => empty),
          ways: sum(({ ways }) => ways),
          skipping: sum(({ skipping }) => skipping),
          elements: sum(({ elements }) => elements),
        };
      }
    }
  }

  private ofSequence(parts: readonly Node[], depth: number): Cost {
    let [empty, ways, skipping, elements] = [true, 0, 0, 1];
    for (const [i, part] of parts.entries()) {
      const cost = this.of(part, depth);
      elements += cost.elements;
      if (empty) {
        skipping += i === 0 ? cost.skipping : cost.ways;
        ways += cost.ways;
      }
      empty &&= cost.empty;
    }
    return { empty, ways, skipping, elements };
  }
}

/** Calls back with the name of every rule that a part of a grammar refers to. */
function eachReference(node: Node, call: (name: string) => void): void {
  if (node.kind === "rule") call(node.name);
  if (node.kind === "repeat") eachReference(node.node, call);
  if (node.kind === "choice") for (const part of node.options.flat()) eachReference(part, call);
}

/** The rules that a text may reach. */
function reachable(rules: ReadonlyMap<string, Node>): ReadonlySet<string> {
  const found = new Set(["root"]);
  for (const name of found) {
    const node = rules.get(name); // iterating a set visits what is added meanwhile
    if (node !== undefined) eachReference(node, (other) => found.add(other));
  }
  return found;
}

/** The rules that some finite text matches. */
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
