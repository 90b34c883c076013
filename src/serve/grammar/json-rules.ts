import type { GrammarRules } from "./gbnf.js";

/** A blank. Bounded: a model that is unsure could write blanks without end. */
export const spaceRule = (rules: GrammarRules): string => rules.once("space", () => '" "? | "\\n" " "{0,16}');

/** Separates elements and members. */
export function commaRule(rules: GrammarRules): string {
  const space = spaceRule(rules);
  return rules.once("comma", () => `"," ${space}`);
}

export const integerRule = (rules: GrammarRules): string =>
  rules.once("integer", () => '"-"? ("0" | [1-9] [0-9]{0,18})');

export function numberRule(rules: GrammarRules): string {
  const integer = integerRule(rules);
  return rules.once("number", () => `${integer} ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?`);
}
