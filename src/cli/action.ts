import { isatty } from "node:tty";
import type { Command } from "commander";
import { withAdapters } from "../checkpoint/adapters.js";
import { DEVICE_KINDS } from "../ggml/device-kinds.js";
import { preferDevice } from "../ggml/preferred-device.js";
import type { JobOptions } from "../jobs/index.js";
import type { Ranks } from "../ranks/index.js";
import { UsageError } from "../system/errors.js";
import { logOf, setLogLevels } from "../system/log.js";
import { packageVersion } from "../system/package-version.js";
import { CliCommand } from "./command.js";
import { invocationOf } from "./invocation.js";
import { type CommonFlags, commonJobOptions } from "./options.js";
import { ProgressDisplay } from "./progress.js";

const log = logOf("cli");

/** What a command's action gets beside its arguments. */
export interface Session {
  readonly job: JobOptions;
  /** Prints the result: as JSON with --json, else as `render` formats it. */
  readonly print: <T>(result: T, render: (result: T) => string) => void;
}

/** What a service prints when it is asked to stop. */
export const SERVICE_ENDS = "finishing what is under way";

/** Wraps an action: progress, Ctrl-C, and where the result goes. @param stopping printed on the first Ctrl-C */
export function action<Arguments extends unknown[], Flags extends CommonFlags>(
  run: (session: Session, flags: Flags, ...args: Arguments) => Promise<void>,
  stopping = "stopping after this step",
): (...all: unknown[]) => Promise<void> {
  return async (...all) => {
    const command = all.at(-1) as Command;
    const flags = command.opts() as Flags;
    if (flags.verbose === true) setLogLevels("debug");
    const device = DEVICE_KINDS.find((kind) => kind === flags.device); // plan's can also name a phone
    if (device !== undefined) preferDevice(device);
    const display = new ProgressDisplay();
    const { signal, unwatch } = watchForStop(stopping);
    const print: Session["print"] = (result, render) => {
      display.end();
      process.stdout.write(flags.json === true ? `${JSON.stringify(result)}\n` : `${render(result)}\n`);
    };
    const invocation = invocationOf(command);
    const job = { ...commonJobOptions(flags, display), signal, invocation, ranks: ranksOf(command) };
    const started = performance.now();
    log.debug("command begun", { command: command.name(), version: packageVersion(), node: process.version });
    try {
      const adapters = mergesAdapters(command) ? flags.lora : undefined;
      await run({ job, print }, flags, ...(withLora(all.slice(0, -2), adapters) as Arguments));
    } finally {
      const seconds = (performance.now() - started) / 1000;
      log.debug("command ended", { command: command.name(), seconds, peakMemoryBytes: peakMemoryBytes() });
      display.end();
      unwatch();
    }
  };
}

/** The processes that help a command. */
function ranksOf(command: Command): Ranks | undefined {
  let program = command;
  while (program.parent !== null) program = program.parent;
  return program instanceof CliCommand ? program.ranks : undefined;
}

const peakMemoryBytes = (): number => process.resourceUsage().maxRSS * 1024;

/**
 * The signal is aborted by the first Ctrl-C, SIGTERM, end of npm, or end of the terminal; a second Ctrl-C ends the process. What has no
 * terminal, as under nohup, goes on: nohup has SIGHUP ignored, but Node undoes that when it starts.
 */
function watchForStop(stopping: string): { readonly signal: AbortSignal; readonly unwatch: () => void } {
  const abort = new AbortController();
  const hadTerminal = isatty(1) || isatty(2); // nohup redirects these everywhere, but its input only on Linux
  const interrupt = () => {
    if (abort.signal.aborted) process.exit(130);
    process.stderr.write(`\n${stopping}; press Ctrl-C again to stop at once\n`);
    abort.abort();
  };
  process.on("SIGINT", interrupt);
  process.on("SIGTERM", interrupt);
  let hasHungUp = false;
  const hangUp = () => {
    hasHungUp = true;
    if (hadTerminal && !abort.signal.aborted) interrupt();
  };
  process.on("SIGHUP", hangUp);
  const unwatchParent = onOrphaned(() => {
    const outlivesNpm = hasHungUp && !hadTerminal; // npm is a program of Node's, too, and ends under nohup
    if (!outlivesNpm && !abort.signal.aborted) interrupt();
  });
  const unwatch = () => {
    process.off("SIGINT", interrupt);
    process.off("SIGTERM", interrupt);
    process.off("SIGHUP", hangUp);
    unwatchParent();
    if (hasHungUp && hadTerminal) process.kill(process.pid, "SIGHUP"); // Node itself would end by a failed assertion where its terminal is gone
  };
  return { signal: abort.signal, unwatch };
}

/** Whether a command's adapters are merged into its model before all else: serve has a way of its own. */
const mergesAdapters = (command: Command): boolean =>
  command.options.some(({ long, variadic }) => long === "--lora" && variadic);

/** A command's arguments; the adapters that are to be merged into the model become part of its name. */
function withLora([model, ...others]: readonly unknown[], lora: readonly string[] | undefined): unknown[] {
  if (lora === undefined) return [model, ...others];
  if (!Array.isArray(model)) return [withAdapters(String(model), lora), ...others];
  if (model.length > 1)
    throw new UsageError("--lora is for one model; of several, each names its own: MODEL+lora:ADAPTER");
  return [[withAdapters(String(model[0]), lora)], ...others];
}

const PARENT_MILLISECONDS = 200;

/**
 * npm (`npx coppice`, `npm run`) starts a shell that starts this process, and passes signals to the shell only. A shell that does
 * not pass them on, as dash does not, just ends: then this process has another parent.
 * @returns a function that ends the watch
 */
function onOrphaned(callback: () => void): () => void {
  if (process.env.npm_lifecycle_event === undefined) return () => {};
  const parent = process.ppid;
  const timer = setInterval(() => {
    if (process.ppid === parent) return;
    clearInterval(timer);
    callback();
  }, PARENT_MILLISECONDS).unref();
  return () => clearInterval(timer);
}

/** Waits until a service is asked to stop. */
export const stopped = (signal: AbortSignal | undefined): Promise<void> =>
  new Promise((resolve) => {
    if (signal?.aborted) resolve();
    signal?.addEventListener("abort", () => resolve(), { once: true });
  });
