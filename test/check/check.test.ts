import { fork } from "node:child_process";
import { describe, expect, it } from "vitest";
import { COMPARER, checkDevice } from "../../src/check/check.js";
import { COMPARISONS, type Comparison } from "../../src/check/compare.js";
import { type DeviceChoice, listDevices, loadLibrary } from "../../src/ggml/index.js";
import { coppice } from "../cli/command-line.js";

/** In a process of its own, which ends with it: see compare.ts about drivers. */
async function comparisonOn(device: DeviceChoice, number: number): Promise<Comparison> {
  const child = fork(COMPARER, [JSON.stringify(device), JSON.stringify([number])], {
    execArgv: [],
    stdio: ["ignore", "ignore", "inherit", "ipc"],
  });
  try {
    return await new Promise((resolve, reject) => {
      child.once("message", (comparison) => resolve(comparison as Comparison));
      child.once("close", (code, signal) => reject(new Error(`it ended with ${signal ?? code}`)));
    });
  } finally {
    child.kill("SIGKILL");
  }
}

describe("a device's results", () => {
  it("are the processor's, with our kernels", async () => {
    const { status, stdout } = await coppice("check", "--device", "cpu", "--json");
    expect(status).toBe(0);
    const { comparisons } = JSON.parse(stdout);
    expect(comparisons.map(({ name }: { name: string }) => name)).toEqual(COMPARISONS.map(({ name }) => name));
    for (const { name, difference } of comparisons)
      expect(difference, name).toBeLessThan(/f16/.test(name) ? 1e-2 : 1e-4);
  });

  process.env.GGML_VK_VISIBLE_DEVICES = "0,0"; // a software driver, too, and as two devices
  process.env.GGML_VK_DISABLE_F16 = "1";
  const hasVulkan = listDevices(loadLibrary("vulkan")).some(({ kind }) => kind === "vulkan");
  it.skipIf(!hasVulkan)("are those of Vulkan, where a driver does not end the process, which is told", async () => {
    // the driver compiles kernels of products in many seconds each: test/tensor and test/models have the others
    const only = /^(?!linear|training (?!of llama)|.*in bf16|.*a large vocabulary)/;
    const comparisons = await checkDevice({ device: "vulkan", only });
    const names = COMPARISONS.map(({ name }) => name).filter((name) => only.test(name));
    expect(comparisons.map(({ name }) => name)).toEqual(names);
    for (const { name, isClose, isRefused, failure } of comparisons)
      if (!isClose && !isRefused) {
        expect(name).toMatch(/training/);
        expect(failure, name).toMatch(/its process ended with SIG(ABRT|SEGV)/); // Mesa 22.3 does, where training ends
      }
  });

  const different = /^training (of (llama|gpt2)|in parts)/;
  const trainings = COMPARISONS.flatMap(({ name }, i) => (different.test(name) ? [[name, i] as const] : []));
  it.skipIf(!hasVulkan).each(trainings)(
    "are the same where two devices divide the layers: %s",
    async (_name, index) => {
      const { isClose, failure } = await comparisonOn({ device: "vulkan", devices: 2 }, index);
      expect(failure).toBeUndefined();
      expect(isClose).toBe(true);
    },
  );

  it("are compared where their names match a pattern, of which there must be some", async () => {
    const { stdout } = await coppice("check", "--device", "cpu", "--json", "--only", "^(silu|RMSnorm)$");
    const { comparisons } = JSON.parse(stdout);
    expect(comparisons.map(({ name }: { name: string }) => name)).toEqual(["rmsNorm", "silu"]);
    const none = await coppice("check", "--device", "cpu", "--only", "nothing of the kind");
    expect(none).toMatchObject({ status: 2, stderr: expect.stringMatching(/no comparison's name matches/) });
    expect(await coppice("check", "--only", "(")).toMatchObject({ status: 2 });
  });

  it.skipIf(!hasVulkan)("are asked of no more devices than there are", async () => {
    const { status, stderr } = await coppice("check", "--device", "vulkan", "--devices", "3");
    expect(status).toBe(2);
    expect(stderr).toContain("there are 2 vulkan devices, not 3");
  });
});
