import { availableParallelism } from "node:os";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Backend } from "../../src/ggml/index.js";
import { ProcessorThreads } from "../../src/ggml/processor-threads.js";
import { chooseThreads } from "../../src/ggml/thread-count.js";
import { multiply } from "../../src/linear-algebra/index.js";

const several = availableParallelism() > 1;
const opened: Backend[] = [];
let skippedMs = 0;
beforeEach(() => {
  const now = performance.now.bind(performance);
  vi.spyOn(performance, "now").mockImplementation(() => now() + skippedMs);
});
afterEach(() => {
  vi.restoreAllMocks();
  vi.unstubAllEnvs();
  for (const backend of opened.splice(0)) backend.free();
});

/** Threads of a new backend on the processor. */
function threadsOf(count: number | undefined, keep = true): ProcessorThreads {
  const backend = Backend.open({ device: "cpu", threads: 1 });
  opened.push(backend);
  const on = { functions: backend.functions, device: backend.device.handle, backend: backend.handle };
  return new ProcessorThreads(on, backend.kernels, { count, keep });
}

/** Lets the clock go on while something is computed. */
function computing(threads: ProcessorThreads, milliseconds: number): Promise<void> {
  return threads.use(async () => {
    skippedMs += milliseconds;
  });
}

describe("the number of threads", () => {
  it("is the one that was fastest", () => {
    expect(chooseThreads(new Map([[8, 10]]))).toBe(8);
    expect(
      chooseThreads(
        new Map([
          [8, 10],
          [4, 18],
        ]),
      ),
    ).toBe(8);
    expect(
      chooseThreads(
        new Map([
          [16, 12],
          [8, 10],
          [4, 18],
        ]),
      ),
    ).toBe(8);
    expect(
      chooseThreads(
        new Map([
          [2, 28],
          [1, 5],
        ]),
      ),
    ).toBe(1);
  });

  it("is the smaller one where times differ by chance only", () => {
    expect(
      chooseThreads(
        new Map([
          [16, 10],
          [8, 10.4],
          [4, 15],
        ]),
      ),
    ).toBe(8);
  });

  it.runIf(several)("is measured from all processors down, by halves, and left as it was found best", async () => {
    const threads = threadsOf(undefined);
    expect(threads.count).toBe(availableParallelism());
    const times = await threads.measure();
    expect([...(times?.keys() ?? [])].slice(0, 2)).toEqual([
      availableParallelism(),
      Math.floor(availableParallelism() / 2),
    ]);
    expect([...(times?.values() ?? [])].every((milliseconds) => milliseconds > 0)).toBe(true);
    expect(threads.count).toBe(chooseThreads(times ?? new Map()));
    threads.free();
  });

  it("is not measured where it is given, or threads are not kept", async () => {
    for (const threads of [threadsOf(3), threadsOf(undefined, false)]) {
      const { count } = threads;
      expect(await threads.measure()).toBeUndefined();
      await computing(threads, 3_600_000);
      await threads.use(async () => {});
      expect(threads.count).toBe(count);
      threads.free();
    }
  });

  it.runIf(several)(
    "is measured before the next computation when there was much to compute, and again after minutes",
    async () => {
      const threads = threadsOf(undefined);
      const measured = vi.spyOn(threads, "measure");
      await computing(threads, 1000);
      await threads.use(async () => {});
      expect(measured).toHaveBeenCalledTimes(0);
      await computing(threads, 1500);
      await threads.use(async () => {});
      await threads.use(async () => {});
      expect(measured).toHaveBeenCalledTimes(1);
      skippedMs += 360_000;
      await threads.use(async () => {});
      expect(measured).toHaveBeenCalledTimes(2);
      threads.free();
    },
  );
});

describe("a backend whose threads were measured", () => {
  it.each(["auto", "none"] as const)("computes the same as before, with kernels: %s", async (kernels) => {
    vi.stubEnv("COPPICE_THREADS", "");
    const backend = Backend.open({ device: "cpu", kernels });
    opened.push(backend);
    const a = { rows: 70, columns: 90, data: Float32Array.from({ length: 6300 }, (_, i) => Math.sin(i)) };
    const before = await multiply(backend, a, a, { transposeB: true });
    await backend.measureThreads();
    expect(await multiply(backend, a, a, { transposeB: true })).toEqual(before);
    expect(backend.threads).toBeLessThanOrEqual(availableParallelism());
  });
});
