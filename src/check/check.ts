import { fork } from "node:child_process";
import path from "node:path";
import type { DeviceChoice } from "../ggml/device.js";
import { elementAt } from "../system/arrays.js";
import { CoppiceError, UsageError } from "../system/errors.js";
import { packageRoot } from "../system/package-root.js";
import { COMPARISONS, type Comparison } from "./compare.js";

/** The built file, also when the program runs from its sources, because Node runs it directly. */
export const COMPARER = path.join(packageRoot, "dist/check/check-process.js");

export interface CheckOptions extends DeviceChoice {
  /** Leaves out comparisons whose names do not match. */
  readonly only?: RegExp | undefined;
  readonly onProgress?: ((done: number, total: number, name: string) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Compares a device's results with the processor's without our kernels. Computes in a process of its own: where a driver ends it, that
 * comparison has failed, and the others go on.
 * @throws UsageError where no comparison is left
 */
export async function checkDevice({ only, onProgress, signal, ...device }: CheckOptions): Promise<Comparison[]> {
  const numbers = COMPARISONS.flatMap(({ name }, number) => (only?.test(name) === false ? [] : [number]));
  if (numbers.length === 0) throw new UsageError(`no comparison's name matches ${only}: --json without it lists them`);
  const comparisons: Comparison[] = [];
  const take = (comparison: Comparison) => {
    comparisons.push(comparison);
    onProgress?.(comparisons.length, numbers.length, comparison.name);
  };
  while (comparisons.length < numbers.length) {
    const failure = await compare(numbers.slice(comparisons.length), device, take, signal);
    signal?.throwIfAborted();
    if (comparisons.length === numbers.length) break;
    if (failure === undefined)
      throw new CoppiceError(
        "the process that compares knows fewer comparisons: its build is older, npm run build renews it",
      );
    const { name } = elementAt(COMPARISONS, elementAt(numbers, comparisons.length));
    take({ name, difference: null, isClose: false, failure });
  }
  return comparisons;
}

/** Makes the comparisons of some numbers. @returns why the process ended early; undefined where it did not */
function compare(
  numbers: readonly number[],
  device: DeviceChoice,
  take: (comparison: Comparison) => void,
  signal: AbortSignal | undefined,
): Promise<string | undefined> {
  return new Promise((resolve, reject) => {
    const child = fork(COMPARER, [JSON.stringify(device), JSON.stringify(numbers)], {
      env: { ...process.env, GGML_NO_BACKTRACE: "1" }, // a backtrace would start a debugger
      execArgv: [],
      stdio: ["ignore", "ignore", "pipe", "ipc"],
    });
    let output = "";
    const stop = () => child.kill("SIGKILL");
    signal?.addEventListener("abort", stop, { once: true });
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      output = (output + text).slice(-2000);
    });
    child.on("message", (comparison) => take(comparison as Comparison));
    child.on("error", reject);
    child.on("close", (code, killedBy) => {
      signal?.removeEventListener("abort", stop);
      if (code === 0) resolve(undefined);
      else resolve(`its process ended with ${killedBy ?? code}${output === "" ? "" : `: ${lastLine(output)}`}`);
    });
  });
}

const lastLine = (text: string): string => text.trim().split("\n").at(-1) ?? "";
