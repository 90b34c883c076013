/** What the programs that ill-treat a service share: starting it, asking it, its memory, and what was found wrong. */
import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { connect } from "node:net";
import path from "node:path";
import { createInterface } from "node:readline";
import fc from "fast-check";
import type { GeneratedRequest } from "../test/openapi-requests.js";

const root = path.resolve(import.meta.dirname, "..");

/** Tells of what was looked at; {@link failed} remembers whether anything was not as it must be. */
export const checks = {
  failed: false,
  check(good: boolean, what: string): void {
    console.log(`${good ? "    " : "BAD "}${what}`);
    checks.failed ||= !good;
  },
};

/** A command of ours that serves, in a process of its own. */
export class Service {
  private constructor(
    readonly url: string,
    private readonly child: ChildProcess,
    readonly ended: Promise<number | string | null>,
  ) {}

  /** @param args a command that prints its address as JSON */
  static async start(args: readonly string[]): Promise<Service> {
    const child = spawn(process.execPath, [path.join(root, "bin/coppice.cjs"), ...args], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    process.on("exit", () => child.kill("SIGKILL"));
    const ended = new Promise<number | string | null>((resolve) =>
      child.once("exit", (code, signal) => resolve(code ?? signal)),
    );
    const line = await new Promise<string>((resolve) => createInterface({ input: child.stdout }).once("line", resolve));
    return new Service((JSON.parse(line) as { url: string }).url, child, ended);
  }

  get port(): number {
    return Number(new URL(this.url).port);
  }

  /** Resident memory, in MiB (Linux). */
  get memory(): number {
    const [, kilobytes] = /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${this.child.pid}/status`, "utf8")) ?? [];
    return Math.round(Number(kilobytes) / 1024);
  }

  stop(): void {
    this.child.kill("SIGTERM");
  }

  /** What a socket is answered first for bytes as they stand; undefined where nothing comes in time. */
  raw(bytes: string | Buffer, milliseconds = 2000): Promise<string | undefined> {
    return new Promise((resolve) => {
      const socket = connect(this.port, "127.0.0.1");
      const timer = setTimeout(() => socket.destroy(), milliseconds);
      let text = "";
      socket.on("data", (part) => {
        text += part.toString("latin1");
        if (text.includes("\r\n\r\n")) socket.end();
      });
      socket.on("error", () => {});
      socket.on("close", () => {
        clearTimeout(timer);
        resolve(text === "" ? undefined : text.split("\r\n")[0]);
      });
      socket.write(bytes);
    });
  }
}

/** Makes requests, and counts how they were answered: by operation and status. */
export class Answers {
  private readonly statuses = new Map<string, number>();
  private readonly errors = new Map<string, number>();
  made = 0;

  /** @param name of a request's operation in the table */
  constructor(private readonly name: (request: GeneratedRequest) => string) {}

  /** So many requests, eight at a time. */
  async make(
    requests: fc.Arbitrary<GeneratedRequest>,
    count: number,
    seed: number,
    answer: (request: GeneratedRequest) => Promise<{ readonly status: number; readonly text: string }>,
  ): Promise<void> {
    const samples = fc.sample(requests, { numRuns: count, seed });
    await inParallel(count, 8, async (i) => {
      const request = samples[i] as GeneratedRequest;
      const { status, text } = await answer(request);
      this.made++;
      add(this.statuses, `${this.name(request)} ${status}`);
      if (status >= 500) add(this.errors, `${request.method} ${request.path} ${request.body}: ${text.slice(0, 200)}`);
    });
  }

  report(): void {
    for (const [what, count] of [...this.statuses].sort()) console.log(`      ${what}: ${count}`);
    checks.check(this.errors.size === 0, `answers of 500 and more: ${JSON.stringify([...this.errors])}`);
  }
}

const add = (counts: Map<string, number>, key: string) => counts.set(key, (counts.get(key) ?? 0) + 1);

/** So many jobs, some at a time. */
export async function inParallel(count: number, width: number, job: (i: number) => Promise<void>): Promise<void> {
  let next = 0;
  const worker = async () => {
    while (next < count) await job(next++);
  };
  await Promise.all(Array.from({ length: width }, worker));
}
