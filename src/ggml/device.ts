import { elementAt } from "../system/arrays.js";
import { CoppiceError, UsageError } from "../system/errors.js";
import { logOf } from "../system/log.js";
import { freeMemory } from "../system/memory.js";
import { DEVICE_KINDS, type DeviceKind } from "./device-kinds.js";
import type { Functions, Pointer } from "./functions.js";
import type { Variant } from "./kernel-choice.js";
import { type Kernels, loadKernels } from "./kernels.js";
import { type Library, loadLibrary } from "./library.js";
import { ProcessorThreads, type ThreadOptions } from "./processor-threads.js";
import type { ThreadTimes } from "./thread-count.js";

const log = logOf("engine");

/** A compute device found by ggml. */
export interface Device {
  readonly kind: DeviceKind;
  /** ggml's name, for example `CPU` or `Vulkan0`. */
  readonly name: string;
  readonly description: string;
  readonly memoryTotalBytes: number;
  readonly memoryFreeBytes: number;
  readonly handle: Pointer;
}

const PREFIXES: readonly [RegExp, DeviceKind][] = [
  [/^cuda|^rocm|^musa/i, "cuda"],
  [/^metal|^mtl/i, "metal"],
  [/^vulkan/i, "vulkan"],
  [/^cpu/i, "cpu"],
];

/** Lists the devices, fastest kind first. */
export function listDevices(library: Library = loadLibrary()): Device[] {
  const f = library.functions;
  const devices: Device[] = [];
  for (let i = 0; i < f.ggml_backend_dev_count(); i++) {
    const handle = f.ggml_backend_dev_get(i);
    const name = f.ggml_backend_dev_name(handle);
    const kind = PREFIXES.find(([pattern]) => pattern.test(name))?.[1];
    if (kind === undefined) continue; // an accelerator such as BLAS, which only assists another device
    const free = new BigUint64Array(1);
    const total = new BigUint64Array(1);
    f.ggml_backend_dev_memory(handle, free, total);
    devices.push({
      kind,
      name,
      description: f.ggml_backend_dev_description(handle).trim(),
      memoryFreeBytes: Number(free[0]),
      memoryTotalBytes: Number(total[0]),
      handle,
    });
  }
  return devices.sort((a, b) => DEVICE_KINDS.indexOf(a.kind) - DEVICE_KINDS.indexOf(b.kind));
}

export interface BackendOptions {
  /** The kind of device; `auto`, the default, takes the fastest one. */
  readonly device?: DeviceKind | "auto" | undefined;
  /** GPUs of the kind to divide a model's layers over; 1 by default. */
  readonly devices?: number | "all" | undefined;
  /** Which of several devices of the kind, or groups of them, counted from 0 and round: processes on a machine take one each. */
  readonly instance?: number | undefined;
  /** Number of CPU threads; COPPICE_THREADS, or as many as were measured to be fastest, by default. */
  readonly threads?: number | undefined;
  /** Our own kernels on a CPU: the best it can run, none, or a named variant. COPPICE_KERNELS decides for `auto`, the default. */
  readonly kernels?: "auto" | "none" | Variant | undefined;
  /** Whether threads live as long as the backend, as by default; ggml otherwise starts them for each computation. */
  readonly keepThreads?: boolean | undefined;
}

/** What a job computes on, as processes tell each other. */
export type DeviceChoice = Pick<BackendOptions, "device" | "devices" | "threads" | "kernels">;

export const deviceChoice = ({ device, devices, threads, kernels }: DeviceChoice): DeviceChoice => ({
  device,
  devices,
  threads,
  kernels,
});

/** Drivers that emulate a GPU on the CPU: slower than the CPU itself, so only used on request. */
const SOFTWARE_DRIVER = /llvmpipe|lavapipe|swiftshader/i;

/** All devices of the requested kind, or of the fastest. */
function alike(devices: readonly Device[], kind: DeviceKind | "auto"): Device[] {
  const fastest = devices.find(({ description }) => !SOFTWARE_DRIVER.test(description))?.kind;
  return devices.filter((device) => device.kind === (kind === "auto" ? fastest : kind));
}

/** As many of the devices as are asked for; of several such groups, the one with that number. @throws UsageError */
function choose(devices: readonly Device[], count: number | "all", instance: number): Device[] {
  const wanted = count === "all" ? devices.length : count;
  const kind = devices[0]?.kind;
  if (wanted > 1 && kind === "cpu")
    throw new UsageError(`a processor is one device, not ${wanted}: --threads says how much of it to use`);
  if (wanted > devices.length)
    throw new UsageError(`there are ${devices.length} ${kind} devices, not ${wanted} (see \`coppice doctor\`)`);
  if (wanted > MOST_DEVICES)
    throw new UsageError(`layers are divided over ${MOST_DEVICES} devices at most, not ${wanted}`);
  const first = (instance % Math.floor(devices.length / wanted)) * wanted;
  return devices.slice(first, first + wanted);
}

/** A device that computes. */
interface OpenDevice {
  readonly device: Device;
  readonly handle: Pointer;
}

function openDevice({ functions: f }: Library, device: Device): OpenDevice {
  const handle = f.ggml_backend_dev_init(device.handle, null);
  if (handle === null) throw new CoppiceError(`the device ${device.name} could not be initialized`);
  return { device, handle };
}

/** A graph whose memory is planned: to be computed any number of times. */
export interface PlannedGraph {
  /** Memory for intermediate results. */
  readonly scratchBytes: number;
  /** Computes it on a native thread; the event loop stays free. */
  readonly compute: () => Promise<void>;
  readonly free: () => void;
}

/** ggml's names of nodes that compute nothing: they show others' memory. */
export const VIEW = /^(none|view|reshape|permute|transpose)$/i;
/** ggml's scheduler takes 16 devices, of which the processor is one. */
const MOST_DEVICES = 15;
/** A scheduler's records take this many nodes and leaves for each node: no op reads more leaves. */
const RECORDS_PER_NODE = 4;
/** ggml's mark of a buffer whose contents are read in place: what reads them is computed there. */
const USAGE_WEIGHTS = 1;

/** An open device, or several that divide a model's layers: it allocates buffers and computes graphs, one at a time. */
export class Backend {
  private released = false;
  private buffersBytes = 0;
  private readonly processorThreads: ProcessorThreads;
  /** What ggml's scheduler of several devices computes on where none of them can. */
  private readonly processor: OpenDevice | undefined;

  private constructor(
    readonly library: Library,
    private readonly opened: readonly OpenDevice[],
    /** How many devices of this kind the machine has. */
    readonly alike: number,
    /** Our own kernels, when they are built and the device is a CPU that can run them. */
    readonly kernels: Kernels | undefined,
    threads: ThreadOptions,
  ) {
    const { device, handle } = elementAt(opened, 0);
    const on = { functions: library.functions, device: device.handle, backend: handle };
    this.processorThreads = new ProcessorThreads(on, kernels, threads);
    const processor = opened.length > 1 && listDevices(library).find(({ kind }) => kind === "cpu");
    if (processor) this.processor = openDevice(library, processor);
  }

  /**
   * Opens a device, or several.
   * @throws UsageError when there is no device of the requested kind, listing those there are, or too few, CoppiceError when one cannot be
   * initialized
   */
  static open(options: BackendOptions = {}): Backend {
    const kind = options.device ?? "auto";
    const { COPPICE_THREADS: variable } = process.env;
    const wanted = options.threads ?? (variable ? Number(variable) : undefined);
    if (wanted !== undefined && !(Number.isInteger(wanted) && wanted >= 1)) {
      const named =
        options.threads === undefined ? `COPPICE_THREADS must be a positive integer, not "${variable}"` : "";
      throw new UsageError(named || `threads must be a positive integer, not ${wanted}`);
    }
    const library = loadLibrary(kind);
    const devices = listDevices(library);
    const candidates = alike(devices, kind);
    if (candidates.length === 0) {
      const found = devices.map(({ name }) => name).join(", ") || "none";
      throw new UsageError(
        `no ${kind === "auto" ? "compute" : kind} device was found; devices: ${found} (see \`coppice doctor\`)`,
      );
    }
    const chosen = choose(candidates, options.devices ?? 1, options.instance ?? 0);
    const opened = chosen.map((device) => openDevice(library, device));
    const { kernels } = chosen.every((device) => device.kind === "cpu")
      ? loadKernels(library.functions, options.kernels)
      : { kernels: undefined };
    const threads = { count: wanted, keep: options.keepThreads ?? true };
    const backend = new Backend(library, opened, candidates.length, kernels, threads);
    for (const { name, description, kind } of chosen)
      log.debug("device opened", {
        device: name,
        kind,
        description,
        threads: backend.threads,
        kernels: kernels?.variant ?? "ggml",
      });
    return backend;
  }

  /** The device, or the first of several. */
  get device(): Device {
    return elementAt(this.opened, 0).device;
  }

  get handle(): Pointer {
    return elementAt(this.opened, 0).handle;
  }

  /** How many devices divide a model's layers. */
  get places(): number {
    return this.opened.length;
  }

  /** What each device has of the memory that all had free when they were opened. */
  get shares(): number[] {
    const free = this.opened.map(({ device }) => device.memoryFreeBytes);
    const total = free.reduce((sum, bytes) => sum + bytes, 0);
    return free.map((bytes) => bytes / total);
  }

  get functions(): Functions {
    return this.library.functions;
  }

  /** Threads on the processor. */
  get threads(): number {
    return this.processorThreads.count;
  }

  /**
   * Measures which number of threads is fastest, and takes it. Nothing may be computing.
   * @returns undefined where the number is given, or there is nothing to choose
   */
  async measureThreads(): Promise<ThreadTimes | undefined> {
    return await this.processorThreads.measure();
  }

  /** Whether the device has a kernel for this node (its operation, types and shapes). */
  supports(node: Pointer): boolean {
    return this.functions.ggml_backend_dev_supports_op(this.device.handle, node);
  }

  /**
   * Allocates all tensors of a context.
   * @param place the number of the device that holds them and computes with them; by default the first holds them
   * @returns null where it has too little memory
   */
  allocate(context: Pointer, place: number | undefined): Pointer | null {
    const f = this.functions;
    const buffer = f.ggml_backend_alloc_ctx_tensors(context, elementAt(this.opened, place ?? 0).handle);
    if (buffer === null) return null;
    if (place !== undefined && this.places > 1) f.ggml_backend_buffer_set_usage(buffer, USAGE_WEIGHTS);
    this.buffersBytes += f.ggml_backend_buffer_get_size(buffer);
    return buffer;
  }

  /** Frees what {@link allocate} gave. */
  release(buffer: Pointer): void {
    this.buffersBytes -= this.functions.ggml_backend_buffer_get_size(buffer);
    this.functions.ggml_backend_buffer_free(buffer);
  }

  /** Memory that tensors take that outlive a computation: weights, states of optimizers, inputs. */
  get takenBytes(): number {
    return this.buffersBytes;
  }

  /**
   * Plans a graph's memory.
   * @param placed nodes that are computed on a certain one of several devices, by its number
   * @returns undefined where there is too little
   */
  plan(graph: Pointer, placed: ReadonlyMap<Pointer, number>): PlannedGraph | undefined {
    return this.places > 1 ? this.planOnSeveral(graph, placed) : this.planOnOne(graph);
  }

  private planOnOne(graph: Pointer): PlannedGraph | undefined {
    const f = this.functions;
    const allocator = f.ggml_gallocr_new(f.ggml_backend_get_default_buffer_type(this.handle));
    const free = () => f.ggml_gallocr_free(allocator);
    if (!f.ggml_gallocr_alloc_graph(allocator, graph)) {
      free();
      return undefined;
    }
    const scratchBytes = f.ggml_gallocr_get_buffer_size(allocator, 0);
    return { scratchBytes, compute: () => this.compute(graph), free };
  }

  /** ggml's scheduler computes each node where its weights are, or those of its neighbors, and copies what another device needs. */
  private planOnSeveral(graph: Pointer, placed: ReadonlyMap<Pointer, number>): PlannedGraph | undefined {
    const f = this.functions;
    const all = [...this.opened, ...(this.processor === undefined ? [] : [this.processor])];
    const handles = BigUint64Array.from(all, ({ handle }) => handle);
    const records = RECORDS_PER_NODE * (f.ggml_graph_n_nodes(graph) + 1);
    const scheduler = f.ggml_backend_sched_new(handles, null, all.length, records, false, false);
    if (scheduler === null) return undefined;
    const free = () => f.ggml_backend_sched_free(scheduler);
    // views are where the memory is that they show
    for (const [node, place] of placed)
      if (!VIEW.test(f.ggml_op_desc(node)))
        f.ggml_backend_sched_set_tensor_backend(scheduler, node, elementAt(all, place).handle);
    if (!f.ggml_backend_sched_alloc_graph(scheduler, graph)) {
      free();
      return undefined;
    }
    const scratchBytes = all
      .map(({ handle }) => f.ggml_backend_sched_get_buffer_size(scheduler, handle))
      .reduce((sum, bytes) => sum + bytes);
    return { scratchBytes, compute: () => this.run(f.ggml_backend_sched_graph_compute, scheduler, graph), free };
  }

  /** Computes a graph of one device on a native thread; the event loop stays free. */
  compute(graph: Pointer): Promise<void> {
    return this.run(this.functions.ggml_backend_graph_compute, this.handle, graph);
  }

  private run(compute: Functions["ggml_backend_graph_compute"], on: Pointer, graph: Pointer): Promise<void> {
    const computed = () =>
      new Promise<void>((resolve, reject) => {
        compute.async(on, graph, (error: Error | null, status: number) => {
          if (error !== null) reject(error);
          else if (status !== 0)
            reject(new CoppiceError(`computing on ${this.device.name} failed with status ${status} (out of memory?)`));
          else resolve();
        });
      });
    return this.processorThreads.use(computed);
  }

  /** Memory that is free now: the devices' own, or what the system leaves to this process. */
  freeBytes(): number {
    if (this.device.kind === "cpu") return freeMemory();
    const [free, total] = [new BigUint64Array(1), new BigUint64Array(1)];
    let bytes = 0;
    for (const { device } of this.opened) {
      this.functions.ggml_backend_dev_memory(device.handle, free, total);
      bytes += Number(free[0]);
    }
    return bytes;
  }

  /** Releases the device. Its buffers must have been freed. */
  free(): void {
    if (this.released) return;
    this.released = true;
    for (const { handle } of this.opened) this.functions.ggml_backend_free(handle);
    if (this.processor !== undefined) this.functions.ggml_backend_free(this.processor.handle);
    this.processorThreads.free();
  }
}
