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

export interface StoredTensorOptions {
  readonly trainable?: boolean | undefined;
  /** The number of the device that holds it, of several, and computes with it. By default the first holds it, and any computes with it. */
  readonly place?: number | undefined;
}

/** Tensors that outlive a computation (weights, optimizer state, inputs), in one buffer of each device. */
export class TensorStore {
  /** Tensor records, by their place. */
  private readonly contexts = new Map<number | undefined, Pointer>();
  private buffers: Pointer[] = [];
  private readonly tensors = new Map<string, Tensor>();

  /** @param capacity how many tensors it can hold */
  constructor(
    readonly backend: Backend,
    private readonly capacity: number,
  ) {}

  private contextOf(place: number | undefined): Pointer {
    const known = this.contexts.get(place);
    if (known !== undefined) return known;
    const f = this.backend.functions;
    const context = f.ggml_init(f.ggml_tensor_overhead() * (this.capacity + 1));
    this.contexts.set(place, context);
    return context;
  }

  /** Declares a tensor. @throws ShapeError for a bad shape, a name used twice, or past the capacity */
  add(name: string, shape: Shape, dtype: DType, { trainable = false, place }: StoredTensorOptions = {}): Tensor {
    checkShape(name, shape);
    if (this.buffers.length > 0) throw new ShapeError(`${name} was declared after the store was allocated`);
    if (this.tensors.has(name)) throw new ShapeError(`${name} was declared twice`);
    if (this.tensors.size >= this.capacity)
      throw new ShapeError(`${name}: the store holds at most ${this.capacity} tensors`);
    const f = this.backend.functions;
    const handle = f.ggml_new_tensor_4d(this.contextOf(place), DTYPE_ID[dtype], ...nativeSizes(shape));
    if (trainable) f.ggml_set_param(handle);
    const tensor: Tensor = { name, shape, dtype, handle, requiresGrad: trainable, place };
    this.tensors.set(name, tensor);
    return tensor;
  }

  /** Allocates every declared tensor, set to zero. @throws CoppiceError when a device has too little memory */
  allocate(): this {
    if (this.buffers.length > 0) return this;
    this.reserve().clear();
    return this;
  }

  /**
   * Allocates every declared tensor without writing it, which on processors takes no memory yet.
   * @throws CoppiceError when a device has too little memory
   */
  reserve(): this {
    if (this.buffers.length > 0) return this;
    const { backend } = this;
    for (const [place, context] of this.contexts) {
      const buffer = backend.allocate(context, place);
      if (buffer === null) {
        for (const allocated of this.buffers.splice(0)) backend.release(allocated);
        throw new CoppiceError(`${backend.device.name} has too little memory for ${this.tensors.size} tensors`);
      }
      this.buffers.push(buffer);
    }
    return this;
  }

  /** Sets every element of every tensor to zero. */
  clear(): void {
    for (const buffer of this.buffers) this.backend.functions.ggml_backend_buffer_clear(buffer, 0);
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

  /** Bytes of the devices' buffers; 0 before they are allocated. */
  get byteLength(): number {
    const f = this.backend.functions;
    return this.buffers.reduce((sum, buffer) => sum + f.ggml_backend_buffer_get_size(buffer), 0);
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
    for (const buffer of this.buffers.splice(0)) this.backend.release(buffer);
    for (const context of this.contexts.values()) f.ggml_free(context);
    this.contexts.clear();
    this.tensors.clear();
  }
}
