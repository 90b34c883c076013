export { gradients, recomputed } from "./autodiff.js";
export type { Gradient } from "./gradient.js";
export {
  type ComputeType,
  Graph,
  type GraphOptions,
  type GraphPart,
  type ProfileEntry,
  type RecordedStep,
  type TapeEntry,
} from "./graph.js";
export { defineOp, type KernelUse, type Native, type Op, type OpDefinition, type Step } from "./op.js";
export * as ops from "./ops/index.js";
export {
  ADAMW_DEFAULTS,
  AdamW,
  type AdamWOptions,
  type AdamWSetup,
  learningRateAt,
  type OptimizerState,
  type Schedule,
} from "./optimizer.js";
export { type StoredTensorOptions, TensorStore } from "./store.js";
export { describe, elementCount, rowCount, type Shape, type Tensor, type TensorData } from "./tensor.js";
