import type { Numbers, Ranks } from "../ranks/index.js";
import { elementAt } from "../system/arrays.js";
import { CoppiceError } from "../system/errors.js";
import { AdamW, elementCount, Graph, type GraphPart, ops, type Tensor, TensorStore } from "../tensor/index.js";
import type { SavedTensor } from "./saved-tensor.js";
import { type GradientSums, sumGradients, type Update, type UpdateInputs } from "./update.js";

/** The elements [from, to) of a tensor. */
interface Range {
  readonly from: number;
  readonly to: number;
}

/** A part of a weight that one rank updates. */
interface Piece extends Range {
  readonly weight: Tensor;
  /** The weight's gradient, summed over micro-batches. */
  readonly sum: Tensor;
  readonly owner: number;
}
type NamedPiece = Piece & { readonly name: string };

const nameOf = ({ weight, from }: Piece): string => `${weight.name}[${from}]`;

/** Pieces begin at multiples of so many elements: whole vectors and cache lines. */
const ALIGNMENT = 64;
/** The micro-batch that completes the gradients runs in so many parts; those that a part completes are sent during the next. */
const PARTS = 8;

/** Divides all weights, laid end to end, among ranks, so that each has as many elements. */
export function piecesOf(weights: readonly Tensor[], sums: readonly Tensor[], ranks: number): Piece[] {
  const total = weights.reduce((count, { shape }) => count + elementCount(shape), 0);
  const pieces: Piece[] = [];
  let before = 0;
  weights.forEach((weight, i) => {
    const count = elementCount(weight.shape);
    for (let owner = 0; owner < ranks; owner++) {
      const edge = (rank: number) => {
        const at = (total * rank) / ranks - before;
        return rank === ranks ? count : Math.max(0, Math.min(count, Math.round(at / ALIGNMENT) * ALIGNMENT));
      };
      const [from, to] = [edge(owner), edge(owner + 1)];
      if (to > from) pieces.push({ weight, sum: sums[i] as Tensor, from, to, owner });
    }
    before += count;
  });
  return pieces;
}

const partOf = (g: Graph, tensor: Tensor, { from, to }: Range): Tensor =>
  ops.part(g, tensor, { offset: from, to: [to - from] });

/**
 * An update from the gradients of all ranks. Each gradient is summed at the rank that owns its piece of the weight, while the backward
 * pass goes on; the owner updates the piece and sends it to all. So a rank holds the moments of its pieces only (ZeRO-1, Rajbhandari et
 * al. 2020, section 5), as many bytes travel as in an all-reduce, and all ranks have the same weights to the bit, whatever their processors.
 */
export class SharedUpdate implements Update {
  private readonly gradients: GradientSums;
  private readonly pieces: readonly Piece[];
  /** The gradients of this rank's pieces, summed over ranks. */
  private readonly reduced: TensorStore;
  private readonly state: TensorStore;
  private readonly optimizer: AdamW;
  /** Adds up the squares of this rank's gradients. */
  private readonly squares: Graph;
  private readonly ownSquares: Tensor;
  /** Copies of this rank's pieces, where there are no kernels of ours: ggml's update refuses a part of a tensor. */
  private readonly copies: TensorStore;
  /** Updates this rank's pieces. */
  private readonly update: Graph;
  private readonly norm: Tensor;
  private readonly reductions: Promise<void>[] = [];
  /** The parts in which the micro-batch that completes the gradients runs. */
  private parts: readonly GraphPart[] | undefined;

  constructor(
    private readonly inputs: UpdateInputs,
    private readonly ranks: Ranks,
  ) {
    const { backend, weights, options } = inputs;
    this.gradients = sumGradients(inputs);
    this.pieces = piecesOf(weights, [...this.gradients.store], ranks.size);
    const own = this.pieces.filter(({ owner }) => owner === ranks.rank);
    const matrices = new Set(own.filter(({ weight }) => weight.shape.length > 1).map(nameOf));

    this.squares = new Graph(backend);
    this.update = new Graph(backend);
    this.norm = this.update.input("norm", "f32", [1]);
    const views = own.map((piece) => ({ ...partOf(this.update, piece.weight, piece), name: nameOf(piece) }));
    this.copies = new TensorStore(backend, own.length);
    const owned = backend.kernels === undefined ? views.map((view) => this.copyOf(view)) : views;
    this.copies.allocate();
    this.state = new TensorStore(backend, AdamW.stateTensors(own.length));
    this.optimizer = new AdamW(this.state, owned, options, { decays: ({ name }) => matrices.has(name) });
    this.state.allocate();
    this.reduced = new TensorStore(backend, own.length);
    const gradients = own.map((piece) =>
      this.reduced.add(nameOf(piece), [piece.to - piece.from], "f32", { place: piece.weight.place }),
    );
    this.reduced.allocate();
    this.ownSquares = this.squares.output(this.optimizer.squares(this.squares, gradients));
    this.squares.compile();
    const assign = (from: Tensor, to: Tensor) => {
      if (from !== to) this.update.effect(ops.assign(this.update, from, to));
    };
    for (const [i, view] of views.entries()) assign(view, elementAt(owned, i));
    this.optimizer.update(this.update, gradients, this.norm);
    for (const [i, view] of views.entries()) assign(elementAt(owned, i), view);
    this.update.compile();
  }

  private copyOf({ name, shape, place }: Tensor): Tensor {
    return this.copies.add(name, shape, "f32", { trainable: true, place });
  }

  /** Whether native code reads the device's memory as it is. */
  private get isOnHost(): boolean {
    return this.inputs.backend.device.kind === "cpu";
  }

  begin(learningRate: number, stepNumber: number): void {
    this.optimizer.prepare(learningRate, stepNumber);
    this.gradients.store.clear();
  }

  async compute(isLast: boolean): Promise<void> {
    const { g } = this.inputs;
    if (!isLast) return g.run();
    const { completed } = this.gradients;
    const sums = new Map(completed.map(({ step, sum }) => [step, sum]));
    // a GPU's memory is read only while it computes nothing
    this.parts ??= g.parts([...sums.keys()], this.isOnHost ? PARTS : 1);
    for (const part of this.parts) {
      await part.run();
      for (const step of part.known) this.reductions.push(...this.reduce(sums.get(step) as Tensor));
    }
  }

  private reduce(sum: Tensor): Promise<void>[] {
    const { ranks, reduced } = this;
    return this.pieces
      .filter((piece) => piece.sum === sum)
      .map((piece) =>
        this.withNumbers(sum, piece, "read", (numbers) => {
          if (piece.owner !== ranks.rank) return ranks.reduce(numbers, piece.owner);
          const whole = { from: 0, to: piece.to - piece.from };
          return this.withNumbers(reduced.get(nameOf(piece)), whole, "change", (into) =>
            ranks.reduce(numbers, piece.owner, into),
          );
        }),
      );
  }

  async finish(): Promise<number> {
    const { ranks, squares, update } = this;
    await Promise.all(this.reductions.splice(0));
    await squares.run();
    const all = await ranks.gather(Float64Array.of(squares.read(this.ownSquares)[0] ?? Number.NaN));
    const norm = Math.sqrt(all.reduce((sum, [square = Number.NaN]) => sum + square, 0));
    update.write(this.norm, Float32Array.of(norm));
    await update.run();
    for (const piece of this.pieces) await this.broadcast(piece.weight, piece, piece.owner);
    return norm;
  }

  /** Copies numbers from one rank to the others. */
  private broadcast(tensor: Tensor, range: Range, root: number): Promise<void> {
    const access = root === this.ranks.rank ? "read" : "change";
    return this.withNumbers(tensor, range, access, (numbers) => this.ranks.broadcast(numbers, root));
  }

  /** Copies the first rank's tensors to the others. All ranks must call it. */
  async spread(stores: readonly TensorStore[]): Promise<void> {
    for (const tensor of stores.flatMap((store) => [...store]))
      await this.broadcast(tensor, { from: 0, to: elementCount(tensor.shape) }, 0);
  }

  /** Hands a range of a tensor to `use`, in place where the device's memory is the processor's. */
  private async withNumbers(
    tensor: Tensor,
    { from, to }: Range,
    access: "read" | "change",
    use: (numbers: Numbers) => Promise<void>,
  ): Promise<void> {
    const f = this.inputs.backend.functions;
    if (this.isOnHost) {
      const address = f.ggml_get_data(tensor.handle);
      if (address === null) throw new CoppiceError(`${tensor.name} has no memory`);
      return use({ address: address + 4n * BigInt(from), count: to - from });
    }
    const copy = new Float32Array(to - from);
    f.ggml_backend_tensor_get(tensor.handle, copy, 4 * from, copy.byteLength);
    await use(copy);
    if (access === "change") f.ggml_backend_tensor_set(tensor.handle, copy, 4 * from, copy.byteLength);
  }

  /** Sends a piece of the optimizer's state to the leader. */
  give(name: string): void {
    this.ranks.sendData(this.stateOf(name), 0);
  }

  /** Takes a piece of the optimizer's state from the leader. */
  take(name: string): void {
    const tensor = this.state.get(name);
    const numbers = new Float32Array(elementCount(tensor.shape));
    this.ranks.receiveData(numbers, 0);
    this.state.write(tensor, numbers);
  }

  private stateOf(name: string): Uint8Array {
    return new Uint8Array(this.state.read(this.state.get(name)).buffer);
  }

  /** The optimizer's state, for the leader, which gets from the other ranks and gives to them what is theirs. */
  saved(): SavedTensor[] {
    return this.inputs.weights.flatMap((weight) =>
      ["m", "v"].map((moment) => {
        const pieces = this.pieces
          .filter((piece) => piece.weight === weight)
          .map((piece) => ({ ...piece, name: `${nameOf(piece)}.${moment}` }));
        return {
          name: `${weight.name}.${moment}`,
          shape: weight.shape,
          read: () => this.collect(pieces, elementCount(weight.shape)),
          write: (bytes: Uint8Array) => this.distribute(pieces, bytes),
        };
      }),
    );
  }

  private collect(pieces: readonly NamedPiece[], count: number): Uint8Array {
    const { ranks } = this;
    const bytes = new Uint8Array(4 * count);
    for (const { name, owner, from, to } of pieces) {
      const part = bytes.subarray(4 * from, 4 * to);
      if (owner === ranks.rank) part.set(this.stateOf(name));
      else {
        ranks.post({ kind: "give", name }, owner);
        ranks.receiveData(part, owner);
      }
    }
    return bytes;
  }

  private distribute(pieces: readonly NamedPiece[], bytes: Uint8Array): void {
    const { ranks, state } = this;
    for (const { name, owner, from, to } of pieces) {
      const part = bytes.slice(4 * from, 4 * to);
      if (owner === ranks.rank) state.write(state.get(name), part);
      else {
        ranks.post({ kind: "take", name }, owner);
        ranks.sendData(part, owner);
      }
    }
  }

  get graphs(): Graph[] {
    return [this.squares, this.update];
  }

  free(): void {
    if (this.reductions.length > 0) return; // after an error: calls under way still read the memory, and the process will end
    this.squares.free();
    this.update.free();
    this.gradients.store.free();
    this.reduced.free();
    this.copies.free();
    this.state.free();
  }
}
