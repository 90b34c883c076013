import { test } from "vitest";
import { availableKernels, type BackendOptions, emulatedKernels, listDevices, loadLibrary } from "../src/ggml/index.js";

type TestBackend = readonly [name: string, options: BackendOptions];

/** The CPU with ggml alone, and with each variant of our kernels that it can run. */
function onProcessor(): TestBackend[] {
  const { functions } = loadLibrary();
  const variants = [...availableKernels(functions), ...emulatedKernels(functions)];
  if (variants.length === 0)
    console.warn("skipped with kernels: none are built for this processor (`coppice doctor` says why)");
  return [
    ["the CPU", { device: "cpu", kernels: "none" }],
    ...variants.map((kernels): TestBackend => [`the CPU with ${kernels} kernels`, { device: "cpu", kernels }]),
  ];
}

function onVulkan(): TestBackend[] {
  if (listDevices().some(({ kind }) => kind === "vulkan")) return [["Vulkan", { device: "vulkan" }]];
  test.skip("on Vulkan: no driver is installed (on Debian: apt-get install mesa-vulkan-drivers)", () => {});
  return [];
}

/** What tests compute on, by name; COPPICE_TEST_DEVICES is set by the projects of vitest.config.ts. */
export const testBackends: readonly TestBackend[] =
  process.env.COPPICE_TEST_DEVICES === "vulkan" ? onVulkan() : onProcessor();

/** Two of them, ggml alone and the best kernels: for what is composed of ops, which test/tensor compares on all. */
export const composedTestBackends: readonly TestBackend[] = testBackends.slice(0, 2);

/** The last of them that emulates no other processor: for tests of what does not depend on the device. */
export const oneTestBackend: readonly TestBackend[] = testBackends
  .filter(([, { kernels }]) => kernels === undefined || !emulatedKernels(loadLibrary().functions).includes(kernels))
  .slice(-1);
