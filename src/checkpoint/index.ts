export { type AdaptedName, adapterScales, isAdapter, splitAdapters, withAdapters } from "./adapters.js";
export { chatTemplateIn } from "./chat-templates.js";
export { type CheckpointDirectory, isGguf, openDirectory, type WriteOptions, writeCheckpoint } from "./directory.js";
export {
  type GgufFile,
  type GgufKind,
  type GgufMetadata,
  type GgufScalar,
  type GgufTensor,
  type GgufValue,
  openGguf,
  type WriteGgufOptions,
  writeGguf,
} from "./gguf.js";
export {
  type DownloadProgress,
  downloadRepo,
  HUB_PREFIX,
  type HubOptions,
  isHubId,
  type RepoType,
  remoteTensors,
  resolveConfig,
  resolveModel,
  type WantedFiles,
} from "./hub.js";
export {
  checkOwner,
  type OtherTensor,
  openSafetensors,
  type SafetensorsFile,
  type TensorToStream,
  type TensorToWrite,
  writeSafetensors,
} from "./safetensors.js";
export {
  blocks,
  floatSource,
  readTensor,
  type TensorInfo,
  type TensorSource,
  tensorBytes,
  tensorInfo,
} from "./tensor-source.js";
