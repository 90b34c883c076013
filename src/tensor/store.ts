import type { Backend } from "../ggml/device.js";
import { DTYPE_ID, type DType, dataBytes } from "../ggml/dtype.js";
import type { Pointer } from "../ggml/functions.js";
import { CoppiceError, ShapeError } from "../system/errors.js";
import {
  checkShape,
  elementCount,
  nativeSizes,
  readFloat32,
  type Shape,
  type Tensor,
  type TensorData,
  writeTensor,
} from "./tensor.js";

/** Tensors that outlive a computation (weights, optimizer state, inputs), in one device buffer. */
export class TensorStore {
  private readonly context: Pointer;
  private buffer: Pointer | null = null;
  private readonly tensors = new Map<string, Tensor>();

  /** @param capacity how many tensors it can hold */
  constructor(
    readonly backend: Backend,
    private readonly capacity: number,
  ) {
    const f = backend.functions;
    this.context = f.ggml_init(f.ggml_tensor_overhead() * (capacity + 1));
  }

  /** Declares a tensor. @throws ShapeError for a bad shape, a name used twice, or past the capacity */
  add(name: string, shape: Shape, dtype: DType, options: { readonly trainable?: boolean | undefined } = {}): Tensor {
    checkShape(name, shape);
    if (this.buffer !== null) throw new ShapeError(`${name} was declared after the store was allocated`);
    if (this.tensors.has(name)) throw new ShapeError(`${name} was declared twice`);
    if (this.tensors.size >= this.capacity)
      throw new ShapeError(`${name}: the store holds at most ${this.capacity} tensors`);
    const f = this.backend.functions;
    const handle = f.ggml_new_tensor_4d(this.context, DTYPE_ID[dtype], ...nativeSizes(shape));
    if (options.trainable === true) f.ggml_set_param(handle);
    const tensor: Tensor = { name, shape, dtype, handle, requiresGrad: options.trainable === true };
    this.tensors.set(name, tensor);
    return tensor;
  }

  /** Allocates every declared tensor, set to zero. @throws CoppiceError when the device has too little memory */
  allocate(): this {
    if (this.buffer !== null || this.tensors.size === 0) return this;
    const { functions: f, handle, device } = this.backend;
    this.buffer = f.ggml_backend_alloc_ctx_tensors(this.context, handle);
    if (this.buffer === null)
      throw new CoppiceError(`${device.name} has too little memory for ${this.tensors.size} tensors`);
    f.ggml_backend_buffer_clear(this.buffer, 0);
    return this;
  }

  /** Sets every element of every tensor to zero. */
  clear(): void {
    if (this.buffer !== null) this.backend.functions.ggml_backend_buffer_clear(this.buffer, 0);
  }

  /** A declared tensor. @throws ShapeError when there is none of this name */
  get(name: string): Tensor {
    const tensor = this.tensors.get(name);
    if (tensor === undefined) throw new ShapeError(`the store has no tensor ${name}`);
    return tensor;
  }

  [Symbol.iterator](): IterableIterator<Tensor> {
    return this.tensors.values();
  }

  /** Bytes of the device buffer; 0 before it is allocated. */
  get byteLength(): number {
    return this.buffer === null ? 0 : this.backend.functions.ggml_backend_buffer_get_size(this.buffer);
  }

  write(tensor: Tensor, data: TensorData): void {
    writeTensor(this.backend.functions, tensor, data);
  }

  read(tensor: Tensor): Float32Array {
    return readFloat32(this.backend.functions, tensor);
  }

  /** Reads the rows [from, to) of an f32 tensor: its first axis. */
  readRows(tensor: Tensor, from: number, to: number): Float32Array {
    const rowBytes = dataBytes("f32", elementCount(tensor.shape.slice(1)));
    const bytes = new Uint8Array((to - from) * rowBytes);
    this.backend.functions.ggml_backend_tensor_get(tensor.handle, bytes, from * rowBytes, bytes.byteLength);
    return new Float32Array(bytes.buffer);
  }

  free(): void {
    const f = this.backend.functions;
    if (this.buffer !== null) f.ggml_backend_buffer_free(this.buffer);
    f.ggml_free(this.context);
    this.tensors.clear();
    this.buffer = null;
  }
}
