import { describe, expect, it } from "vitest";
import { checkDevice } from "../../src/check/check.js";
import { COMPARISONS } from "../../src/check/compare.js";
import { listDevices } from "../../src/ggml/index.js";
import { coppice } from "../cli/command-line.js";

describe("a device's results", () => {
  it("are the processor's, with our kernels", async () => {
    const { status, stdout } = await coppice("check", "--device", "cpu", "--json");
    expect(status).toBe(0);
    const { comparisons } = JSON.parse(stdout);
    expect(comparisons.map(({ name }: { name: string }) => name)).toEqual(COMPARISONS.map(({ name }) => name));
    for (const { name, difference } of comparisons) expect(difference, name).toBeLessThan(1e-4);
  });

  process.env.GGML_VK_VISIBLE_DEVICES = "0"; // a software driver, too
  process.env.GGML_VK_DISABLE_F16 = "1";
  const hasVulkan = listDevices().some(({ kind }) => kind === "vulkan");
  it.skipIf(!hasVulkan)("are those of Vulkan, where a driver does not end the process, which is told", async () => {
    const comparisons = await checkDevice({ device: "vulkan" });
    expect(comparisons.map(({ name }) => name)).toEqual(COMPARISONS.map(({ name }) => name));
    for (const { name, isClose, failure } of comparisons)
      if (!isClose) expect(failure, name).toMatch(/its process ended with SIG(ABRT|SEGV)/); // Mesa 22.3 does, where training ends
  });
});
