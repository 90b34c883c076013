import { type DeviceKind, listDevices } from "../src/ggml/index.js";

/** The devices that tests run on: the CPU and, where a driver is installed, Vulkan. */
export const testDevices: readonly DeviceKind[] = listDevices()
  .map(({ kind }) => kind)
  .filter((kind) => kind === "cpu" || kind === "vulkan");

if (!testDevices.includes("vulkan"))
  console.warn("skipped on Vulkan: no driver is installed (on Debian: apt-get install mesa-vulkan-drivers)");
