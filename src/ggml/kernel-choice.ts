import { createHash } from "node:crypto";
import { existsSync, linkSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import path from "node:path";
import { z } from "zod";
import { cacheDirectory, temporaryBeside, writeFileAtomic } from "../system/files.js";
import { logOf } from "../system/log.js";

const log = logOf("engine");

/** The name of an instruction set that kernels are compiled for. */
export type Variant = string;

/** A variant that this processor can run. */
export interface TimedVariant {
  readonly variant: Variant;
  /** Runs `native/workload.c` once. */
  readonly workload: (numbers: Float32Array, results: Float32Array) => void;
}

/** What variants of the kernels took for a piece of a training step, and which is used. */
export interface KernelTimes {
  readonly processor: string;
  /** The file name of the kernels' library. */
  readonly library: string;
  /** On one thread, best first by instruction set. */
  readonly milliseconds: Readonly<Record<Variant, number>>;
  readonly chosen: Variant;
}

const SCHEMA = z.object({
  processor: z.string(),
  library: z.string(),
  milliseconds: z.record(z.string(), z.number().positive()),
  chosen: z.string(),
});

/** What the workload reads and writes, in numbers; see `native/workload.c`. */
const NUMBERS = (256 + 384) * 768;
const RESULTS = 384 * 768;

/** The best of so many runs counts. */
const RUNS = 4;
/** A variant that takes so many times the best so far, twice, is not run again: once may be chance. */
const HOPELESS = 2;
/** A better instruction set is kept although another is faster by less: the choice should not hang on chance. */
const MARGIN = 1.05;

/**
 * Which variant is fastest on this processor. Measured once (in under 200 ms) and kept in the cache; the flags alone do not say it:
 * there are processors whose bf16 instructions are several times slower than their f32 ones.
 * @param variants those that can run, best first
 * @param library the file that they come from
 */
export function fastestVariant(variants: readonly TimedVariant[], library: string): KernelTimes {
  const processor = cpus()[0]?.model.trim() ?? "unknown";
  const names = variants.map(({ variant }) => variant);
  const identity = { processor, library: path.basename(library) };
  const digest = createHash("sha256")
    .update(JSON.stringify({ ...identity, names }))
    .digest("hex")
    .slice(0, 12);
  const file = path.join(cacheDirectory(), "kernels", `times-${digest}.json`);
  const known = read(file, names);
  if (known !== undefined) return known;
  const milliseconds = measure(variants);
  const times: KernelTimes = { ...identity, milliseconds, chosen: chooseVariant(milliseconds) };
  log.debug("kernels timed", { ...times });
  return keep(file, times) ? times : (read(file, names) ?? times);
}

/** The first variant that is as fast as any, but for chance. @param milliseconds best instruction set first */
export function chooseVariant(milliseconds: Readonly<Record<Variant, number>>): Variant {
  const best = Math.min(...Object.values(milliseconds));
  const [chosen] = Object.entries(milliseconds).find(([, time]) => time <= best * MARGIN) ?? [];
  return chosen ?? "";
}

function measure(variants: readonly TimedVariant[]): Record<Variant, number> {
  const numbers = Float32Array.from({ length: NUMBERS }, (_, i) => ((i * 37) % 101) / 50 - 1);
  const results = new Float32Array(RESULTS);
  let best = Number.POSITIVE_INFINITY;
  const milliseconds: Record<Variant, number> = {};
  // the narrowest registers first: they run at full speed at once, and bound what the others may take
  for (const { variant, workload } of variants.toReversed()) {
    let time = Number.POSITIVE_INFINITY;
    for (let run = 0; run < RUNS && (run < 2 || time < best * HOPELESS); run++) {
      const startedAt = performance.now();
      workload(numbers, results);
      time = Math.min(time, performance.now() - startedAt);
    }
    milliseconds[variant] = time;
    best = Math.min(best, time);
  }
  return Object.fromEntries(variants.map(({ variant }) => [variant, milliseconds[variant] ?? Number.NaN]));
}

/** Earlier times of these variants; undefined where there are none. A damaged file is removed. */
function read(file: string, names: readonly Variant[]): KernelTimes | undefined {
  if (!existsSync(file)) return undefined;
  try {
    const times = SCHEMA.parse(JSON.parse(readFileSync(file, "utf8")));
    if (names.includes(times.chosen)) return times;
  } catch {}
  try {
    rmSync(file);
  } catch {} // a cache that cannot be written
  return undefined;
}

/**
 * Keeps times in a file, unless another process was first: all processes of a machine must take the same variant, so that a run that
 * goes on in another process gives the same numbers.
 * @returns whether these times hold
 */
function keep(file: string, times: KernelTimes): boolean {
  const content = `${JSON.stringify(times, null, 2)}\n`;
  const temporary = temporaryBeside(file);
  try {
    writeFileAtomic(temporary, content);
    try {
      linkSync(temporary, file);
    } catch (error) {
      if (isThere(error)) throw error;
      writeFileSync(file, content, { flag: "wx" }); // a file system without links
    } finally {
      rmSync(temporary);
    }
  } catch (error) {
    if (isThere(error)) return false;
    log.debug("the kernels' times could not be kept", { file, error: String(error) });
  }
  return true;
}

const isThere = (error: unknown): boolean => (error as NodeJS.ErrnoException).code === "EEXIST";
