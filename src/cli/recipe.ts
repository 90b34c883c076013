import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import type { Option } from "commander";
import type * as Yaml from "yaml";
import { UsageError } from "../system/errors.js";
import { didYouMean } from "../system/suggest.js";
import type { CliCommand, OptionGroup } from "./command.js";

/** The key for the MODEL argument. */
const MODEL_KEY = "model";

/** Lets a command take its options from a file; those on the command line win. */
export const recipe: OptionGroup = (command) =>
  command
    .option("--recipe <file>", "options from a YAML file, as `coppice init` writes it; the command line wins")
    .onOptions((operands) => {
      const file: unknown = command.getOptionValue("recipe");
      if (typeof file === "string") applyRecipe(command, file, operands);
    });

/** Sets the options that a recipe gives and the command line does not. */
function applyRecipe(command: CliCommand, file: string, operands: string[]): void {
  const options = new Map(
    command.options
      .filter(({ long }) => long !== "--recipe" && long !== "--json")
      .map((option) => [option.long?.replace(/^--/, "") ?? "", option] as const),
  );
  for (const [key, value] of readRecipe(file)) {
    const option = options.get(key);
    const where = `${file}: ${key}`;
    if (key === MODEL_KEY) {
      if (operands.length === 0) operands.push(single(value, where));
    } else if (option === undefined) {
      const known = [MODEL_KEY, ...options.keys()];
      throw new UsageError(
        `${file}: there is no setting ${JSON.stringify(key)}; a recipe has the options of coppice ${command.name()}, without --, and ${MODEL_KEY}.${didYouMean(key, known)}`,
      );
    } else if (command.getOptionValueSource(option.attributeName()) !== "cli") {
      const parsed = parsedValue(option, value, where);
      if (parsed !== undefined) command.setOptionValueWithSource(option.attributeName(), parsed, "config");
    }
  }
}

/** A recipe's values, as texts: what one would type on the command line. */
type RecipeValue = string | readonly string[];

/** @throws UsageError with the file, and the line where it is not YAML */
function readRecipe(file: string): [string, RecipeValue][] {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    throw new UsageError(`--recipe ${file} cannot be read (${(error as NodeJS.ErrnoException).code ?? error})`);
  }
  const { parseDocument } = createRequire(import.meta.url)("yaml") as typeof Yaml;
  const document = parseDocument(text, { schema: "failsafe" }); // every value stays as it is written
  const [error] = document.errors;
  if (error !== undefined) throw new UsageError(`${file} is no recipe: ${error.message.trim()}`);
  const content: unknown = document.toJS() ?? {};
  if (typeof content !== "object" || content === null || Array.isArray(content))
    throw new UsageError(`${file} is no recipe: it must have lines like \`target: 0.67x\``);
  return Object.entries(content).map(([key, value]) => [key, checkedValue(value, `${file}: ${key}`)]);
}

function checkedValue(value: unknown, where: string): RecipeValue {
  if (typeof value === "string" && value !== "") return value;
  if (Array.isArray(value) && value.length > 0 && value.every((one) => typeof one === "string")) return value;
  throw new UsageError(`${where} needs a value, or a list of values`);
}

function single(value: RecipeValue, where: string): string {
  if (typeof value === "string") return value;
  throw new UsageError(`${where} takes one value, not a list`);
}

/** A value as the command line would give it. @throws UsageError when the option does not take it */
function parsedValue(option: Option, value: RecipeValue, where: string): unknown {
  if (option.isBoolean()) {
    if (value === "true" || value === "false") return (value === "true") !== option.negate;
    throw new UsageError(`${where} is ${JSON.stringify(value)}: true or false is needed`);
  }
  if (option.optional && value === "true") return true;
  if (option.optional && value === "false") return undefined;
  try {
    if (option.variadic) return [value].flat();
    const text = [value].flat().join(","); // a list of names, as --gguf takes it
    return option.parseArg === undefined ? single(value, where) : option.parseArg(text, undefined);
  } catch (error) {
    throw new UsageError(
      `${where} is ${JSON.stringify(value)}: ${error instanceof Error ? error.message : String(error)}`,
    );
  }
}
