import type { Tensor, TensorStore } from "../tensor/index.js";

/** A tensor of a checkpoint: where its f32 numbers come from and go to. */
export interface SavedTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly read: () => Uint8Array;
  readonly write: (bytes: Uint8Array) => void;
}

/** Tensors of a store, for a checkpoint; all by default. */
export const savedTensors = (store: TensorStore, tensors: Iterable<Tensor> = store): SavedTensor[] =>
  [...tensors].map((tensor) => ({
    name: tensor.name,
    shape: tensor.shape,
    read: () => new Uint8Array(store.read(tensor).buffer),
    write: (bytes) => store.write(tensor, bytes),
  }));
