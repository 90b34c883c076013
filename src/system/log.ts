import { createRequire } from "node:module";
import type { Logger, pino } from "pino";
import { UsageError } from "./errors.js";
import { didYouMean } from "./suggest.js";

/** From the least that is logged to the most. */
export const LOG_LEVELS = ["silent", "error", "warn", "info", "debug", "trace"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

type Fields = Readonly<Record<string, unknown>>;

/** Writes a line of JSON to standard error for each event of its level: time, level, component, message and fields. */
export type Log = Readonly<Record<Exclude<LogLevel, "silent">, (message: string, fields?: Fields) => void>>;

interface Levels {
  readonly everywhere: LogLevel;
  readonly of: ReadonlyMap<string, LogLevel>;
}

let levels: Levels | undefined;

/** Sets what is logged, over COPPICE_LOG. @param text as {@link parseLevels} has it */
export function setLogLevels(text: string): void {
  levels = parseLevels(text, "the log level");
}

/** Reads a level, and levels of components: `debug`, or `info,engine=trace`. @throws UsageError when it is neither */
function parseLevels(text: string, source: string): Levels {
  const of = new Map<string, LogLevel>();
  let everywhere: LogLevel = "silent";
  for (const part of text.split(",").map((one) => one.trim().toLowerCase())) {
    const [component, name = component ?? ""] = part.split("=");
    const level = LOG_LEVELS.find((known) => known === name);
    if (level === undefined)
      throw new UsageError(
        `${source} is ${JSON.stringify(text)}: a level is one of ${LOG_LEVELS.join(", ")}, and engine=debug sets it for a component.${didYouMean(name, LOG_LEVELS)}`,
      );
    if (part.includes("=") && component !== undefined) of.set(component, level);
    else everywhere = level;
  }
  return { everywhere, of };
}

function currentLevels(): Levels {
  levels ??= parseLevels(process.env.COPPICE_LOG || "silent", "COPPICE_LOG");
  return levels;
}

/** Whether anything is logged. @throws UsageError when COPPICE_LOG is not understood */
export const isLogging = (): boolean =>
  [currentLevels().everywhere, ...currentLevels().of.values()].some((level) => level !== "silent");

function isLogged(component: string, level: LogLevel): boolean {
  const { everywhere, of } = currentLevels();
  return LOG_LEVELS.indexOf(level) <= LOG_LEVELS.indexOf(of.get(component) ?? everywhere);
}

/** The log of a part of the program. Nothing is loaded before there is something to log. */
export function logOf(component: string): Log {
  const at =
    (level: Exclude<LogLevel, "silent">) =>
    (message: string, fields: Fields = {}) => {
      if (isLogged(component, level)) loggerOf(component)[level](fields, message);
    };
  return { error: at("error"), warn: at("warn"), info: at("info"), debug: at("debug"), trace: at("trace") };
}

const loggers = new Map<string, Logger>();

function loggerOf(component: string): Logger {
  const logger = loggers.get(component) ?? serviceLogger(component, "trace");
  loggers.set(component, logger);
  return logger;
}

/** The logger of a service, which has a level of its own. */
export function serviceLogger(component: string, level: LogLevel): Logger {
  const { pino: newLogger } = createRequire(import.meta.url)("pino") as { pino: typeof pino };
  return newLogger(
    {
      level,
      base: { component },
      messageKey: "message",
      timestamp: newLogger.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    newLogger.destination({ dest: 2, sync: true }), // in order, and nothing is lost when the process ends
  );
}
