import { Argument, type Command, type Option } from "commander";
import { CliOption, command } from "./command.js";
import { SCRIPTS, SHELLS, type Shell } from "./completion-scripts.js";

/** A line that asks the shell to complete file names itself. */
const FILES = ":files";

/** Names of values that are paths, in the declarations of options and arguments. */
const PATH = /path|file|dir|model|adapter|place|run|student|scores/i;

interface Candidate {
  readonly word: string;
  readonly description: string;
}

/** What may stand where the cursor is. */
interface Candidates {
  readonly words: readonly Candidate[];
  readonly files: boolean;
}

const wordsCommand = command("words", "List what may stand in place of the last word, for the shells' scripts")
  .argument("[words...]")
  .action(async (words: string[]) => {
    const program = rootOf(wordsCommand);
    const { words: found, files } = await complete(program, words);
    for (const { word, description } of found) process.stdout.write(`${word}\t${description}\n`);
    if (files) process.stdout.write(`${FILES}\n`);
  });

export const completionCommand = command("completion", "Print a script that completes commands, options and values")
  .addCommand(wordsCommand, { hidden: true })
  .helpCommand(false)
  .addArgument(new Argument("<shell>", "the shell it is for").choices(SHELLS))
  .examples(
    "coppice completion bash >> ~/.bashrc",
    "coppice completion zsh >> ~/.zshrc",
    "coppice completion fish > ~/.config/fish/completions/coppice.fish",
  )
  .action((shell: Shell) => void process.stdout.write(SCRIPTS[shell]));

const rootOf = (command: Command): Command => (command.parent === null ? command : rootOf(command.parent));

/**
 * What may stand in place of the last word, from what commands declare.
 * @param words after the program's name; the last is being typed, and may be empty
 */
export async function complete(program: Command, words: readonly string[]): Promise<Candidates> {
  const typed = words.at(-1) ?? "";
  const before = words.slice(0, -1).filter((word) => word !== "="); // bash takes `--option=value` apart
  let current = program;
  let operands = 0;
  let open: Option | undefined; // an option whose value comes next
  for (const word of before) {
    if (word.startsWith("-")) {
      open = current.options.find(({ long, short }) => word === long || word === short);
      if (open?.isBoolean()) open = undefined;
    } else if (open !== undefined) open = open.variadic ? open : undefined;
    else {
      const inner = current.commands.find((one) => one.name() === word);
      if (inner === undefined) operands++;
      else [current, operands] = [inner, 0];
    }
  }
  if (typed.startsWith("-")) return { words: optionsOf(current, before, typed), files: false };
  if (open !== undefined) return valuesOf(open, typed);
  return operandsOf(current, operands, typed);
}

const starting = (words: readonly Candidate[], typed: string): Candidate[] =>
  words.filter(({ word }) => word.startsWith(typed));

/** Options that are not given yet, or may be given several times. */
function optionsOf(current: Command, before: readonly string[], typed: string): Candidate[] {
  const open = current
    .createHelp()
    .visibleOptions(current)
    .filter(({ long, variadic }) => long !== undefined && (variadic || !before.includes(long)));
  return starting(
    open.map(({ long = "", description }) => ({ word: long, description })),
    typed,
  );
}

async function valuesOf(option: Option, typed: string): Promise<Candidates> {
  const completion = option instanceof CliOption ? option.completion : undefined;
  const values = option.argChoices ?? (await completion?.values());
  if (values === undefined) return { words: [], files: PATH.test(/[<[](.+)[\]>]/.exec(option.flags)?.[1] ?? "") };
  const earlier = completion?.list === true ? typed.slice(0, typed.lastIndexOf(",") + 1) : "";
  const words = values.map((value) => ({ word: earlier + value, description: "" }));
  return { words: starting(words, typed), files: false };
}

function operandsOf(current: Command, position: number, typed: string): Candidates {
  const all = current.registeredArguments as readonly Argument[];
  const last = all.at(-1);
  const argument = all[position] ?? (last?.variadic ? last : undefined);
  const inner = position === 0 ? current.createHelp().visibleCommands(current) : [];
  const words = [
    ...inner.map((one) => ({ word: one.name(), description: one.description() })),
    ...(argument?.argChoices ?? []).map((word) => ({ word, description: "" })),
  ];
  return { words: starting(words, typed), files: argument !== undefined && PATH.test(argument.name()) };
}
