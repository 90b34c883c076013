export { type ExportOptions, exportGguf } from "./export.js";
export { FILE_KINDS, type FileKind, parseFileKind } from "./recipes.js";
export type { WrittenModel } from "./write.js";
