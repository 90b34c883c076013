#!/usr/bin/env node
import { launchOf } from "../ranks/launch.js";
import { runCommandLine } from "./program.js";

// Standard output carries results only; libraries that log with console.debug and console.log go to standard error.
console.debug = console.error;
console.log = console.error;

// The reader of the output may stop reading (`coppice ... | head`).
process.stdout.on("error", (error: NodeJS.ErrnoException) => process.exit(error.code === "EPIPE" ? 0 : 1));

// Who reads the progress may stop reading, too: work goes on without.
process.stderr.on("error", () => {});

const args = process.argv.slice(2);
process.exitCode =
  launchOf(process.env) === undefined
    ? await runCommandLine(args)
    : await (await import("./ranks.js")).runAmongRanks(args);
