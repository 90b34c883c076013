#!/usr/bin/env node
import { readFileSync } from "node:fs";
import path from "node:path";
import { Command, CommanderError } from "commander";
import { CoppiceError, InterruptedError, UsageError } from "../system/errors.js";
import { packageRoot } from "../system/package-root.js";

/**
 * Every command, in the order in which the work flows. Adding one is its file and its line here. What a command needs is loaded when
 * it is run: its file only says its options.
 */
const COMMANDS: Readonly<Record<string, () => Promise<Command>>> = {
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
  doctor: async () => (await import("./doctor.js")).doctorCommand,
};

/** The one that is asked for, or all where none is: for their help, and to guess what was meant. */
function commandsFor(name: string | undefined): Promise<Command[]> {
  const asked = name !== undefined && Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  return Promise.all((asked === undefined ? Object.values(COMMANDS) : [asked]).map((load) => load()));
}
// Standard output carries results only; libraries that log with console.debug and console.log go to standard error.
console.debug = console.error;
console.log = console.error;

// Whoever reads the output may stop reading (`coppice ... | head`).
process.stdout.on("error", (error: NodeJS.ErrnoException) => process.exit(error.code === "EPIPE" ? 0 : 1));

const { version } = JSON.parse(readFileSync(path.join(packageRoot, "package.json"), "utf8")) as { version: string };
const program = new Command("coppice")
  .description("Make language models smaller and keep them good: prune, distil, measure, quantize, run.")
  .version(version)
  .configureHelp({ helpWidth: 110 })
  .enablePositionalOptions() // a subcommand's options are its own
  .exitOverride();
const settle = (command: Command, parent: Command): Command => {
  command.copyInheritedSettings(parent);
  for (const inner of command.commands) settle(inner as Command, command);
  return command;
};
for (const command of await commandsFor(process.argv[2])) program.addCommand(settle(command, program));

/** Exit codes: 0 done, 1 failed, 2 bad usage, 130 interrupted. */
function exitCodeOf(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2; // commander has printed its message
  const message = messageOf(error);
  if (error instanceof InterruptedError || (error instanceof Error && error.name === "AbortError")) {
    process.stderr.write(`${message}\n`);
    return 130;
  }
  const expected = error instanceof CoppiceError || (error instanceof Error && "code" in error);
  const detail =
    expected && process.env.COPPICE_DEBUG === undefined ? message : error instanceof Error ? error.stack : message;
  process.stderr.write(`coppice: ${detail}\n`);
  return error instanceof UsageError ? 2 : 1;
}

function messageOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.message.startsWith("ENOSPC")
    ? "the disk is full: make room, and the same command goes on"
    : error.message;
}

try {
  await program.parseAsync();
} catch (error) {
  process.exitCode = exitCodeOf(error);
}
