import { availableParallelism } from "node:os";
import { defineConfig } from "vitest/config";

/** Whole systems: they need a browser, databases, object storage or a registry (and say what they skip without), or take long. */
const SYSTEMS = [
  "test/checkpoint/real-tokenizers.test.ts",
  "test/deploy/*.test.ts",
  "test/evaluate/sandbox.test.ts",
  "test/examples/*.test.ts",
  "test/foundry/*.test.ts",
  "test/package/*.test.ts",
  "test/serve/page.test.ts",
];

/** Leave no traces in their process (unlike `register`): files share one, and load the engine once. */
const PURE = [
  "test/{data,devices,distill,ggml,linear-algebra,models,prune,quantize,refit,system,tensor}/**/!(register).test.ts",
  "test/serve/grammar/*.test.ts",
];

/** Compare what devices compute; see test/devices.ts. */
const ON_DEVICES = [
  "test/distill/losses.test.ts",
  "test/linear-algebra/{cholesky,multiply}.test.ts",
  "test/refit/ridge.test.ts", // whole models take minutes on a software driver
  "test/models/{gradients,llama,logits}.test.ts",
  "test/tensor/**/*.test.ts",
];

const onProcessor = { COPPICE_THREADS: "1", COPPICE_TEST_DEVICES: "cpu" }; // tests that compare numbers of threads set their own
/** Lets ggml use a software Vulkan driver, as on machines without a GPU, and compute in f32 where f32 is asked for. */
const onVulkan = { COPPICE_TEST_DEVICES: "vulkan", GGML_VK_VISIBLE_DEVICES: "0", GGML_VK_DISABLE_F16: "1" };

export default defineConfig({
  test: {
    pool: "forks", // a process a file: what a file does to its process ends with it
    // a file a core: small models gain nothing from several threads, and those wait for each other
    maxWorkers: Math.min(8, availableParallelism()),
    // one generous limit for all: waits end with what they wait for, however slow the machine is; only a hang takes so long
    testTimeout: 900_000,
    hookTimeout: 300_000,
    expect: { poll: { timeout: 300_000 } },
    projects: [
      {
        extends: true,
        test: { name: "quick", include: ["test/**/*.test.ts"], exclude: [...SYSTEMS, ...PURE], env: onProcessor },
      },
      { extends: true, test: { name: "pure", include: PURE, isolate: false, env: onProcessor } },
      { extends: true, test: { name: "systems", include: SYSTEMS, env: onProcessor } },
      { extends: true, test: { name: "vulkan", include: ON_DEVICES, env: onVulkan } },
    ],
  },
});
