import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { availableKernels, Backend, kernelTimes, loadLibrary } from "../../src/ggml/index.js";
import { chooseVariant, fastestVariant, type TimedVariant } from "../../src/ggml/kernel-choice.js";

const { functions } = loadLibrary("cpu");
const variants = availableKernels(functions);

let cache: string;
beforeEach(() => {
  cache = mkdtempSync(path.join(tmpdir(), "coppice-choice-"));
  process.env.COPPICE_CACHE = cache;
  return () => rmSync(cache, { recursive: true, force: true });
});
const files = () => readdirSync(path.join(cache, "kernels"));

/** A variant that counts how often it is run. */
function counted(variant: string, spin = 0) {
  const runs = { count: 0 };
  const workload: TimedVariant["workload"] = () => {
    runs.count++;
    const end = performance.now() + spin;
    while (performance.now() < end);
  };
  return { runs, timed: { variant, workload } };
}

describe("the choice among variants of the kernels", () => {
  it("is the fastest one, whatever the order of instruction sets", () => {
    expect(chooseVariant({ best: 10, good: 6, old: 9 })).toBe("good");
    expect(chooseVariant({ best: 5, good: 6, old: 9 })).toBe("best");
  });

  it("is the better instruction set where times differ by chance only", () => {
    expect(chooseVariant({ best: 10.3, good: 10, old: 9.9 })).toBe("best");
  });

  it("is measured once and then read from the cache", () => {
    const [a, b] = [counted("a"), counted("b")];
    const first = fastestVariant([a.timed, b.timed], "/lib/kernels-1.so");
    const runs = [a.runs.count, b.runs.count];
    expect(Math.min(...runs)).toBeGreaterThan(0);
    expect(fastestVariant([a.timed, b.timed], "/elsewhere/kernels-1.so")).toEqual(first);
    expect([a.runs.count, b.runs.count]).toEqual(runs);
    expect(first.library).toBe("kernels-1.so");
  });

  it("is measured again for another build of the kernels, or another set of variants", () => {
    const [a, b] = [counted("a"), counted("b")];
    fastestVariant([a.timed, b.timed], "kernels-1.so");
    fastestVariant([a.timed, b.timed], "kernels-2.so");
    fastestVariant([a.timed], "kernels-2.so");
    expect(files()).toHaveLength(3);
  });

  it("is measured again when the file in the cache is damaged", () => {
    const a = counted("a");
    fastestVariant([a.timed], "kernels-1.so");
    const before = a.runs.count;
    const [file = ""] = files();
    for (const content of ["", "{}", '{"chosen":"a"}', JSON.stringify({ chosen: "gone" })]) {
      writeFileSync(path.join(cache, "kernels", file), content);
      expect(fastestVariant([a.timed], "kernels-1.so").chosen).toBe("a");
      expect(JSON.parse(readFileSync(path.join(cache, "kernels", file), "utf8"))).toMatchObject({ chosen: "a" });
    }
    expect(a.runs.count).toBe(5 * before);
    expect(files()).toEqual([file]);
  });

  it("is that of the process that was first, where several measure at once", () => {
    const [a, b] = [counted("a", 5), counted("b")];
    expect(fastestVariant([a.timed, b.timed], "kernels-1.so").chosen).toBe("b");
    const file = path.join(cache, "kernels", files()[0] ?? "");
    const other = readFileSync(file, "utf8").replace('"chosen": "b"', '"chosen": "a"');
    rmSync(file);
    const workload = () => writeFileSync(file, other); // while this process measures, another one finishes
    expect(fastestVariant([a.timed, { variant: "b", workload }], "kernels-1.so").chosen).toBe("a");
  });

  it("holds without a cache that can be written", () => {
    writeFileSync(path.join(cache, "kernels"), "");
    expect(fastestVariant([counted("a").timed], "kernels-1.so").chosen).toBe("a");
  });

  it.skipIf(variants.length < 2)("is what a backend takes by default, unless COPPICE_KERNELS names one", () => {
    const times = kernelTimes(functions);
    expect(Object.keys(times?.milliseconds ?? {})).toEqual(variants);
    const taken = () => {
      const backend = Backend.open({ device: "cpu", threads: 1 });
      backend.free();
      return backend.kernels?.variant;
    };
    delete process.env.COPPICE_KERNELS;
    expect(taken()).toBe(times?.chosen);
    for (const name of variants) {
      process.env.COPPICE_KERNELS = name;
      expect(taken()).toBe(name);
    }
  });
});
