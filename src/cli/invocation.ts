import type { Command, Option } from "commander";
import type { Invocation, OptionSource } from "../jobs/invocation.js";

/** How to call the values' sources that commander tells apart; a default is none. */
const SOURCES: Readonly<Record<string, OptionSource>> = {
  cli: "command line",
  env: "environment",
  config: "recipe",
};

/** These change what is shown, or what an earlier run has left, and not what a run does. */
const NOT_REPEATED = ["json", "verbose", "restart"];

/** The command line of a command, with the values that its options have from wherever. */
export function invocationOf(command: Command): Invocation {
  const words = [...namesOf(command), ...command.args];
  const sources: Record<string, OptionSource> = {};
  for (const option of command.options) {
    const name = option.attributeName();
    const source = SOURCES[command.getOptionValueSource(name) ?? ""];
    if (source === undefined || NOT_REPEATED.includes(name)) continue;
    sources[name] = source;
    words.push(...wordsOf(option, command.getOptionValue(name)));
  }
  return { words, directory: process.cwd(), sources };
}

/** The names of a command and those that it belongs to, without the program's. */
const namesOf = (command: Command): string[] =>
  command.parent === null ? [] : [...namesOf(command.parent), command.name()];

/** An option as it is written. */
function wordsOf(option: Option, value: unknown): string[] {
  const flag = option.long ?? option.flags;
  if (typeof value === "boolean") return value === !option.negate ? [flag] : [];
  if (!Array.isArray(value)) return [flag, String(value)];
  return option.variadic ? [flag, ...value.map(String)] : [flag, value.join(",")];
}
