import { fork } from "node:child_process";
import path from "node:path";
import type { DeviceChoice } from "../ggml/device.js";
import { elementAt } from "../system/arrays.js";
import { CoppiceError } from "../system/errors.js";
import { packageRoot } from "../system/package-root.js";
import { COMPARISONS, type Comparison } from "./compare.js";

/** The built file, also when the program runs from its sources, because Node runs it directly. */
export const COMPARER = path.join(packageRoot, "dist/check/check-process.js");

export interface CheckOptions extends DeviceChoice {
  readonly onProgress?: ((done: number, total: number, name: string) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Compares a device's results with the processor's without our kernels. Computes in a process of its own: where a driver ends it, that
 * comparison has failed, and the others go on.
 */
export async function checkDevice({ onProgress, signal, ...device }: CheckOptions): Promise<Comparison[]> {
  const comparisons: Comparison[] = [];
  const take = (comparison: Comparison) => {
    comparisons.push(comparison);
    onProgress?.(comparisons.length, COMPARISONS.length, comparison.name);
  };
  while (comparisons.length < COMPARISONS.length) {
    const failure = await compareFrom(comparisons.length, device, take, signal);
    signal?.throwIfAborted();
    if (comparisons.length === COMPARISONS.length) break;
    if (failure === undefined)
      throw new CoppiceError(
        "the process that compares knows fewer comparisons: its build is older, npm run build renews it",
      );
    const { name } = elementAt(COMPARISONS, comparisons.length);
    take({ name, difference: null, isClose: false, failure });
  }
  return comparisons;
}

/** Compares from a number on. @returns why the process ended early; undefined where it did not */
function compareFrom(
  from: number,
  device: DeviceChoice,
  take: (comparison: Comparison) => void,
  signal: AbortSignal | undefined,
): Promise<string | undefined> {
  return new Promise((resolve, reject) => {
    const child = fork(COMPARER, [JSON.stringify(device), String(from)], {
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
