/**
 * The process that compares a device with the processor, started by check.ts with the device's options and the numbers of comparisons.
 * It sends its parent each comparison; if it ends before all are sent, the device's driver has ended it.
 */
import { Backend, type DeviceChoice } from "../ggml/device.js";
import { COMPARISONS } from "./compare.js";

const [options = "{}", numbers = "[]"] = process.argv.slice(2);
process.on("disconnect", () => process.exit(1)); // the parent is gone

const device = Backend.open(JSON.parse(options) as DeviceChoice);
const processor = Backend.open({ device: "cpu", kernels: "none", keepThreads: false });
for (const number of JSON.parse(numbers) as number[]) {
  const comparison = await COMPARISONS[number]?.compare({ device, processor });
  if (comparison === undefined) break; // the build is older than who asks
  await new Promise((resolve) => process.send?.(comparison, resolve));
}
process.exit(0); // what is left is the system's to free: see compare.ts
