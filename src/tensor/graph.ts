import type { Backend, PlannedGraph } from "../ggml/device.js";
import type { DType } from "../ggml/dtype.js";
import type { Functions, Pointer } from "../ggml/functions.js";
import { elementAt } from "../system/arrays.js";
import { CoppiceError, ShapeError, UsageError } from "../system/errors.js";
import type { Gradient } from "./gradient.js";
import { TensorStore } from "./store.js";
import {
  describe,
  readFloat32,
  readTensorBytes,
  type Shape,
  type Tensor,
  type TensorData,
  writeTensor,
} from "./tensor.js";

/** A recorded forward step with one output, and its vector-Jacobian product. */
export interface RecordedStep {
  readonly output: Tensor;
  readonly inputs: readonly Tensor[];
  readonly vjp: (dy: Tensor) => readonly Gradient[];
}

/** A recorded forward step. Its `vjp` receives a gradient for each output that the loss depends on. */
export interface TapeEntry {
  readonly outputs: readonly Tensor[];
  readonly inputs: readonly Tensor[];
  readonly vjp: (dys: readonly (Tensor | undefined)[]) => readonly Gradient[];
}

/** The type that matrix products read their right operand in. Sums and everything else are f32. */
export type ComputeType = "f32" | "bf16";

export interface GraphOptions {
  /** f32 by default. */
  readonly computeType?: ComputeType | undefined;
  /** Whether gradients compute activations of layers again instead of keeping them: less memory, more time. */
  readonly recompute?: boolean | undefined;
}

/** The time that all steps of a kind took. */
export interface ProfileEntry {
  readonly op: string;
  readonly seconds: number;
  readonly count: number;
}

/** A part of a computation. */
export interface GraphPart {
  /** Runs it; those before must have run. */
  readonly run: () => Promise<void>;
  /** Results that it completes. */
  readonly known: readonly Tensor[];
}

/** A step of the computation, to plan the order. */
interface ScheduledStep {
  readonly name: string;
  readonly output: Pointer;
  readonly inputs: readonly Pointer[];
}

const TENSORS_PER_CONTEXT = 2048;
/** More native tensors than any op creates. */
const TENSORS_PER_OP = 16;
const MAX_INPUTS = 512;

/**
 * A computation: recorded once, compiled once (which plans its memory), run many times. Steps run in the order in which they were
 * recorded, without those that no output needs. Inputs and constants keep their contents between runs; everything else is
 * scratch memory unless it is an output.
 */
export class Graph {
  readonly computeType: ComputeType;
  readonly recompute: boolean;
  private entries: TapeEntry[] = [];
  private readonly steps: ScheduledStep[] = [];
  private readonly kept = new Set<Pointer>();
  private readonly results = new Set<Pointer>();
  private readonly readers = new Map<Pointer, number>();
  /** What tensors are views of. */
  private readonly bases = new Map<Pointer, Pointer>();
  private readonly overwritten = new Set<Pointer>();
  /** Results that are computed on a certain one of several devices. */
  private readonly placed = new Map<Pointer, number>();
  private place: number | undefined;
  private readonly inputs: TensorStore;
  private readonly constants: [Tensor, TensorData][] = [];
  private readonly memos = new Map<string, Tensor>();
  /** How results that cost little are computed once more. */
  private readonly cheap = new Map<Pointer, () => Tensor>();
  private readonly contexts: Pointer[] = [];
  private readonly roots: Pointer[] = [];
  private tensorsInContext = TENSORS_PER_CONTEXT;
  private recording = true;
  private compiled: { readonly handle: Pointer; readonly context: Pointer; readonly plan: PlannedGraph } | undefined;

  constructor(
    readonly backend: Backend,
    options: GraphOptions = {},
  ) {
    this.computeType = options.computeType ?? "f32";
    this.recompute = options.recompute ?? false;
    this.inputs = new TensorStore(backend, MAX_INPUTS);
  }

  get functions(): Functions {
    return this.backend.functions;
  }

  /** The native context for an op's tensor records. */
  nativeContext(): Pointer {
    if (this.tensorsInContext + TENSORS_PER_OP > TENSORS_PER_CONTEXT) {
      const f = this.functions;
      this.contexts.push(f.ggml_init(f.ggml_tensor_overhead() * TENSORS_PER_CONTEXT));
      this.tensorsInContext = 0;
    }
    this.tensorsInContext += TENSORS_PER_OP;
    return elementAt(this.contexts, this.contexts.length - 1);
  }

  /** Declares an input; fill it with {@link write} after {@link compile}. */
  input(name: string, dtype: DType, shape: Shape): Tensor {
    return this.inputs.add(name, shape, dtype);
  }

  /**
   * Declares a constant; one of the same name is returned as it is.
   * @param data its values, or a function that computes them if there is no such constant yet
   */
  constant(name: string, dtype: DType, shape: Shape, data: TensorData | (() => TensorData)): Tensor {
    const key = `constant ${name}`;
    const known = this.memos.get(key);
    if (known !== undefined) return known;
    const tensor = this.inputs.add(name, shape, dtype);
    this.constants.push([tensor, typeof data === "function" ? data() : data]);
    this.memos.set(key, tensor);
    return tensor;
  }

  /** Derives a tensor from another once per graph, for example its transpose. */
  memo(tensor: Tensor, kind: string, derive: () => Tensor): Tensor {
    const key = `${kind} ${tensor.handle}`;
    const known = this.memos.get(key);
    if (known !== undefined) return known;
    const derived = derive();
    this.memos.set(key, derived);
    return derived;
  }

  /** Records a step for reverse-mode differentiation. */
  record({ output, inputs, vjp }: RecordedStep): void {
    this.recordAll({ outputs: [output], inputs, vjp: ([dy]) => (dy === undefined ? [] : vjp(dy)) });
  }

  /** Records a step that has several outputs. */
  recordAll(entry: TapeEntry): void {
    if (this.recording && entry.outputs.some(({ requiresGrad }) => requiresGrad)) this.entries.push(entry);
  }

  /** The steps recorded so far. */
  get tape(): readonly TapeEntry[] {
    return this.entries;
  }

  /** Records `build` on a tape of its own, to be differentiated separately. */
  taped<T>(build: () => T): { readonly value: T; readonly tape: readonly TapeEntry[] } {
    const before = { entries: this.entries, recording: this.recording };
    this.entries = [];
    this.recording = true;
    try {
      return { value: build(), tape: this.entries };
    } finally {
      this.entries = before.entries;
      this.recording = before.recording;
    }
  }

  /** Adds a step to the computation. */
  schedule(name: string, output: Tensor, inputs: readonly Tensor[]): void {
    if (inputs.some(({ handle }) => handle === output.handle)) return; // it passes its input through
    this.results.add(output.handle);
    const place = this.place ?? inputs.find((input) => input.place !== undefined)?.place;
    if (place !== undefined) this.placed.set(output.handle, place);
    this.steps.push({ name, output: output.handle, inputs: inputs.map(({ handle }) => handle) });
    for (const { handle } of inputs) this.readers.set(handle, (this.readers.get(handle) ?? 0) + 1);
  }

  /** Says that a tensor is in another's memory. */
  share(view: Tensor, base: Tensor): void {
    if (view.handle !== base.handle) this.bases.set(view.handle, base.handle);
  }

  /** Says that a step writes its output over another tensor. */
  overwrite(output: Tensor, tensor: Tensor): void {
    this.share(output, tensor);
    if (this.results.has(tensor.handle)) this.overwritten.add(tensor.handle);
  }

  /** Whether a tensor is computed by a step of this graph. */
  isResult(tensor: Tensor): boolean {
    return this.results.has(tensor.handle);
  }

  /** Whether a tensor is an intermediate result that at most `readers` steps read so far, so that its memory may be reused. */
  isSpent({ handle }: Pick<Tensor, "handle">, readers: number): boolean {
    if (!this.results.has(handle) || this.kept.has(handle) || (this.readers.get(handle) ?? 0) > readers) return false;
    const base = this.bases.get(handle);
    return base === undefined || this.overwritten.has(base) || this.isSpent({ handle: base }, 1);
  }

  /** Says how a result is computed once more, which costs little. */
  costsLittle(tensor: Tensor, compute: () => Tensor): void {
    if (!this.recompute) this.cheap.set(tensor.handle, compute); // whole layers are computed again otherwise
  }

  /**
   * A result of the forward pass as a gradient reads it: computed again where that costs little, so that its memory is free in between.
   * What it is computed from is kept anyway, for that step's own gradient.
   */
  again(tensor: Tensor): Tensor {
    const compute = this.cheap.get(tensor.handle);
    return compute === undefined ? tensor : this.memo(tensor, "again", () => this.withoutGradient(compute));
  }

  /** Keeps an intermediate result for a gradient that reads it: no step may reuse its memory. */
  keep(tensor: Tensor): void {
    this.kept.add(tensor.handle);
  }

  /** The constant 1, from which gradients start. */
  get one(): Tensor {
    return this.constant("one", "f32", [1], Float32Array.of(1));
  }

  /** Runs `build` without recording, for computations without a gradient. */
  withoutGradient<T>(build: () => T): T {
    const before = this.recording;
    this.recording = false;
    try {
      return build();
    } finally {
      this.recording = before;
    }
  }

  /** Has what `build` adds computed on one of several devices: by default it is where its weights are, or those of steps near it. */
  at<T>(place: number | undefined, build: () => T): T {
    const before = this.place;
    this.place = place;
    try {
      return build();
    } finally {
      this.place = before;
    }
  }

  /** Whether steps are being recorded for differentiation. */
  get isRecording(): boolean {
    return this.recording;
  }

  /**
   * Makes a tensor an output, whose value can be read after a run.
   * @throws ShapeError after compilation, and where a step has written over it
   */
  output<T extends Tensor>(tensor: T): T {
    if (this.compiled !== undefined)
      throw new ShapeError(`${describe(tensor)} must become an output before the graph is compiled`);
    if (this.overwritten.has(tensor.handle))
      throw new ShapeError(`${describe(tensor)} must become an output before a gradient takes its memory`);
    // of a view, the memory's owner is kept
    for (let handle: Pointer | undefined = tensor.handle; handle !== undefined; handle = this.bases.get(handle))
      if (this.results.has(handle)) {
        this.functions.ggml_set_output(handle);
        this.kept.add(handle);
      }
    this.functions.ggml_set_output(tensor.handle);
    this.roots.push(tensor.handle);
    return tensor;
  }

  /** Adds a step that runs for its effect (an assignment, an optimizer step), after all outputs declared before it. */
  effect(tensor: Tensor): void {
    this.roots.push(tensor.handle);
  }

  /** Plans memory and writes constants. @throws CoppiceError when the device has too little memory */
  compile(): this {
    if (this.compiled !== undefined) return this;
    const f = this.functions;
    this.inputs.allocate();
    for (const [tensor, data] of this.constants) writeTensor(f, tensor, data);
    const { handle, context } = this.nativeGraph();
    const plan = this.backend.plan(handle, this.placed);
    if (plan === undefined) {
      f.ggml_free(context);
      throw new CoppiceError(
        `${this.backend.device.name} has too little memory for the activations: use a smaller batch or sequence length`,
      );
    }
    this.compiled = { handle, context, plan };
    return this;
  }

  private nativeGraph() {
    const f = this.functions;
    const size = this.contexts.length * TENSORS_PER_CONTEXT + MAX_INPUTS + 4096;
    const context = f.ggml_init(f.ggml_graph_overhead_custom(size, false) + 1024);
    const handle = f.ggml_new_graph_custom(context, size, false);
    for (const step of this.neededSteps()) f.ggml_build_forward_expand(handle, step);
    for (const root of this.roots) f.ggml_build_forward_expand(handle, root);
    return { handle, context };
  }

  /** Bytes that {@link compile} would take for inputs and intermediate results, if one device held them all. */
  planBytes(): number {
    const f = this.functions;
    const { handle, context } = this.nativeGraph();
    const allocator = f.ggml_gallocr_new(f.ggml_backend_get_default_buffer_type(this.backend.handle));
    const bytes = new BigUint64Array(1);
    f.ggml_gallocr_reserve_n_size(allocator, handle, null, null, bytes);
    f.ggml_gallocr_free(allocator);
    f.ggml_free(context);
    return Number(bytes[0]);
  }

  /** The outputs of steps that outputs and effects depend on, in the order of recording. */
  private neededSteps(): Pointer[] {
    const needed = new Set(this.roots);
    const result: Pointer[] = [];
    for (const { output, inputs } of this.steps.toReversed()) {
      if (!needed.has(output)) continue;
      for (const input of inputs) needed.add(input);
      result.push(output);
    }
    return result.reverse();
  }

  /** Runs the computation, off the event loop. */
  async run(): Promise<void> {
    this.compile();
    await this.compiled?.plan.compute();
  }

  /**
   * Divides the computation into about `count` parts of as many steps, to do something else as soon as some results are there. Each
   * part but the last ends with one of `results`. On several devices there is one part.
   * @param results in the order in which they are computed
   * @returns for each part, how to run it, off the event loop, and which of the results are known after it
   */
  parts(results: readonly Tensor[], count: number): GraphPart[] {
    this.compile();
    const { compiled, functions: f } = this;
    if (compiled === undefined) return [];
    if (this.backend.places > 1) return [{ run: compiled.plan.compute, known: results }];
    const nodes = Array.from({ length: this.nodeCount }, (_, i) => f.ggml_graph_node(compiled.handle, i));
    const places = new Map(nodes.map((node, i) => [node, i + 1]));
    const ends = results.map((tensor) => places.get(tensor.handle) ?? nodes.length);
    const parts: GraphPart[] = [];
    let [from, known] = [0, 0];
    for (let i = 0; i <= results.length; i++) {
      const to = ends[i] ?? nodes.length;
      const isLast = i === results.length;
      if (!isLast && (to - from < nodes.length / count || to === nodes.length)) continue;
      const handle = this.subgraph(nodes.slice(from, to));
      const until = isLast ? results.length : i + 1;
      parts.push({ run: () => this.backend.compute(handle), known: results.slice(known, until) });
      [from, known] = [to, until];
    }
    return parts;
  }

  /** A native graph of some of the nodes. */
  private subgraph(nodes: readonly Pointer[]): Pointer {
    const f = this.functions;
    const context = f.ggml_init(f.ggml_graph_overhead_custom(nodes.length, false) + 1024);
    this.contexts.push(context);
    const handle = f.ggml_new_graph_custom(context, nodes.length, false);
    for (const node of nodes) f.ggml_graph_add_node(handle, node);
    return handle;
  }

  /** Writes an input's data. @throws ShapeError when its byte count is not the tensor's */
  write(tensor: Tensor, data: TensorData): void {
    this.compile();
    writeTensor(this.functions, tensor, data);
  }

  /** Reads an f32 output. */
  read(tensor: Tensor): Float32Array {
    return readFloat32(this.functions, tensor);
  }

  /** Reads an i32 output. */
  readInt32(tensor: Tensor): Int32Array {
    return new Int32Array(readTensorBytes(this.functions, tensor).buffer);
  }

  /**
   * Runs the computation once, node by node, and sums the time of each kind of step. Nodes that are part of a step but not its
   * output (copies, conversions) go by ggml's names.
   * @throws UsageError on several devices
   */
  profile(): ProfileEntry[] {
    if (this.backend.places > 1) throw new UsageError("a profile is of one device: leave out --devices");
    this.compile();
    if (this.compiled === undefined) return [];
    const f = this.functions;
    const names = new Map(this.steps.map(({ name, output }) => [output, name]));
    const context = f.ggml_init(f.ggml_graph_overhead_custom(16, false) + 1024);
    const single = f.ggml_new_graph_custom(context, 16, false);
    const times = new Map<string, { seconds: number; count: number }>();
    for (let i = 0; i < this.nodeCount; i++) {
      const node = f.ggml_graph_node(this.compiled.handle, i);
      f.ggml_graph_clear(single);
      f.ggml_graph_add_node(single, node);
      const startedAt = performance.now();
      f.ggml_backend_graph_compute(this.backend.handle, single);
      const seconds = (performance.now() - startedAt) / 1000;
      const name = names.get(node) ?? f.ggml_op_desc(node).toLowerCase();
      const before = times.get(name) ?? { seconds: 0, count: 0 };
      times.set(name, { seconds: before.seconds + seconds, count: before.count + 1 });
    }
    f.ggml_free(context);
    return [...times].map(([op, time]) => ({ op, ...time })).sort((a, b) => b.seconds - a.seconds);
  }

  /** Bytes of memory planned for intermediate results. */
  get scratchBytes(): number {
    return this.compiled?.plan.scratchBytes ?? 0;
  }

  /** The number of native operations. */
  get nodeCount(): number {
    return this.compiled === undefined ? 0 : this.functions.ggml_graph_n_nodes(this.compiled.handle);
  }

  free(): void {
    const f = this.functions;
    if (this.compiled !== undefined) {
      this.compiled.plan.free();
      f.ggml_free(this.compiled.context);
      this.compiled = undefined;
    }
    for (const context of this.contexts.splice(0)) f.ggml_free(context);
    this.inputs.free();
    this.memos.clear();
    this.entries = [];
    this.steps.length = 0;
  }
}
