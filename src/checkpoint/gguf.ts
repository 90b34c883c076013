/** GGUF files: the values in them, reading and writing. */

export {
  type GgufFile,
  type GgufKind,
  type GgufMetadata,
  type GgufScalar,
  type GgufTensor,
  type GgufValue,
  gguf,
} from "./gguf-format.js";
export { openGguf } from "./gguf-reader.js";
export { ggufBytes, type WriteGgufOptions, writeGguf } from "./gguf-writer.js";
