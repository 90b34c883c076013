import { type AdamW, elementCount, type Tensor, type TensorStore } from "../tensor/index.js";

/** A tensor of a checkpoint: where its f32 numbers come from and go to. */
export interface SavedTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly read: () => Uint8Array;
  readonly write: (bytes: Uint8Array) => void;
}

/** The optimizer's moments, for a checkpoint, in which each code of 8 bits is a number: not every four bytes are one. */
export function savedMoments(store: TensorStore, { moments, packed }: AdamW): SavedTensor[] {
  const packedNames = new Set([...packed].map(({ name }) => name));
  return savedTensors(store, moments).map((saved) => (packedNames.has(saved.name) ? unpacked(saved) : saved));
}

const unpacked = ({ name, shape, read, write }: SavedTensor): SavedTensor => ({
  name,
  shape: [4 * elementCount(shape)],
  read: () => new Uint8Array(Float32Array.from(read()).buffer),
  write: (bytes) => write(Uint8Array.from(new Float32Array(bytes.slice().buffer))),
});

/** Tensors of a store, for a checkpoint; all by default. */
export const savedTensors = (store: TensorStore, tensors: Iterable<Tensor> = store): SavedTensor[] =>
  [...tensors].map((tensor) => ({
    name: tensor.name,
    shape: tensor.shape,
    read: () => new Uint8Array(store.read(tensor).buffer),
    write: (bytes) => store.write(tensor, bytes),
  }));
