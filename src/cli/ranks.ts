import { hostname } from "node:os";
import { Ranks } from "../ranks/index.js";
import { report, runCommandLine } from "./program.js";

/**
 * Runs a command line that a launcher of MPI programs started in several processes: the first one does the job, the others help.
 * @returns the exit code
 */
export async function runAmongRanks(args: readonly string[]): Promise<number> {
  let ranks: Ranks | undefined;
  try {
    ranks = await Ranks.join();
  } catch (error) {
    return report(error);
  }
  if (ranks === undefined) return runCommandLine(args);
  const exitCode = ranks.isLeader ? await lead(ranks, args) : await follow(ranks);
  ranks.leave();
  return exitCode;
}

async function lead(ranks: Ranks, args: readonly string[]): Promise<number> {
  const { bindingNote } = ranks;
  if (bindingNote !== undefined) process.stderr.write(`${bindingNote}\n`);
  const exitCode = await runCommandLine(args, ranks);
  if (ranks.busy) ranks.abort(exitCode);
  ranks.postAll({ kind: "quit" });
  return exitCode;
}

async function follow(ranks: Ranks): Promise<number> {
  // the leader stops where its state is safe, and then says so
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => {});
  try {
    const { followLeader } = await import("../jobs/shared/follow.js");
    await followLeader(ranks);
    return 0;
  } catch (error) {
    process.stderr.write(`process ${ranks.rank} of ${ranks.size}, on ${hostname()}: `);
    ranks.abort(report(error));
    return 1;
  }
}
