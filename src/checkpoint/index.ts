export { type Checkpoint, openCheckpoint, type WriteOptions, writeCheckpoint } from "./directory.js";
export { type DownloadProgress, downloadRepo, type HubOptions, isRepoName, resolveModelDirectory } from "./hub.js";
export { openSafetensors, type SafetensorsFile, type TensorToWrite, writeSafetensors } from "./safetensors.js";
export { blocks, readTensor, type TensorInfo, type TensorSource, tensorBytes, tensorInfo } from "./tensor-source.js";
