import type { EventEmitter } from "node:events";
import { Command, InvalidArgumentError, Option, type ParseOptionsResult } from "commander";
import type { Ranks } from "../ranks/index.js";
import { UsageError } from "../system/errors.js";
import { didYouMean } from "../system/suggest.js";

/** Options that several commands share: declares them on a command. */
export type OptionGroup = (command: CliCommand) => void;

/** A command of ours: composed of groups of options, and with examples in its help. */
export class CliCommand extends Command {
  /** Of the program: processes that help. */
  ranks: Ranks | undefined;
  private readonly afterOptions: ((operands: string[]) => void)[] = [];

  override createCommand(name?: string): CliCommand {
    return new CliCommand(name);
  }

  override createOption(flags: string, description?: string): CliOption {
    return new CliOption(flags, description);
  }

  /** Adds groups of options, in the order in which the help lists them. */
  with(...groups: readonly OptionGroup[]): this {
    for (const group of groups) group(this);
    return this;
  }

  /** Examples for the end of the help, a line each. */
  examples(...lines: readonly string[]): this {
    return this.addHelpText("after", `\nExample:\n${lines.map((line) => `  ${line}`).join("\n")}`);
  }

  /** Calls back when the options of a command line are read, before it is checked what is missing. @param read may add operands */
  onOptions(read: (operands: string[]) => void): this {
    this.afterOptions.push(read);
    return this;
  }

  override parseOptions(args: string[]): ParseOptionsResult {
    const parsed = super.parseOptions(args);
    if (this.commands.length === 0) this.checkUnknown(parsed.unknown);
    for (const read of this.afterOptions) read(parsed.operands);
    return parsed;
  }

  /** An option that takes several values may have taken the argument, too. */
  missingArgument(name: string): never {
    const greedy = this.options.findLast(
      (one) => one.variadic && [this.getOptionValue(one.attributeName())].flat().length > 1,
    );
    if (greedy?.long)
      throw new UsageError(
        `missing argument '${name}': ${greedy.long} takes all words that follow it; name the ${name} first, or put -- before it`,
      );
    throw new UsageError(`missing argument '${name}'. \`${this.path} --help\` shows how it is called.`);
  }

  /** Commander looks for missing options first, but the one that seems to be missing may have been mistyped. */
  private checkUnknown([first, ...others]: readonly string[]): void {
    if (first === undefined || [first, ...others].some((one) => one === "--help" || one === "-h")) return;
    const [flag = first] = first.split("="); // --flag=value
    const known = this.options.filter(({ hidden }) => !hidden).flatMap(({ long }) => long ?? []);
    const advice = didYouMean(flag, known) || ` \`${this.path} --help\` lists the options.`;
    throw new UsageError(`unknown option '${flag}'.${advice}`);
  }

  /** How it is called: `coppice foundry keys add`. */
  private get path(): string {
    const names: string[] = [];
    for (let one: Command | null = this; one !== null; one = one.parent) names.unshift(one.name());
    return names.join(" ");
  }
}

/** The values that completion offers for an option. */
export interface Completion {
  readonly values: () => readonly string[] | Promise<readonly string[]>;
  /** Whether the option takes several, separated by commas. */
  readonly list: boolean;
}

/** An option of ours: it suggests what was meant, and completes in shells. */
export class CliOption extends Option {
  /** Undefined where the choices say it all, or the name of the value: that of a path is completed from files. */
  completion: Completion | undefined;

  override choices(values: readonly string[]): this {
    super.choices([...values]);
    const parse = this.parseArg;
    return this.argParser((value: string, previous: unknown) => {
      if (!values.includes(value))
        throw new InvalidArgumentError(`Allowed choices are ${values.join(", ")}.${didYouMean(value, values)}`);
      return parse === undefined ? value : parse(value, previous);
    });
  }

  /** Offers values in shells, for options whose values are not a fixed set. */
  completes(values: Completion["values"], { list = false } = {}): this {
    this.completion = { values, list };
    return this;
  }
}

/** Declares a command. */
export const command = (name: string, description: string): CliCommand => new CliCommand(name).description(description);

/** Declares an option for `addOption`, where choices, a default or completion need more than `.option()` takes. */
export const option = (flags: string, description: string): CliOption => new CliOption(flags, description);

/** What a variable says that turns a switch off. */
const OFF = ["", "0", "false", "no", "off"];

/**
 * Lets environment variables give every option declared so far: `--max-body` is `PREFIX_MAX_BODY`. The command line wins. Commander's own
 * way takes variables' names before an option is added, and any value of a switch for a yes.
 */
export const environment =
  (prefix: string): OptionGroup =>
  (command) => {
    const named = command.options.filter(({ envVar }) => envVar === undefined);
    for (const one of named) one.env(`${prefix}_${one.attributeName().replace(/[A-Z]/g, "_$&").toUpperCase()}`);
    command.onOptions(() => {
      for (const one of named) readVariable(command, one);
    });
  };

/** Takes an option's value from its variable unless it is given. */
function readVariable(command: CliCommand, one: Option): void {
  const attribute = one.attributeName();
  const value = one.envVar === undefined ? undefined : process.env[one.envVar];
  if (value === undefined || command.getOptionValueSource(attribute) === "cli") return;
  const options = command as CliCommand & Pick<EventEmitter, "emit">; // which commander's types do not say
  if (!one.isBoolean()) options.emit(`option:${one.name()}`, value);
  else if (!OFF.includes(value.trim().toLowerCase())) options.emit(`option:${one.name()}`);
  else return;
  command.setOptionValueWithSource(attribute, command.getOptionValue(attribute), "env");
}
