import { type ChildProcess, fork } from "node:child_process";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import path from "node:path";
import { CoppiceError } from "../../system/errors.js";
import { packageRoot } from "../../system/package-root.js";
import { PASSED, type ProgramMessage, type SupervisorMessage } from "./messages.js";

export interface SandboxOptions {
  /** Time limit for a program; 10 by default, as WebAssembly takes about three times as long as code_eval's Python, which gets 3. */
  readonly seconds?: number | undefined;
  /** Memory limit for a program; 512 MiB by default. */
  readonly memoryBytes?: number | undefined;
  /** How many programs run at once; the number of cores, at most 8, by default. */
  readonly workers?: number | undefined;
}

/** How a program ended. */
export interface ProgramOutcome {
  readonly passed: boolean;
  /** The last lines of the error, or `passed`. */
  readonly reason: string;
}

interface PendingProgram {
  readonly id: number;
  readonly program: string;
  readonly finish: (outcome: ProgramOutcome) => void;
  /** Whether the process already died once while this ran. */
  retried: boolean;
}

const [SECONDS, MEMORY_BYTES] = [10, 512 << 20];
/** Each worker may use all the memory that a program may have. */
const MOST_WORKERS = 8;
/** No model that generates a few thousand tokens writes a longer program. */
const MOST_CHARACTERS = 1 << 20;
/** The compiled file, even when running from source: Node starts it directly. */
const SUPERVISOR = path.join(packageRoot, "dist/evaluate/sandbox/supervisor.js");

/**
 * Runs untrusted Python programs. Each gets a fresh interpreter (Pyodide: CPython in WebAssembly) in a thread of its own, inside
 * a process that can read nothing but the interpreter and has no network, environment or child processes, under limits of
 * memory and time. Whatever a program does counts as its own failure only.
 */
export class PythonSandbox {
  private readonly options: { readonly seconds: number; readonly memoryBytes: number; readonly workers: number };
  private readonly queue: PendingProgram[] = [];
  private readonly running = new Map<number, PendingProgram>();
  private process: ChildProcess | undefined;
  private ready = false;
  private starts = 0;
  private nextId = 0;

  constructor({
    seconds = SECONDS,
    memoryBytes = MEMORY_BYTES,
    workers = Math.min(MOST_WORKERS, availableParallelism()),
  }: SandboxOptions = {}) {
    this.options = { seconds, memoryBytes, workers };
  }

  /** Runs a program. It passes when it ends without an exception of any kind. */
  run(program: string): Promise<ProgramOutcome> {
    if (program.length > MOST_CHARACTERS) return Promise.resolve({ passed: false, reason: "the program is too long" });
    return new Promise((resolve, reject) => {
      this.queue.push({ id: this.nextId++, program, finish: resolve, retried: false });
      try {
        this.proceed();
      } catch (error) {
        reject(error);
      }
    });
  }

  private proceed(): void {
    if (this.process === undefined) this.start();
    while (this.ready && this.running.size < this.options.workers) {
      const pending = this.queue.shift();
      if (pending === undefined) break;
      const { id, program } = pending;
      this.running.set(id, pending);
      this.process?.send({ id, program } satisfies ProgramMessage);
    }
    // an idle sandbox does not keep this process alive
    if (this.running.size === 0 && this.queue.length === 0) this.process?.unref();
    else this.process?.ref();
  }

  private start(): void {
    const require = createRequire(import.meta.url);
    const pyodide = path.dirname(require.resolve("pyodide/package.json"));
    const { seconds, memoryBytes } = this.options;
    const [major = 20] = process.versions.node.split(".").map(Number);
    const child = fork(SUPERVISOR, [pyodide, `${memoryBytes}`, `${seconds}`], {
      execArgv: [
        major >= 23 ? "--permission" : "--experimental-permission",
        "--allow-worker",
        `--allow-fs-read=${path.join(pyodide, path.sep)}*`,
        `--allow-fs-read=${path.join(path.dirname(SUPERVISOR), path.sep)}*`,
        "--disallow-code-generation-from-strings",
        "--no-warnings",
      ],
      env: {},
      stdio: ["ignore", "ignore", "pipe", "ipc"],
    });
    let errorOutput = "";
    child.stderr?.on("data", (chunk) => {
      errorOutput = `${errorOutput}${chunk}`.slice(-1000);
    });
    child.on("message", (message: SupervisorMessage) => {
      if ("ready" in message) {
        this.ready = true;
        this.starts = 0;
      } else this.finish(message.id, message.verdict);
      this.proceed();
    });
    child.on("exit", () => this.handleExit(errorOutput));
    this.process = child;
    this.starts++;
  }

  private finish(id: number, verdict: string): void {
    const pending = this.running.get(id);
    this.running.delete(id);
    pending?.finish({ passed: verdict === PASSED, reason: verdict });
  }

  /** Deals with programs whose process died: one that ran alone is to blame, several get another chance. */
  private handleExit(errorOutput: string): void {
    this.process = undefined;
    const neverReady = !this.ready;
    this.ready = false;
    const lost = [...this.running.values()];
    this.running.clear();
    if (neverReady && this.starts > 2) {
      const error = new CoppiceError(`the sandbox for Python programs does not start: ${errorOutput}`);
      for (const { finish } of [...lost, ...this.queue.splice(0)]) finish({ passed: false, reason: error.message });
      throw error;
    }
    for (const pending of lost)
      if (pending.retried || lost.length === 1) pending.finish({ passed: false, reason: "the interpreter ended" });
      else this.queue.unshift(Object.assign(pending, { retried: true }));
    if (this.queue.length > 0) this.proceed();
  }

  /** Ends the process. Unfinished programs fail. */
  close(): void {
    const child = this.process;
    child?.removeAllListeners("exit");
    child?.kill("SIGKILL");
    this.process = undefined;
    this.ready = false;
    for (const { finish } of [...this.running.values(), ...this.queue.splice(0)])
      finish({ passed: false, reason: "the sandbox was closed" });
    this.running.clear();
  }
}
