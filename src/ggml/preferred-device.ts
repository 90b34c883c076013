import type { DeviceKind } from "./device-kinds.js";

let preferred: DeviceKind | "auto" = "auto";

/**
 * Says, before ggml is loaded, what this process will compute on. Only one build of ggml can be loaded into a process: where it is not
 * said, that of the fastest GPU is, which a later job may ask for. A process that only uses the processor does without a GPU's driver.
 */
export function preferDevice(device: DeviceKind | "auto"): void {
  preferred = device;
}

export const preferredDevice = (): DeviceKind | "auto" => preferred;
