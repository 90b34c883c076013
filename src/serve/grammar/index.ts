export { checkGrammar } from "./check.js";
export { either, GrammarRules, literal } from "./gbnf.js";
export { spaceRule } from "./json-rules.js";
export { jsonBody } from "./json-schema.js";
export { regexBody } from "./regex.js";
