import type { StoredDType } from "../ggml/index.js";
import { UsageError } from "../system/errors.js";
import { didYouMean } from "../system/suggest.js";

/** A device to run models on. Its rates are the hardware's own, of which an engine reaches a part; see predict.ts. */
export interface DeviceProfile {
  readonly id: string;
  readonly name: string;
  readonly kind: "phone" | "board" | "laptop" | "gpu" | "browser";
  /** Memory for a model and its cache, in bytes: what the system and other programs leave. */
  readonly usableBytes: number;
  /** Bytes of memory read per second. */
  readonly bandwidth: number;
  /** Operations on quantized weights per second, one token at a time; a multiplication and an addition are two. */
  readonly compute: number;
  /** Tokens of prompt and answer to plan for. */
  readonly contextLength: number;
  /** Rates that were measured on the device rather than estimated from its hardware. */
  readonly measured?: MeasuredRates | undefined;
}

/** How fast an engine computes on a device, one token at a time. */
export interface MeasuredRates {
  /** Operations per second on weights of each type, including reading them from memory. */
  readonly computeOf: Readonly<Partial<Record<StoredDType, number>>>;
  /** Additional seconds for each row of a matrix. */
  readonly rowSeconds: number;
  /** Operations per second of attention with keys and values in f16. */
  readonly attentionCompute: number;
  /** Seconds that an operation without work takes. */
  readonly startSeconds: number;
}

/** A device's profile in the units that data sheets use: GiB, GB/s and teraoperations per second. */
type Row = readonly [
  kind: DeviceProfile["kind"],
  id: string,
  name: string,
  usableGiB: number,
  bandwidth: number,
  compute: number,
  contextLength: number,
];

/**
 * Common devices. Memory bandwidths of phones, boards and laptops follow from the memory's width and rate (LPDDR4X-3733 of 32 bits in
 * a 4 GB phone: 14.9 GB/s; LPDDR5X-8533 of 64 bits: 68.3 GB/s); GPUs have their vendors' bandwidths and dense 16-bit rates. A program
 * may use about half of a phone's memory, because the system ends larger ones, and on a laptop what the system leaves.
 */
const ROWS: readonly Row[] = [
  ["phone", "phone-4gb", "Phone with 4 GB", 1.4, 14.9, 0.06, 2048],
  ["phone", "phone-6gb", "Phone with 6 GB", 2.5, 29.9, 0.1, 4096],
  ["phone", "phone-8gb", "Phone with 8 GB", 4, 51.2, 0.2, 4096],
  ["phone", "phone-12gb", "Phone with 12 GB", 6.5, 68.3, 0.3, 8192],
  ["board", "raspberry-pi-5", "Raspberry Pi 5 with 8 GB", 6.5, 17.1, 0.1, 4096],
  ["laptop", "laptop-8gb", "Laptop with 8 GB", 4.5, 51.2, 0.3, 4096],
  ["laptop", "laptop-16gb", "Laptop with 16 GB", 11, 102.4, 0.6, 8192],
  ["laptop", "laptop-32gb", "Laptop with 32 GB", 25, 120, 0.8, 16384],
  ["browser", "browser-tab", "Browser tab (WebAssembly)", 1.8, 10, 0.02, 2048],
  ["gpu", "rtx-4060-8gb", "GeForce RTX 4060 (8 GB)", 7, 272, 15, 8192],
  ["gpu", "rtx-3060-12gb", "GeForce RTX 3060 (12 GB)", 11, 360, 12.7, 8192],
  ["gpu", "rtx-4090-24gb", "GeForce RTX 4090 (24 GB)", 22.5, 1008, 82, 16384],
  ["gpu", "l4-24gb", "NVIDIA L4 (24 GB)", 22.5, 300, 30, 16384],
  ["gpu", "a100-80gb", "NVIDIA A100 (80 GB)", 76, 2039, 78, 32768],
  ["gpu", "h100-80gb", "NVIDIA H100 (80 GB)", 76, 3350, 134, 32768],
  ["gpu", "h200-141gb", "NVIDIA H200 (141 GB)", 134, 4800, 134, 32768],
];

export const DEVICES: readonly DeviceProfile[] = ROWS.map(
  ([kind, id, name, usableGiB, bandwidth, compute, contextLength]) => ({
    id,
    name,
    kind,
    usableBytes: usableGiB * 2 ** 30,
    bandwidth: bandwidth * 1e9,
    compute: compute * 1e12,
    contextLength,
  }),
);

/** The id of the machine that this runs on, which is measured. */
export const THIS_MACHINE = "this-machine";

/** @throws UsageError for an unknown id, listing the devices */
export function deviceProfile(id: string): DeviceProfile {
  const found = DEVICES.find((device) => device.id === id);
  if (found !== undefined) return found;
  const ids = DEVICES.map((device) => device.id);
  throw new UsageError(
    `there is no device ${id}; there are ${ids.join(", ")}, and ${THIS_MACHINE}.${didYouMean(id, [...ids, THIS_MACHINE])}`,
  );
}

export const isDevice = (id: string): boolean => DEVICES.some((device) => device.id === id);
