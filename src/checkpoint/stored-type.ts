import type { FloatDType } from "../ggml/dtype.js";
import { floatSource, type TensorSource } from "./tensor-source.js";

/** The type that most of a checkpoint's matrix elements are stored in; f32 where there are no matrices. */
export const storedType = (source: TensorSource): FloatDType => {
  const counts = new Map<FloatDType, number>();
  for (const { dtype, shape } of floatSource(source).tensors.values())
    if (shape.length > 1) counts.set(dtype, (counts.get(dtype) ?? 0) + shape.reduce((a, b) => a * b, 1));
  return [...counts].sort((a, b) => b[1] - a[1])[0]?.[0] ?? "f32";
};
