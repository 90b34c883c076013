import { bytesOf, type DType, dataBytes } from "../ggml/dtype.js";
import type { Functions, Pointer } from "../ggml/functions.js";
import { elementAt } from "../system/arrays.js";
import { ShapeError } from "../system/errors.js";

/** Sizes of the axes, outermost first as in PyTorch: [batch, sequence, hidden]. At most four. */
export type Shape = readonly number[];

/** A tensor of the engine: a description here, its elements on the device. */
export interface Tensor {
  readonly name: string;
  readonly shape: Shape;
  readonly dtype: DType;
  readonly handle: Pointer;
  /** Whether gradients flow into it. */
  readonly requiresGrad: boolean;
  /** The number of the device that a stored tensor is on, of several. */
  readonly place?: number | undefined;
}

/** Number of elements of a shape. */
export const elementCount = (shape: Shape): number => shape.reduce((product, size) => product * size, 1);

/** Whether two shapes are equal. */
export const sameShape = (a: Shape, b: Shape): boolean => a.length === b.length && a.every((size, i) => size === b[i]);

/** A tensor's name, type and shape, for messages. */
export const describe = (tensor: Tensor): string => `${tensor.name} ${tensor.dtype} [${tensor.shape.join(", ")}]`;

/** The size of the n-th axis from the end (n = 1 is the innermost); 1 where there are fewer axes. */
export const axisFromEnd = (shape: Shape, n: number): number => shape[shape.length - n] ?? 1;

/** The sizes of a tensor with exactly so many axes. @throws ShapeError naming the tensor when it has more or fewer */
export function sizesOf(tensor: Tensor, axes: 1): [number];
export function sizesOf(tensor: Tensor, axes: 2): [number, number];
export function sizesOf(tensor: Tensor, axes: 4): [number, number, number, number];
export function sizesOf(tensor: Tensor, axes: number): number[] {
  if (tensor.shape.length !== axes) throw new ShapeError(`${describe(tensor)} must have ${axes} axes`);
  return [...tensor.shape];
}

/** The number of rows: the size of the first axis. */
export const rowCount = (tensor: Tensor): number => elementAt(tensor.shape, 0);

/** ggml's order: four sizes, innermost first. */
export function nativeSizes(shape: Shape): [number, number, number, number] {
  return [axisFromEnd(shape, 1), axisFromEnd(shape, 2), axisFromEnd(shape, 3), axisFromEnd(shape, 4)];
}

/** @throws ShapeError naming the tensor when a shape cannot be a tensor's */
export function checkShape(name: string, shape: Shape): void {
  if (shape.length < 1 || shape.length > 4 || !shape.every((size) => Number.isSafeInteger(size) && size > 0))
    throw new ShapeError(`${name}: [${shape.join(", ")}] is not a shape: one to four positive sizes are needed`);
  if (!Number.isSafeInteger(elementCount(shape) * 4))
    throw new ShapeError(`${name}: [${shape.join(", ")}] is too large`);
}

/** Data to write to a tensor. */
export type TensorData = Float32Array | Int32Array | Uint16Array | Uint8Array;

/**
 * Copies data onto the device.
 * @throws ShapeError when its byte count is not the tensor's
 */
export function writeTensor(functions: Functions, tensor: Tensor, data: TensorData): void {
  const expected = dataBytes(tensor.dtype, elementCount(tensor.shape));
  if (data.byteLength !== expected)
    throw new ShapeError(`${describe(tensor)} takes ${expected} bytes, not ${data.byteLength}`);
  functions.ggml_backend_tensor_set(tensor.handle, bytesOf(data), 0, expected);
}

/** Copies a tensor's bytes from the device. */
export function readTensorBytes(functions: Functions, tensor: Tensor): Uint8Array {
  const bytes = new Uint8Array(dataBytes(tensor.dtype, elementCount(tensor.shape)));
  functions.ggml_backend_tensor_get(tensor.handle, bytes, 0, bytes.byteLength);
  return bytes;
}

/** Copies an f32 tensor from the device. @throws ShapeError for other types */
export function readFloat32(functions: Functions, tensor: Tensor): Float32Array {
  if (tensor.dtype !== "f32") throw new ShapeError(`${describe(tensor)} is not f32`);
  return new Float32Array(readTensorBytes(functions, tensor).buffer);
}
