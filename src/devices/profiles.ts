import type { StoredDType } from "../ggml/index.js";
import { UsageError } from "../system/errors.js";
import { didYouMean } from "../system/suggest.js";

/** What a model is to run on. Rates are the hardware's own; predictions say what of them an engine reaches. */
export interface DeviceProfile {
  readonly id: string;
  readonly name: string;
  readonly kind: "phone" | "board" | "laptop" | "gpu" | "browser";
  /** Bytes that a model with its cache may take: the rest is the system's and other programs'. */
  readonly usableBytes: number;
  /** Bytes of memory read in a second. */
  readonly bandwidth: number;
  /** Operations on quantized weights in a second (a multiplication and an addition are two), one token at a time. */
  readonly compute: number;
  /** Tokens of prompt and answer to plan for. */
  readonly contextLength: number;
  /** What was measured there rather than estimated from the hardware's rates. */
  readonly measured?: MeasuredRates | undefined;
}

/** How fast an engine computes on a device, one token at a time. */
export interface MeasuredRates {
  /** Operations on weights of a type in a second, read from memory. */
  readonly computeOf: Readonly<Partial<Record<StoredDType, number>>>;
  /** Seconds that a row of a matrix takes beside those. */
  readonly rowSeconds: number;
  /** Operations of attention to keys and values in f16 in a second. */
  readonly attentionCompute: number;
  /** Seconds that an operation takes which does nothing. */
  readonly startSeconds: number;
}

const GiB = 2 ** 30;
const [GB, TERA] = [1e9, 1e12];

const profile = (
  kind: DeviceProfile["kind"],
  [id, name]: readonly [string, string],
  usableGiB: number,
  bandwidth: number,
  compute: number,
  contextLength: number,
): DeviceProfile => ({
  id,
  name,
  kind,
  usableBytes: usableGiB * GiB,
  bandwidth: bandwidth * GB,
  compute,
  contextLength,
});

/**
 * Common devices. Memory bandwidths follow from the memory's width and rate (LPDDR4X-3733 of 32 bits on a 4 GB phone: 14.9 GB/s; LPDDR5X-8533 of
 * 64 bits: 68.3 GB/s), those of GPUs and their dense 16-bit rates are the vendors'. What of the memory a program may have is about half
 * of a phone's (systems end larger ones), and what a laptop's system leaves.
 */
export const DEVICES: readonly DeviceProfile[] = [
  profile("phone", ["phone-4gb", "Phone with 4 GB"], 1.4, 14.9, 0.06 * TERA, 2048),
  profile("phone", ["phone-6gb", "Phone with 6 GB"], 2.5, 29.9, 0.1 * TERA, 4096),
  profile("phone", ["phone-8gb", "Phone with 8 GB"], 4, 51.2, 0.2 * TERA, 4096),
  profile("phone", ["phone-12gb", "Phone with 12 GB"], 6.5, 68.3, 0.3 * TERA, 8192),
  profile("board", ["raspberry-pi-5", "Raspberry Pi 5 with 8 GB"], 6.5, 17.1, 0.1 * TERA, 4096),
  profile("laptop", ["laptop-8gb", "Laptop with 8 GB"], 4.5, 51.2, 0.3 * TERA, 4096),
  profile("laptop", ["laptop-16gb", "Laptop with 16 GB"], 11, 102.4, 0.6 * TERA, 8192),
  profile("laptop", ["laptop-32gb", "Laptop with 32 GB"], 25, 120, 0.8 * TERA, 16384),
  profile("browser", ["browser-tab", "Browser tab (WebAssembly)"], 1.8, 10, 0.02 * TERA, 2048),
  profile("gpu", ["rtx-4060-8gb", "GeForce RTX 4060 (8 GB)"], 7, 272, 15 * TERA, 8192),
  profile("gpu", ["rtx-3060-12gb", "GeForce RTX 3060 (12 GB)"], 11, 360, 12.7 * TERA, 8192),
  profile("gpu", ["rtx-4090-24gb", "GeForce RTX 4090 (24 GB)"], 22.5, 1008, 82 * TERA, 16384),
  profile("gpu", ["l4-24gb", "NVIDIA L4 (24 GB)"], 22.5, 300, 30 * TERA, 16384),
  profile("gpu", ["a100-80gb", "NVIDIA A100 (80 GB)"], 76, 2039, 78 * TERA, 32768),
  profile("gpu", ["h100-80gb", "NVIDIA H100 (80 GB)"], 76, 3350, 134 * TERA, 32768),
  profile("gpu", ["h200-141gb", "NVIDIA H200 (141 GB)"], 134, 4800, 134 * TERA, 32768),
];

/** What is said in place of a device's id for the machine that this runs on: it is measured. */
export const THIS_MACHINE = "this-machine";

/** @throws UsageError listing what there is */
export function deviceProfile(id: string): DeviceProfile {
  const found = DEVICES.find((device) => device.id === id);
  if (found === undefined)
    throw new UsageError(
      `there is no device ${id}; there are: ${DEVICES.map((device) => device.id).join(", ")}, and ${THIS_MACHINE}.${didYouMean(id, [...DEVICES.map((device) => device.id), THIS_MACHINE])}`,
    );
  return found;
}

export const isDevice = (id: string): boolean => DEVICES.some((device) => device.id === id);
