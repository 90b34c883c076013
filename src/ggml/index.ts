export { fromFloat32, toFloat32 } from "./convert.js";
export {
  Backend,
  type BackendOptions,
  type Device,
  type DeviceChoice,
  deviceChoice,
  listDevices,
  type PlannedGraph,
} from "./device.js";
export { DEVICE_KINDS, type DeviceKind, type GpuKind } from "./device-kinds.js";
export {
  blockSize,
  bytesOf,
  DTYPE_BYTES,
  type DType,
  dataBytes,
  type FloatDType,
  isQuantized,
  QUANTIZED_DTYPES,
  type QuantizedDType,
  type StoredDType,
} from "./dtype.js";
export type { Functions, Pointer } from "./functions.js";
export type { KernelTimes, Variant } from "./kernel-choice.js";
export {
  availableKernels,
  emulatedKernels,
  type KernelName,
  type KernelStatus,
  type Kernels,
  kernelTimes,
  loadKernels,
} from "./kernels.js";
export { buildKernels, type KernelBuild } from "./kernels-build.js";
export { type Library, libraryDirectories, loadedBuild, loadFunctions, loadLibrary } from "./library.js";
export { preferDevice } from "./preferred-device.js";
export type { ThreadTimes } from "./thread-count.js";
export { canKeepThreads, keepThreads } from "./threads.js";
