/**
 * The process that compares a device with the processor, started by check.ts with the device's options and the number of the comparison
 * to begin with. It sends its parent each comparison; if it ends before all are sent, the device's driver has ended it.
 */
import { Backend, type DeviceChoice } from "../ggml/device.js";
import { COMPARISONS } from "./compare.js";

const [options = "{}", from = "0"] = process.argv.slice(2);
process.on("disconnect", () => process.exit(1)); // the parent is gone

const device = Backend.open(JSON.parse(options) as DeviceChoice);
const processor = Backend.open({ device: "cpu", kernels: "none", keepThreads: false });
for (const { compare } of COMPARISONS.slice(Number(from))) {
  const comparison = await compare({ device, processor });
  await new Promise((resolve) => process.send?.(comparison, resolve));
}
process.exit(0); // what is left is the system's to free: see compare.ts
