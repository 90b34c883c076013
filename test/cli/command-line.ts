import { expect } from "vitest";
import { runCommandLine } from "../../src/cli/program.js";

export interface Ended {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

type Write = typeof process.stdout.write;

/** Collects what is written to a stream of this process. */
function capture(stream: NodeJS.WriteStream): { readonly text: () => string; readonly release: () => void } {
  const { write } = stream;
  let text = "";
  stream.write = ((chunk: string | Uint8Array, ...rest: unknown[]) => {
    text += typeof chunk === "string" ? chunk : Buffer.from(chunk).toString("utf8");
    const done = rest.at(-1);
    if (typeof done === "function") done();
    return true;
  }) as Write;
  return { text: () => text, release: () => (stream.write = write) };
}

/** Runs a command line in this process: what it wrote, and the exit code that the process would have. */
export async function coppice(...args: readonly string[]): Promise<Ended> {
  const [stdout, stderr] = [capture(process.stdout), capture(process.stderr)];
  try {
    const status = await runCommandLine(args);
    return { status, stdout: stdout.text(), stderr: stderr.text() };
  } finally {
    stdout.release();
    stderr.release();
  }
}

/** The result of a command that must succeed. */
export async function json<T>(...args: readonly string[]): Promise<T> {
  const { stdout, stderr, status } = await coppice(...args, "--json");
  expect(status, stderr).toBe(0);
  return JSON.parse(stdout) as T;
}
