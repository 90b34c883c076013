/**
 * Coppice's public API: one function for each command, with a typed options object. The building blocks are in the
 * subpaths `coppice/ggml`, `coppice/tensor`, `coppice/models`, `coppice/checkpoint`, `coppice/data`, `coppice/prune`,
 * `coppice/distill`, `coppice/quantize`, `coppice/generate`, `coppice/evaluate` and `coppice/serve`.
 */
export * from "./jobs/index.js";
export { type Message, type Numbers, Ranks } from "./ranks/index.js";
export { CoppiceError, FormatError, UsageError } from "./system/errors.js";
