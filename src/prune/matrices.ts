import { type TensorSource, tensorInfo } from "../checkpoint/index.js";
import { floatSource, readTensor } from "../checkpoint/tensor-source.js";
import { toFloat32 } from "../ggml/convert.js";
import { loadFunctions } from "../ggml/library.js";
import type { Matrix } from "../linear-algebra/index.js";

/** Reads a tensor as f32: a matrix as it is, a vector as one row. */
export function readMatrix(stored: TensorSource, name: string): Matrix {
  const source = floatSource(stored);
  const { dtype, shape } = tensorInfo(source, name);
  const data = toFloat32(loadFunctions(), readTensor(source, name), dtype);
  const [rows, columns] = shape.length === 2 ? shape : [1, data.length];
  return { rows: rows as number, columns: columns as number, data };
}
