import { type ChildProcess, fork } from "node:child_process";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import path from "node:path";
import { CoppiceError } from "../../system/errors.js";
import { packageRoot } from "../../system/package-root.js";
import { PASSED, type ProgramMessage, type SupervisorMessage } from "./messages.js";

export interface SandboxOptions {
  /** A program that takes longer has failed; 10 by default: WebAssembly takes about three times as long as code_eval's Python, which gets 3. */
  readonly seconds?: number;
  /** A program that needs more has failed. */
  readonly memoryBytes?: number;
  /** Programs that run at once; as many as there are cores, 8 at most, by default. */
  readonly workers?: number;
}

/** How a program ended: without an error, or how it failed. */
export interface ProgramOutcome {
  readonly passed: boolean;
  /** The last lines of the error. */
  readonly reason: string;
}

interface Waiting {
  readonly id: number;
  readonly program: string;
  readonly done: (outcome: ProgramOutcome) => void;
  /** Whether the process has ended once while this ran. */
  retried: boolean;
}

const [SECONDS, MEMORY_BYTES] = [10, 512 << 20];
/** Each may take all the memory that a program may have. */
const MOST_WORKERS = 8;
/** Longer programs are not written by a model that writes at most a few thousand tokens. */
const MOST_CHARACTERS = 1 << 20;
/** As built, also where the program runs from its sources: Node starts it by itself. */
const SUPERVISOR = path.join(packageRoot, "dist/evaluate/sandbox/supervisor.js");

/**
 * Runs Python programs that nobody has read. Each has a fresh interpreter (Pyodide: CPython in WebAssembly) in a thread of its own,
 * inside a process that may read nothing but the interpreter and has no network, environment or child processes, under limits of
 * memory and time. Whatever a program does ends as its own failure.
 */
export class PythonSandbox {
  private readonly options: Required<SandboxOptions>;
  private readonly queue: Waiting[] = [];
  private readonly running = new Map<number, Waiting>();
  private process: ChildProcess | undefined;
  private ready = false;
  private starts = 0;
  private next = 0;

  constructor(options: SandboxOptions = {}) {
    this.options = {
      seconds: SECONDS,
      memoryBytes: MEMORY_BYTES,
      workers: Math.min(MOST_WORKERS, availableParallelism()),
      ...options,
    };
  }

  /** Runs a program. It has passed if it ends without an exception, of whatever kind. */
  run(program: string): Promise<ProgramOutcome> {
    if (program.length > MOST_CHARACTERS) return Promise.resolve({ passed: false, reason: "the program is too long" });
    return new Promise((resolve, reject) => {
      this.queue.push({ id: this.next++, program, done: resolve, retried: false });
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
      const waiting = this.queue.shift();
      if (waiting === undefined) break;
      this.running.set(waiting.id, waiting);
      this.process?.send({ id: waiting.id, program: waiting.program } satisfies ProgramMessage);
    }
    // an idle sandbox does not keep the process alive
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
    let complaint = "";
    child.stderr?.on("data", (chunk) => {
      complaint = `${complaint}${chunk}`.slice(-1000);
    });
    child.on("message", (message: SupervisorMessage) => {
      if ("ready" in message) {
        this.ready = true;
        this.starts = 0;
      } else this.finish(message.id, message.verdict);
      this.proceed();
    });
    child.on("exit", () => this.ended(complaint));
    this.process = child;
    this.starts++;
  }

  private finish(id: number, verdict: string): void {
    const waiting = this.running.get(id);
    this.running.delete(id);
    waiting?.done({ passed: verdict === PASSED, reason: verdict });
  }

  /** Programs whose process ended: one that was alone is to blame, the others get another chance alone. */
  private ended(complaint: string): void {
    this.process = undefined;
    const never = !this.ready;
    this.ready = false;
    const lost = [...this.running.values()];
    this.running.clear();
    if (never && this.starts > 2) {
      const error = new CoppiceError(`the sandbox for Python programs does not start: ${complaint}`);
      for (const { done } of [...lost, ...this.queue.splice(0)]) done({ passed: false, reason: error.message });
      throw error;
    }
    for (const waiting of lost)
      if (waiting.retried || lost.length === 1) waiting.done({ passed: false, reason: "the interpreter ended" });
      else this.queue.unshift(Object.assign(waiting, { retried: true }));
    if (this.queue.length > 0) this.proceed();
  }

  /** Ends the process. Programs that have not ended fail. */
  close(): void {
    const child = this.process;
    child?.removeAllListeners("exit");
    child?.kill("SIGKILL");
    this.process = undefined;
    this.ready = false;
    for (const { done } of [...this.running.values(), ...this.queue.splice(0)])
      done({ passed: false, reason: "the sandbox was closed" });
    this.running.clear();
  }
}
