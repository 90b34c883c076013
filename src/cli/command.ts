import { Command, InvalidArgumentError, Option } from "commander";

/** Options that several commands share: declares them on a command. */
export type OptionGroup = (command: CliCommand) => void;

/** A command of ours: composed of groups of options, and with examples in its help. */
export class CliCommand extends Command {
  override createCommand(name?: string): CliCommand {
    return new CliCommand(name);
  }

  override createOption(flags: string, description?: string): Option {
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
}

/** An option of ours: `choices` lists what is allowed, as commander does. */
export class CliOption extends Option {
  override choices(values: readonly string[]): this {
    super.choices([...values]);
    const parse = this.parseArg;
    return this.argParser((value: string, previous: unknown) => {
      if (!values.includes(value)) throw new InvalidArgumentError(`Allowed choices are ${values.join(", ")}.`);
      return parse === undefined ? value : parse(value, previous);
    });
  }
}

/** Declares a command. */
export const command = (name: string, description: string): CliCommand => new CliCommand(name).description(description);

/** Declares an option for `addOption`, where choices or a default need more than `.option()` takes. */
export const option = (flags: string, description: string): CliOption => new CliOption(flags, description);

/** Lets environment variables give every option declared so far: `--max-body` is `PREFIX_MAX_BODY`. */
export const environment =
  (prefix: string): OptionGroup =>
  (command) => {
    for (const one of command.options)
      if (one.envVar === undefined) one.env(`${prefix}_${one.attributeName().replace(/[A-Z]/g, "_$&").toUpperCase()}`);
  };
