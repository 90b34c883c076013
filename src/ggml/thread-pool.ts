import koffi from "../system/ffi.js";
import type { Functions, Pointer } from "./functions.js";

/** More than ggml's record of a thread pool's settings takes (528 bytes in 0.25: a mask of 512 CPUs and five fields). */
const SETTINGS_BYTES = 1024;

/** A device of ggml's, and what computes on it. */
export interface PooledDevice {
  readonly functions: Functions;
  /** The device. */
  readonly device: Pointer;
  /** The backend that was opened on it. */
  readonly backend: Pointer;
}

/**
 * Threads of a processor that live as long as its backend. Without them ggml starts threads for every computation, and a new thread
 * can wait for a scheduler tick (10 ms were seen) next to an idle core.
 */
export class ThreadPool {
  private constructor(
    private readonly on: PooledDevice,
    private readonly pool: unknown,
  ) {}

  /**
   * Sets the number of threads of a backend, and starts them where it keeps them.
   * @param keep false: ggml starts threads for every computation
   * @returns undefined where there is nothing to keep: one thread, or a device that has none
   */
  static start(on: PooledDevice, threads: number, keep = true): ThreadPool | undefined {
    const create = functionOf(on, "ggml_threadpool_new", "intptr_t", ["void *"]);
    const attach = functionOf(on, "ggml_backend_cpu_set_threadpool", "void", ["intptr_t", "intptr_t"]);
    functionOf(on, "ggml_backend_set_n_threads", "void", ["intptr_t", "int"])?.(on.backend, threads);
    if (create === undefined || attach === undefined || threads === 1 || !keep) return undefined;
    const settings = new Uint8Array(SETTINGS_BYTES);
    on.functions.ggml_threadpool_params_init(settings, threads);
    const pool = create(settings);
    attach(on.backend, pool);
    return new ThreadPool(on, pool);
  }

  /** Leaves the backend without kept threads. It must not be computing. */
  detach(): void {
    functionOf(this.on, "ggml_backend_cpu_set_threadpool", "void", ["intptr_t", "intptr_t"])?.(this.on.backend, 0);
  }

  /** Ends the threads. No backend may have them any more. */
  free(): void {
    functionOf(this.on, "ggml_threadpool_free", "void", ["intptr_t"])?.(this.pool);
  }
}

/** A function that only some kinds of device have; undefined where this one lacks it. */
function functionOf(
  { functions: f, device }: PooledDevice,
  name: string,
  result: string,
  args: string[],
): ((...values: unknown[]) => unknown) | undefined {
  const registry = f.ggml_backend_dev_backend_reg(device);
  const address = f.ggml_backend_reg_get_proc_address(registry, name);
  if (address === null) return undefined;
  const prototype = koffi.proto(result, args);
  return (...values) => koffi.call(address, prototype, ...values);
}
