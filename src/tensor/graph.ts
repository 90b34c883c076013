import type { Backend } from "../ggml/device.js";
import type { DType } from "../ggml/dtype.js";
import type { Functions, Pointer } from "../ggml/functions.js";
import { CoppiceError, ShapeError } from "../system/errors.js";
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

/** A forward step with one result, with how to go back through it. */
export interface RecordedStep {
  readonly output: Tensor;
  readonly inputs: readonly Tensor[];
  readonly vjp: (dy: Tensor) => readonly Gradient[];
}

/** One recorded forward step. Its `vjp` is given a gradient for each output that something depends on. */
export interface TapeEntry {
  readonly outputs: readonly Tensor[];
  readonly inputs: readonly Tensor[];
  readonly vjp: (dys: readonly (Tensor | undefined)[]) => readonly Gradient[];
}

/** Number type that matrix products read their right operand in. Accumulation and everything else is f32. */
export type ComputeType = "f32" | "bf16";

export interface GraphOptions {
  readonly computeType?: ComputeType | undefined;
  /** Compute the activations of a layer again for its gradient, instead of keeping them: less memory, more time. */
  readonly recompute?: boolean | undefined;
}

/** How long a kind of step took. */
export interface ProfileEntry {
  readonly op: string;
  readonly seconds: number;
  readonly count: number;
}

/** A computation in the order of construction, for planning what is computed when. */
interface ScheduledStep {
  readonly name: string;
  readonly output: Pointer;
  readonly inputs: readonly Pointer[];
}

const TENSORS_PER_CONTEXT = 2048;
/** No op creates more native tensors than this at once. */
const TENSORS_PER_OP = 16;
const MAX_INPUTS = 512;

/**
 * A computation: recorded once, compiled once (memory planned), run many times. It is computed in the order in which it was
 * written down, leaving out what nothing needs. Inputs and constants keep their contents between runs; everything else is
 * scratch unless it is an output.
 */
export class Graph {
  readonly computeType: ComputeType;
  readonly recompute: boolean;
  private entries: TapeEntry[] = [];
  private readonly steps: ScheduledStep[] = [];
  private readonly kept = new Set<Pointer>();
  private readonly results = new Set<Pointer>();
  private readonly readers = new Map<Pointer, number>();
  private readonly inputs: TensorStore;
  private readonly constants: [Tensor, TensorData][] = [];
  private readonly memos = new Map<string, Tensor>();
  private readonly contexts: Pointer[] = [];
  private readonly roots: Pointer[] = [];
  private tensorsInContext = TENSORS_PER_CONTEXT;
  private recording = true;
  private compiled: { readonly handle: Pointer; readonly context: Pointer; readonly allocator: Pointer } | undefined;

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

  /** Where ops put their native tensor records. */
  nativeContext(): Pointer {
    if (this.tensorsInContext + TENSORS_PER_OP > TENSORS_PER_CONTEXT) {
      const f = this.functions;
      this.contexts.push(f.ggml_init(f.ggml_tensor_overhead() * TENSORS_PER_CONTEXT));
      this.tensorsInContext = 0;
    }
    this.tensorsInContext += TENSORS_PER_OP;
    return this.contexts[this.contexts.length - 1] as Pointer;
  }

  /** Declares an input; fill it with {@link write} after {@link compile}. */
  input(name: string, dtype: DType, shape: Shape): Tensor {
    return this.inputs.add(name, shape, dtype);
  }

  /** Declares an input whose content never changes. */
  constant(name: string, dtype: DType, shape: Shape, data: TensorData): Tensor {
    const key = `constant ${name}`;
    const known = this.memos.get(key);
    if (known !== undefined) return known;
    const tensor = this.inputs.add(name, shape, dtype);
    this.constants.push([tensor, data]);
    this.memos.set(key, tensor);
    return tensor;
  }

  /** Derives something from a tensor once per graph, for example its transpose. */
  memo(tensor: Tensor, kind: string, make: () => Tensor): Tensor {
    const key = `${kind} ${tensor.handle}`;
    const known = this.memos.get(key);
    if (known !== undefined) return known;
    const made = make();
    this.memos.set(key, made);
    return made;
  }

  /** Records a step for reverse-mode differentiation. */
  record({ output, inputs, vjp }: RecordedStep): void {
    this.recordAll({ outputs: [output], inputs, vjp: ([dy]) => (dy === undefined ? [] : vjp(dy)) });
  }

  /** Records a step that has several results. */
  recordAll(entry: TapeEntry): void {
    if (this.recording && entry.outputs.some(({ requiresGrad }) => requiresGrad)) this.entries.push(entry);
  }

  /** What was recorded so far. */
  get tape(): readonly TapeEntry[] {
    return this.entries;
  }

  /** Records `build` on a tape of its own, to be differentiated apart from the rest. */
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

  /** Notes a step of the computation. */
  scheduled(name: string, output: Tensor, inputs: readonly Tensor[]): void {
    if (inputs.some(({ handle }) => handle === output.handle)) return; // hands its input on
    this.results.add(output.handle);
    this.steps.push({ name, output: output.handle, inputs: inputs.map(({ handle }) => handle) });
    for (const { handle } of inputs) this.readers.set(handle, (this.readers.get(handle) ?? 0) + 1);
  }

  /** Whether a tensor is an intermediate result that no more than `readers` steps read so far, so that its memory may be reused. */
  isSpent(tensor: Tensor, readers: number): boolean {
    const { handle } = tensor;
    return this.results.has(handle) && !this.kept.has(handle) && (this.readers.get(handle) ?? 0) <= readers;
  }

  /** Keeps an intermediate result for a gradient that reads it: no step may take its memory. */
  keep(tensor: Tensor): void {
    this.kept.add(tensor.handle);
  }

  /** The constant 1, from which gradients start. */
  get one(): Tensor {
    return this.constant("one", "f32", [1], Float32Array.of(1));
  }

  /** Runs `build` without recording, for what no gradient flows through. */
  withoutGradient<T>(build: () => T): T {
    const before = this.recording;
    this.recording = false;
    try {
      return build();
    } finally {
      this.recording = before;
    }
  }

  get isRecording(): boolean {
    return this.recording;
  }

  /** Keeps a tensor's value to be read after a run. */
  output<T extends Tensor>(tensor: T): T {
    if (this.compiled !== undefined) throw new ShapeError(`${describe(tensor)} was made an output after compilation`);
    this.functions.ggml_set_output(tensor.handle);
    this.roots.push(tensor.handle);
    return tensor;
  }

  /** Adds a step that is run for its effect (an assignment, an optimizer step), after all outputs named before it. */
  effect(tensor: Tensor): void {
    this.roots.push(tensor.handle);
  }

  /** Plans memory and fills constants. @throws CoppiceError when the device has too little memory */
  compile(): this {
    if (this.compiled !== undefined) return this;
    const f = this.functions;
    this.inputs.allocate();
    for (const [tensor, data] of this.constants) writeTensor(f, tensor, data);
    const size = this.contexts.length * TENSORS_PER_CONTEXT + MAX_INPUTS + 4096;
    const context = f.ggml_init(f.ggml_graph_overhead_custom(size, false) + 1024);
    const handle = f.ggml_new_graph_custom(context, size, false);
    for (const step of this.neededSteps()) f.ggml_build_forward_expand(handle, step);
    for (const root of this.roots) f.ggml_build_forward_expand(handle, root);
    const allocator = f.ggml_gallocr_new(f.ggml_backend_get_default_buffer_type(this.backend.handle));
    this.compiled = { handle, context, allocator };
    if (!f.ggml_gallocr_alloc_graph(allocator, handle))
      throw new CoppiceError(
        `${this.backend.device.name} has too little memory for the activations: use a smaller batch or sequence length`,
      );
    return this;
  }

  /** Outputs of the steps that the roots depend on, in the order of construction. */
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

  /** Computes everything, off the event loop. */
  async run(): Promise<void> {
    this.compile();
    if (this.compiled !== undefined) await this.backend.compute(this.compiled.handle);
  }

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
   * Runs everything once, node by node, and adds up the time of each kind of step. Nodes that are part of a step but not its
   * result (copies, conversions) go by ggml's own name for them.
   */
  profile(): ProfileEntry[] {
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
      const started = performance.now();
      f.ggml_backend_graph_compute(this.backend.handle, single);
      const seconds = (performance.now() - started) / 1000;
      const name = names.get(node) ?? f.ggml_op_desc(node).toLowerCase();
      const before = times.get(name) ?? { seconds: 0, count: 0 };
      times.set(name, { seconds: before.seconds + seconds, count: before.count + 1 });
    }
    f.ggml_free(context);
    return [...times].map(([op, time]) => ({ op, ...time })).sort((a, b) => b.seconds - a.seconds);
  }

  /** Bytes of scratch memory planned for intermediate results. */
  get scratchBytes(): number {
    return this.compiled === undefined ? 0 : this.functions.ggml_gallocr_get_buffer_size(this.compiled.allocator, 0);
  }

  /** Number of native operations. */
  get nodeCount(): number {
    return this.compiled === undefined ? 0 : this.functions.ggml_graph_n_nodes(this.compiled.handle);
  }

  free(): void {
    const f = this.functions;
    if (this.compiled !== undefined) {
      f.ggml_gallocr_free(this.compiled.allocator);
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
