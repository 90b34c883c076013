import { type ChildProcess, spawn } from "node:child_process";
import path from "node:path";
import type { Logger } from "pino";
import { packageRoot } from "../system/package-root.js";
import type { FoundryOptions } from "./options.js";
import type { FoundryState } from "./state.js";

/** A worker that exits sooner than this after its start is started again more slowly. */
const EARLY_EXIT_MILLISECONDS = 5000;
const [RESTART_MILLISECONDS, SLOW_RESTART_MILLISECONDS] = [100, 2000];
/** How long workers have to put their jobs back in the queue. */
const STOP_MILLISECONDS = 30_000;

/** Worker processes beside the service, which are started again when they die. */
export class WorkerPool {
  private readonly children = new Set<ChildProcess>();
  private isStopping = false;

  constructor(
    private readonly options: FoundryOptions,
    private readonly state: Pick<FoundryState, "db" | "directory">,
    private readonly logger: Logger,
  ) {}

  get pids(): number[] {
    return [...this.children].flatMap(({ pid }) => pid ?? []);
  }

  start(count: number): void {
    for (let i = 0; i < count; i++) this.spawn();
  }

  private spawn(): void {
    const { device, threads, deadAfterSeconds, logLevel, storage } = this.options;
    const flags = {
      data: this.state.directory,
      device,
      threads,
      "dead-after": deadAfterSeconds,
      "log-level": logLevel,
      storage,
    };
    const args = [path.join(packageRoot, "bin/coppice.cjs"), "foundry", "worker", "--attached"];
    for (const [name, value] of Object.entries(flags)) if (value !== undefined) args.push(`--${name}`, `${value}`);
    const child = spawn(process.execPath, args, {
      stdio: ["pipe", "ignore", "inherit"],
      env: { ...process.env, DATABASE_URL: this.state.db.url }, // not an argument: every user can read those
    });
    this.children.add(child);
    child.stdin?.on("error", () => {});
    const began = performance.now();
    const restart = (code: number | string | null) => {
      if (!this.children.delete(child) || this.isStopping) return;
      this.logger.error({ pid: child.pid, code }, "a worker died: starting another");
      const isEarly = performance.now() - began < EARLY_EXIT_MILLISECONDS;
      const delay = isEarly ? SLOW_RESTART_MILLISECONDS : RESTART_MILLISECONDS;
      setTimeout(() => !this.isStopping && this.spawn(), delay);
    };
    child.once("exit", (code, signal) => restart(code ?? signal));
    child.once("error", (error) => restart(String(error)));
  }

  /** Ends the workers, after they have put their jobs back in the queue. */
  async stop(): Promise<void> {
    this.isStopping = true;
    await Promise.all([...this.children].map(stopProcess));
  }
}

const stopProcess = (child: ChildProcess): Promise<void> =>
  new Promise((resolve) => {
    if (child.exitCode !== null || child.signalCode !== null) return resolve();
    const timer = setTimeout(() => child.kill("SIGKILL"), STOP_MILLISECONDS);
    child.once("exit", () => {
      clearTimeout(timer);
      resolve();
    });
    child.kill("SIGTERM");
  });
