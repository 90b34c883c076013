/** Kinds of compute device, fastest first. */
export const DEVICE_KINDS = ["cuda", "metal", "vulkan", "cpu"] as const;
export type DeviceKind = (typeof DEVICE_KINDS)[number];
/** Kinds but the processor. */
export type GpuKind = Exclude<DeviceKind, "cpu">;
