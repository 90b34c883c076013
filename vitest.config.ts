import { availableParallelism } from "node:os";
import { defineConfig } from "vitest/config";

/** Whole systems: they need a browser, databases, object storage, a registry or real models (and say what they skip without), or take long. */
const SYSTEMS = [
  "test/check/check.test.ts",
  "test/checkpoint/real-tokenizers.test.ts",
  "test/{cli,generate}/any-gguf.test.ts",
  "test/deploy/*.test.ts",
  "test/devices/this-machine.test.ts",
  "test/docs/{examples,release}.test.ts", // the compiler, and npm
  "test/evaluate/{agreement,sandbox}.test.ts",
  "test/examples/*.test.ts",
  "test/foundry/*.test.ts",
  "test/jobs/{bytes-by-kind,per-layer,rounds,start}.test.ts", // whole compressions, again and again
  "test/package/*.test.ts",
  "test/quantize/every-kind.test.ts",
  "test/ranks/mpirun.test.ts",
  "test/refit/every-architecture.test.ts",
  "test/serve/page.test.ts",
];

/** Compare what devices compute; see test/devices.ts. */
const ON_DEVICES = [
  "test/distill/losses.test.ts",
  "test/linear-algebra/{cholesky,multiply}.test.ts",
  "test/refit/ridge.test.ts", // whole models take minutes on a software driver
  "test/models/{gradients,llama,logits}.test.ts",
  "test/tensor/**/*.test.ts",
];

/** Compares each op with finite differences; on Vulkan test/check/check.test.ts compares them with the processor. */
const OPS = "test/tensor/gradients.test.ts";

const onProcessor = { COPPICE_THREADS: "1", COPPICE_TEST_DEVICES: "cpu" }; // tests that compare numbers of threads set their own
/** Lets ggml use a software Vulkan driver, as on machines without a GPU, and compute in f32 where f32 is asked for. */
const onVulkan = { COPPICE_TEST_DEVICES: "vulkan", GGML_VK_VISIBLE_DEVICES: "0", GGML_VK_DISABLE_F16: "1" };

export default defineConfig({
  test: {
    pool: "forks",
    isolate: false, // files share a process, and load the engine once; what they set in the environment ends with them
    setupFiles: ["test/restore-environment.ts", "test/processor-only.ts", "test/equality.ts"],
    // workers live long and have memory: collecting garbage often, and moving it, takes a tenth of the time
    execArgv: ["--initial-old-space-size=1024", "--max-semi-space-size=64"],
    // a file a core: small models gain nothing from several threads, and those wait for each other
    maxWorkers: Math.min(8, availableParallelism()),
    // one generous limit for all: waits end with what they wait for, however slow the machine is; only a hang takes so long
    testTimeout: 900_000,
    hookTimeout: 300_000,
    expect: { poll: { timeout: 300_000 } },
    projects: [
      {
        extends: true,
        test: { name: "quick", include: ["test/**/*.test.ts"], exclude: SYSTEMS, env: onProcessor },
      },
      { extends: true, test: { name: "systems", include: SYSTEMS, isolate: true, env: onProcessor } },
      { extends: true, test: { name: "vulkan", include: ON_DEVICES, exclude: [OPS], env: onVulkan } },
    ],
  },
});
