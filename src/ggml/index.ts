export { Backend, type BackendOptions, type Device, listDevices } from "./device.js";
export { bytesOf, DTYPE_BYTES, type DType, type FloatDType, fromFloat32, toFloat32 } from "./dtype.js";
export type { Functions, Pointer } from "./functions.js";
export {
  availableKernels,
  type KernelName,
  type KernelStatus,
  type Kernels,
  loadKernels,
  type Variant,
} from "./kernels.js";
export { buildKernels, type KernelBuild } from "./kernels-build.js";
export {
  DEVICE_KINDS,
  type DeviceKind,
  type Library,
  libraryDirectories,
  loadFunctions,
  loadLibrary,
} from "./library.js";
