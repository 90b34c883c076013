import Table from "cli-table3";
import type { Command } from "commander";
import { withAdapters } from "../checkpoint/adapters.js";
import type { JobOptions } from "../jobs/index.js";
import { UsageError } from "../system/errors.js";
import { type CommonFlags, commonJobOptions } from "./options.js";
import { ProgressDisplay } from "./progress.js";

/** What a command's action is given beside its arguments. */
export interface Session {
  readonly job: JobOptions;
  /** Prints the result: as JSON with --json, else what `render` makes of it. */
  readonly print: <T>(result: T, render: (result: T) => string) => void;
}

/** What a service says when it is told to stop. */
export const SERVICE_ENDS = "finishing what is under way";

/** Wraps an action: progress, Ctrl-C, and where the result goes. @param ending what is said when it is told to stop */
export function action<Arguments extends unknown[], Flags extends CommonFlags>(
  run: (session: Session, flags: Flags, ...args: Arguments) => Promise<void>,
  ending = "stopping after this step",
): (...all: unknown[]) => Promise<void> {
  return async (...all) => {
    const command = all.at(-1) as Command;
    const flags = command.opts() as Flags;
    const display = new ProgressDisplay();
    const abort = new AbortController();
    const interrupt = () => {
      if (abort.signal.aborted) process.exit(130);
      process.stderr.write(`\n${ending}; press Ctrl-C again to stop at once\n`);
      abort.abort();
    };
    process.on("SIGINT", interrupt);
    process.on("SIGTERM", interrupt);
    const unwatch = onOrphaned(() => {
      if (!abort.signal.aborted) interrupt();
    });
    try {
      const print: Session["print"] = (result, render) => {
        display.end();
        process.stdout.write(flags.json === true ? `${JSON.stringify(result)}\n` : `${render(result)}\n`);
      };
      await run(
        { job: commonJobOptions(flags, display, abort.signal), print },
        flags,
        ...(adapted(all.slice(0, -2), flags.lora) as Arguments),
      );
    } finally {
      display.end();
      process.off("SIGINT", interrupt);
      process.off("SIGTERM", interrupt);
      unwatch();
    }
  };
}

/** A command's arguments, the model among them with the adapters that are to be merged into it. */
function adapted([model, ...others]: readonly unknown[], lora: readonly string[] | undefined): unknown[] {
  if (lora === undefined) return [model, ...others];
  const several = Array.isArray(model);
  if (several && model.length > 1)
    throw new UsageError("--lora is for one model; of several, each names its own: MODEL+lora:ADAPTER");
  const name = withAdapters(String(several ? model[0] : model), lora);
  return [several ? [name] : name, ...others];
}

const PARENT_MILLISECONDS = 200;

/**
 * npm (`npx coppice`, `npm run`) starts a shell that starts this process, and hands signals on to the shell only. One that does not
 * hand them on in its turn, as dash does not, just ends: then this process has another parent.
 * @returns what ends the watch
 */
function onOrphaned(told: () => void): () => void {
  if (process.env.npm_lifecycle_event === undefined) return () => {};
  const parent = process.ppid;
  const timer = setInterval(() => {
    if (process.ppid === parent) return;
    clearInterval(timer);
    told();
  }, PARENT_MILLISECONDS).unref();
  return () => clearInterval(timer);
}

/** A table for the terminal. Columns after the first are right-aligned. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const made = new Table({
    head: [...head],
    colAligns: head.map((_, i) => (i === 0 ? "left" : "right")),
    style: { head: [], border: [] },
  });
  for (const row of rows) made.push([...row]);
  return made.toString();
}

/** An example at the end of a command's help. */
export const example = (command: Command, ...lines: string[]): Command =>
  command.addHelpText("after", `\nExample:\n${lines.map((line) => `  ${line}`).join("\n")}`);

/** Where llama.cpp will do something else than the model says. */
export const renderNotes = (notes: readonly string[]): string[] => notes.map((note) => `note: ${note}`);
