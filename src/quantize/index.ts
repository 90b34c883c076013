export { type GgufOrigin, nameOf } from "./content.js";
export {
  checkSize,
  type ExportOptions,
  type ExportToSizeOptions,
  exportGguf,
  exportToSize,
  type FittedModel,
} from "./export.js";
export {
  type Importance,
  importanceIdentity,
  loadImportance,
  measureImportance,
  saveImportance,
} from "./importance.js";
export { FILE_KINDS, type FileKind, parseFileKind, rowMultiple } from "./recipes.js";
export { measureSensitivity, type Sensitivity, type SensitivityOptions, type TypeCost } from "./sensitivity.js";
export type { WrittenModel } from "./write.js";
