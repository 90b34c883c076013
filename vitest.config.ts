import { availableParallelism } from "node:os";
import { defineConfig } from "vitest/config";

/** Need more than Node: a browser, databases, object storage, a registry. Each says what it skips where that is missing. */
const NEEDING_SERVICES = [
  "test/serve/page.test.ts",
  "test/foundry/{cluster,pages,storage}.test.ts",
  "test/deploy/*.test.ts",
  "test/package/*.test.ts",
];

/** Compare what devices compute; see test/devices.ts. */
const ON_DEVICES = [
  "test/distill/losses.test.ts",
  "test/models/{gradients,llama,logits}.test.ts",
  "test/tensor/**/*.test.ts",
];

const onProcessor = { COPPICE_THREADS: "1", COPPICE_TEST_DEVICES: "cpu" }; // tests that compare numbers of threads set their own
/** Lets ggml use a software Vulkan driver, as on machines without a GPU, and compute in f32 where f32 is asked for. */
const onVulkan = { COPPICE_TEST_DEVICES: "vulkan", GGML_VK_VISIBLE_DEVICES: "0", GGML_VK_DISABLE_F16: "1" };

export default defineConfig({
  test: {
    pool: "forks", // one process a file: the native engine is loaded once per process
    // a file a core: small models gain nothing from several threads, and those wait for each other
    maxWorkers: Math.min(8, availableParallelism()),
    testTimeout: 120_000,
    hookTimeout: 60_000,
    expect: { poll: { timeout: 60_000 } }, // waits end with what they wait for, however slow the machine is
    projects: [
      {
        extends: true,
        test: { name: "quick", include: ["test/**/*.test.ts"], exclude: NEEDING_SERVICES, env: onProcessor },
      },
      { extends: true, test: { name: "services", include: NEEDING_SERVICES, env: onProcessor } },
      { extends: true, test: { name: "vulkan", include: ON_DEVICES, env: onVulkan } },
    ],
  },
});
