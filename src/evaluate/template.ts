import { parse, Template, tokenize } from "@huggingface/jinja";
import { FormatError } from "../system/errors.js";
import { didYouMean } from "../system/suggest.js";

type Row = Readonly<Record<string, unknown>>;
/** A node of a parsed template: its kind, and its parts. */
type Node = { readonly type: string } & Readonly<Record<string, unknown>>;

/** Names that templates have without a row. */
const BUILT_IN = [
  "true",
  "false",
  "none",
  "True",
  "False",
  "None",
  "range",
  "namespace",
  "loop",
  "raise_exception",
  "strftime_now",
  "caller",
  "kwargs",
  "varargs",
];
/** What asks whether there is such a column. */
const ASKS_WHETHER = ["defined", "undefined", "default", "d"];

/**
 * A template (Jinja) of a task file, whose variables are a row's columns.
 * @throws FormatError when it cannot be read
 */
export function rowTemplate(source: string, file: string): (row: Row) => string {
  const failed = (error: unknown): FormatError =>
    new FormatError(
      `${file}: the template ${JSON.stringify(source)}: ${error instanceof Error ? error.message : error}`,
    );
  let parsed: Template;
  try {
    parsed = new Template("");
    parsed.parsed = parse(tokenize(source)); // the class alone takes the line ends and blanks beside tags away, as chat templates want it
  } catch (error) {
    throw failed(error);
  }
  const columns = columnsOf(parsed.parsed as unknown as Node);
  // the library drops a line end at the end, also where no tag takes it, and renders what is not there as nothing
  const end = /(?<!-[}%#]\})\n$/.test(source) ? "\n" : "";
  return (row) => {
    const missing = columns.find((column) => !Object.hasOwn(row, column));
    if (missing !== undefined) {
      const known = Object.keys(row);
      throw failed(`a row has no column ${missing}, only ${known.join(", ")}.${didYouMean(missing, known)}`);
    }
    try {
      return parsed.render(row) + end;
    } catch (error) {
      throw failed(error);
    }
  };
}

/** The columns that a template needs: its variables but for those that it sets, or asks for. */
function columnsOf(template: Node): string[] {
  const used = new Set<string>();
  const own = new Set(BUILT_IN);
  const visit = (value: unknown): void => {
    if (Array.isArray(value)) for (const one of value) visit(one);
    else if (value instanceof Map) for (const pair of value) visit(pair);
    else if (isNode(value)) visitNode(value);
  };
  const declare = (value: unknown): void => {
    if (Array.isArray(value)) for (const one of value) declare(one);
    else if (isNode(value) && value.type === "Identifier") own.add(String(value.value));
    else if (isNode(value) && value.type === "TupleLiteral") declare(value.value);
    else if (isNode(value) && value.type === "KeywordArgumentExpression") declare(value.key);
  };
  const visitNode = (node: Node): void => {
    switch (node.type) {
      case "Identifier":
        used.add(String(node.value));
        return;
      case "MemberExpression":
        visit(node.object);
        if (node.computed === true) visit(node.property);
        return;
      // what an operator is called is no column
      case "BinaryExpression":
        visit([node.left, node.right]);
        return;
      case "UnaryExpression":
        visit(node.argument);
        return;
      case "FilterStatement":
        visit(node.body);
        return;
      case "FilterExpression":
      case "TestExpression": {
        const by = (node.filter ?? node.test) as Node;
        const name = (by.type === "CallExpression" ? by.callee : by) as Node;
        if (ASKS_WHETHER.includes(String(name.value))) declare(node.operand);
        else visit(node.operand);
        visit(by.args);
        return;
      }
      case "KeywordArgumentExpression":
        visit(node.value);
        return;
      case "For":
        declare(node.loopvar);
        break;
      case "Set":
        declare(node.assignee);
        break;
      case "Macro":
        declare(node.name);
        declare(node.args);
        break;
      case "CallStatement":
        declare(node.callerArgs);
        break;
    }
    for (const part of Object.values(node)) visit(part);
  };
  visit(template);
  return [...used].filter((name) => !own.has(name));
}

const isNode = (value: unknown): value is Node =>
  typeof value === "object" && value !== null && typeof (value as Node).type === "string";
