import { availableParallelism } from "node:os";
import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    pool: "forks", // one process a file: the native engine is loaded once per process
    // a file a core: small models gain nothing from several threads, and those wait for each other
    maxWorkers: Math.min(8, availableParallelism()),
    testTimeout: 120_000,
    hookTimeout: 60_000,
    expect: { poll: { timeout: 60_000 } }, // waits end with what they wait for, however slow the machine is
    // Tests that compare numbers of threads set their own. Lets ggml use a software Vulkan driver, as on machines without a GPU, and compute in f32 where f32 is asked for.
    env: { COPPICE_THREADS: "1", GGML_VK_VISIBLE_DEVICES: "0", GGML_VK_DISABLE_F16: "1" },
  },
});
