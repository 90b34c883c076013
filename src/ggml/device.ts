import { availableParallelism } from "node:os";
import { CoppiceError, UsageError } from "../system/errors.js";
import koffi from "../system/ffi.js";
import { logOf } from "../system/log.js";
import { DEVICE_KINDS, type DeviceKind } from "./device-kinds.js";
import type { Functions, Pointer } from "./functions.js";
import type { Variant } from "./kernel-choice.js";
import { type Kernels, loadKernels } from "./kernels.js";
import { type Library, loadLibrary } from "./library.js";

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
  /** Which of several devices of the kind, counted from 0 and round: processes on a machine take one each. */
  readonly instance?: number | undefined;
  /** Number of CPU threads; COPPICE_THREADS, or the number of cores, by default. */
  readonly threads?: number | undefined;
  /** Our own kernels on a CPU: the best it can run, none, or a named variant. COPPICE_KERNELS decides for `auto`, the default. */
  readonly kernels?: "auto" | "none" | Variant | undefined;
  /** Whether threads live as long as the backend, as by default; ggml otherwise starts them for each computation. */
  readonly keepThreads?: boolean | undefined;
}

/** Drivers that emulate a GPU on the CPU: slower than the CPU itself, so only used on request. */
const SOFTWARE_DRIVER = /llvmpipe|lavapipe|swiftshader/i;

/** The fastest device, or one of the requested kind; of several alike, the one with that number. */
function choose(devices: readonly Device[], kind: DeviceKind | "auto", instance: number): Device | undefined {
  const fastest = devices.find(({ description }) => !SOFTWARE_DRIVER.test(description))?.kind;
  const alike = devices.filter((device) => device.kind === (kind === "auto" ? fastest : kind));
  return alike[instance % alike.length];
}

/** More than ggml's record of a thread pool's settings takes (528 bytes in 0.25: a mask of 512 CPUs and five fields). */
const THREADPOOL_PARAMETER_BYTES = 1024;

/** An open device: it allocates buffers and computes graphs, one at a time. */
export class Backend {
  private released = false;
  private threadpool: unknown;

  private constructor(
    readonly library: Library,
    readonly device: Device,
    readonly handle: Pointer,
    readonly threads: number,
    /** Our own kernels, when they are built and the device is a CPU that can run them. */
    readonly kernels: Kernels | undefined,
  ) {}

  /**
   * Opens a device.
   * @throws UsageError when there is no device of the requested kind, listing those there are, CoppiceError when it cannot be
   * initialized
   */
  static open(options: BackendOptions = {}): Backend {
    const kind = options.device ?? "auto";
    const threads = options.threads ?? Number(process.env.COPPICE_THREADS || availableParallelism());
    if (!Number.isInteger(threads) || threads < 1)
      throw new UsageError(`threads must be a positive integer, not ${threads}`);
    const library = loadLibrary(kind);
    const devices = listDevices(library);
    const device = choose(devices, kind, options.instance ?? 0);
    if (device === undefined) {
      const found = devices.map(({ name }) => name).join(", ") || "none";
      throw new UsageError(
        `no ${kind === "auto" ? "compute" : kind} device was found; devices: ${found} (see \`coppice doctor\`)`,
      );
    }
    const handle = library.functions.ggml_backend_dev_init(device.handle, null);
    if (handle === null) throw new CoppiceError(`the device ${device.name} could not be initialized`);
    const { kernels } =
      device.kind === "cpu" ? loadKernels(library.functions, options.kernels) : { kernels: undefined };
    const backend = new Backend(library, device, handle, threads, kernels);
    backend.startThreads(options.keepThreads ?? true);
    const { name, description } = device;
    log.debug("device opened", {
      device: name,
      kind: device.kind,
      description,
      threads,
      kernels: kernels?.variant ?? "ggml",
    });
    return backend;
  }

  get functions(): Functions {
    return this.library.functions;
  }

  /** A function that only some kinds of device have; undefined where this one lacks it. */
  private deviceFunction(
    name: string,
    result: string,
    args: string[],
  ): ((...values: unknown[]) => unknown) | undefined {
    const f = this.functions;
    const registry = f.ggml_backend_dev_backend_reg(this.device.handle);
    const address = f.ggml_backend_reg_get_proc_address(registry, name);
    if (address === null) return undefined;
    const prototype = koffi.proto(result, args);
    return (...values) => koffi.call(address, prototype, ...values);
  }

  /**
   * Gives a CPU a pool of threads that lives as long as the backend. Without one ggml starts threads for every computation, and
   * a new thread can wait for a scheduler tick (10 ms were seen) next to an idle core.
   */
  private startThreads(keep: boolean): void {
    const create = this.deviceFunction("ggml_threadpool_new", "intptr_t", ["void *"]);
    const attach = this.deviceFunction("ggml_backend_cpu_set_threadpool", "void", ["intptr_t", "intptr_t"]);
    const limit = this.deviceFunction("ggml_backend_set_n_threads", "void", ["intptr_t", "int"]);
    limit?.(this.handle, this.threads);
    if (create === undefined || attach === undefined || this.threads === 1 || !keep) return;
    const parameters = new Uint8Array(THREADPOOL_PARAMETER_BYTES);
    this.functions.ggml_threadpool_params_init(parameters, this.threads);
    this.threadpool = create(parameters);
    attach(this.handle, this.threadpool);
  }

  /** Whether the device has a kernel for this node (its operation, types and shapes). */
  supports(node: Pointer): boolean {
    return this.functions.ggml_backend_dev_supports_op(this.device.handle, node);
  }

  /** Computes a graph on a native thread; the event loop stays free. */
  compute(graph: Pointer): Promise<void> {
    return new Promise((resolve, reject) => {
      this.functions.ggml_backend_graph_compute.async(this.handle, graph, (error: Error | null, status: number) => {
        if (error !== null) reject(error);
        else if (status !== 0)
          reject(new CoppiceError(`computing on ${this.device.name} failed with status ${status} (out of memory?)`));
        else resolve();
      });
    });
  }

  /** Memory that is free now: the device's own, or what the system leaves to this process. */
  freeBytes(): number {
    if (this.device.kind === "cpu") return process.availableMemory();
    const [free, total] = [new BigUint64Array(1), new BigUint64Array(1)];
    this.functions.ggml_backend_dev_memory(this.device.handle, free, total);
    return Number(free[0]);
  }

  /** Releases the device. Its buffers must have been freed. */
  free(): void {
    if (this.released) return;
    this.released = true;
    this.functions.ggml_backend_free(this.handle);
    if (this.threadpool !== undefined)
      this.deviceFunction("ggml_threadpool_free", "void", ["intptr_t"])?.(this.threadpool);
  }
}
