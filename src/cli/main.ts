#!/usr/bin/env node
import { readFileSync } from "node:fs";
import path from "node:path";
import { Command, CommanderError } from "commander";
import { packageRoot } from "../ggml/library.js";
import { CoppiceError, InterruptedError, UsageError } from "../system/errors.js";
import { benchCommand } from "./bench.js";
import { chatCommand } from "./chat.js";
import { compressCommand } from "./compress.js";
import { distillCommand } from "./distill.js";
import { doctorCommand } from "./doctor.js";
import { evaluateCommand } from "./evaluate.js";
import { exportCommand } from "./export.js";
import { foundryCommand } from "./foundry.js";
import { generateCommand } from "./generate.js";
import { inspectCommand } from "./inspect.js";
import { perplexityCommand } from "./perplexity.js";
import { planCommand } from "./plan.js";
import { pretrainCommand } from "./pretrain.js";
import { pruneCommand } from "./prune.js";
import { quantizeCommand } from "./quantize.js";
import { serveCommand } from "./serve.js";

/** Every command, in the order in which the work flows. Adding one is its file and its name here. */
const COMMANDS = [
  ...[inspectCommand, planCommand, pruneCommand, distillCommand, pretrainCommand],
  ...[
    compressCommand,
    evaluateCommand,
    perplexityCommand,
    exportCommand,
    quantizeCommand,
    generateCommand,
    chatCommand,
  ],
  ...[serveCommand, foundryCommand, benchCommand, doctorCommand],
];

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
for (const command of COMMANDS) program.addCommand(settle(command, program));

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
