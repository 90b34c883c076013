import { availableKernels, type BackendOptions, listDevices, loadLibrary } from "../src/ggml/index.js";

const variants = availableKernels(loadLibrary().functions);

/** What tests compute on, by name: the CPU with ggml alone and with each variant of our kernels, and Vulkan. */
export const testBackends: readonly (readonly [string, BackendOptions])[] = [
  ["the CPU", { device: "cpu", kernels: "none" }],
  ...variants.map((kernels) => [`the CPU with ${kernels} kernels`, { device: "cpu", kernels }] as const),
  ...(listDevices().some(({ kind }) => kind === "vulkan") ? [["Vulkan", { device: "vulkan" }] as const] : []),
];

if (!testBackends.some(([name]) => name === "Vulkan"))
  console.warn("skipped on Vulkan: no driver is installed (on Debian: apt-get install mesa-vulkan-drivers)");
if (variants.length === 0)
  console.warn("skipped with kernels: none are built for this processor (`coppice doctor` says why)");
