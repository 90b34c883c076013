import { type Command, CommanderError } from "commander";
import type { Ranks } from "../ranks/index.js";
import { CoppiceError, InterruptedError, UsageError } from "../system/errors.js";
import { packageVersion } from "../system/package-version.js";
import { CliCommand } from "./command.js";

/**
 * Every command, in the order in which the work flows. To add one, write its file and its line here. A command's file declares its
 * options only, and loads what it needs when it runs.
 */
const COMMANDS: Readonly<Record<string, () => Promise<Command>>> = {
  init: async () => (await import("./init.js")).initCommand,
  inspect: async () => (await import("./inspect.js")).inspectCommand,
  plan: async () => (await import("./plan.js")).planCommand,
  prune: async () => (await import("./prune.js")).pruneCommand,
  distill: async () => (await import("./distill.js")).distillCommand,
  pretrain: async () => (await import("./pretrain.js")).pretrainCommand,
  compress: async () => (await import("./compress.js")).compressCommand,
  evaluate: async () => (await import("./evaluate.js")).evaluateCommand,
  perplexity: async () => (await import("./perplexity.js")).perplexityCommand,
  export: async () => (await import("./export.js")).exportCommand,
  quantize: async () => (await import("./quantize.js")).quantizeCommand,
  generate: async () => (await import("./generate.js")).generateCommand,
  chat: async () => (await import("./chat.js")).chatCommand,
  serve: async () => (await import("./serve.js")).serveCommand,
  foundry: async () => (await import("./foundry.js")).foundryCommand,
  bench: async () => (await import("./bench.js")).benchCommand,
  check: async () => (await import("./check.js")).checkCommand,
  doctor: async () => (await import("./doctor.js")).doctorCommand,
  explain: async () => (await import("./explain.js")).explainCommand,
  completion: async () => (await import("./completion.js")).completionCommand,
};

/** The named command. All of them where there is none of that name, for the help and to guess what was meant, and to complete. */
function loadCommands(name: string | undefined): Promise<Command[]> {
  const named =
    name !== undefined && name !== "completion" && Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  return Promise.all((named === undefined ? Object.values(COMMANDS) : [named]).map((load) => load()));
}

/** The program with the command of that name, or with all commands. */
export async function programFor(name: string | undefined): Promise<CliCommand> {
  const program = new CliCommand("coppice")
    .description("Make language models smaller and keep them good: prune, distill, measure, quantize, run.")
    .version(packageVersion())
    .configureHelp({ helpWidth: 110 })
    .configureOutput({ outputError: (message, write) => write(message.replace(/^error: /, "coppice: ")) })
    .enablePositionalOptions() // a subcommand's options are its own
    .exitOverride();
  for (const command of await loadCommands(name)) program.addCommand(inheriting(command, program));
  return program;
}

function inheriting(command: Command, parent: Command): Command {
  command.copyInheritedSettings(parent);
  for (const inner of command.commands) inheriting(inner as Command, command);
  return command;
}

/**
 * Runs a command line. Results go to standard output; errors, as sentences, to standard error.
 * @param args what follows `coppice`
 * @param ranks processes that help, for commands that can share their work
 * @returns the exit code: 0 done, 1 failed, 2 bad usage, 130 interrupted
 */
export async function runCommandLine(args: readonly string[], ranks?: Ranks): Promise<number> {
  try {
    const program = await programFor(args[0]);
    program.ranks = ranks;
    await program.parseAsync(args, { from: "user" });
    return 0;
  } catch (error) {
    return report(error, args);
  }
}

/** Prints an error. @param args of the command line @returns the exit code for it */
export function report(error: unknown, args: readonly string[] = []): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2; // commander has printed its message
  const isAborted = error instanceof Error && error.name === "AbortError";
  const text = isAborted ? "stopped" : messageOf(error);
  const begins = args.includes("--restart") && /same command/.test(text);
  const message = begins ? `${text} (without --restart, which would begin anew)` : text;
  if (isAborted || error instanceof InterruptedError) {
    process.stderr.write(`${message}\n`);
    return 130;
  }
  const expected = error instanceof CoppiceError || (error instanceof Error && "code" in error);
  const withoutStack = expected && process.env.COPPICE_DEBUG === undefined;
  process.stderr.write(`coppice: ${error instanceof Error && !withoutStack ? error.stack : message}\n`);
  return error instanceof UsageError ? 2 : 1;
}

function messageOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.message.startsWith("ENOSPC")
    ? "the disk is full: make room, and the same command goes on"
    : error.message;
}
