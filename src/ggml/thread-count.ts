import { availableParallelism } from "node:os";
import { CoppiceError } from "../system/errors.js";
import { logOf } from "../system/log.js";
import { DTYPE_ID } from "./dtype.js";
import type { Functions, Pointer } from "./functions.js";
import type { Kernels } from "./kernels.js";
import { type PooledDevice, ThreadPool } from "./thread-pool.js";

const log = logOf("engine");

/** The milliseconds that numbers of threads took for the same work. */
export type ThreadTimes = ReadonlyMap<number, number>;

/** The work: so many products of [ROWS, TERMS] and [TERMS, columns], like those of a small model's training step. */
const PRODUCTS = 8;
const [ROWS, TERMS] = [128, 512];
/** Columns for each processor: where there are many, they are there for larger models. */
const [COLUMNS_EACH, LEAST_COLUMNS] = [128, 512];
/** `native/matmul.c`'s flags: none, that is a product in f32. */
const PRODUCT = 0n as Pointer;
/** All threads, in a custom op of ggml's. */
const ALL_THREADS = -1;

/** Every number of threads has so many turns, one after the other: what disturbs one then disturbs all. */
const TURNS = 3;
/** Each works for so long: limits on a container's time are enforced in periods of 100 ms. */
const TURN_MS = 100;
/** Not counted: threads wake up, and time that a limit has saved up is spent. */
const WARM_UP_MS = 20;
/** Fewer threads are taken where they are slower by no more than this: they leave more to others, and to the battery. */
const MARGIN = 1.05;
/** Fewer threads are tried as long as they are not slower than the best by more than this. */
const HOPELESS = 2;

/**
 * Measures numbers of threads: all processors, half of them, and so on, as long as that is not much slower. The processors that the
 * system counts may be two threads of one core, be of unequal speed, or share the time of fewer, as in a virtual machine or a container
 * with a limit; threads wait for each other after every operation, and then more of them can be slower than one.
 * Nothing may be computing on the backend meanwhile, and it must have no pool of threads; afterwards its number of threads is undefined.
 */
export async function measureThreads(on: PooledDevice, kernels: Kernels | undefined): Promise<ThreadTimes> {
  const work = new Work(on, kernels);
  const spent = new Map<number, Spent>();
  try {
    let best = Number.POSITIVE_INFINITY;
    for (let threads = availableParallelism(); threads >= 1; threads = Math.floor(threads / 2)) {
      const first = await work.turn(threads);
      spent.set(threads, first);
      best = Math.min(best, meanOf(first));
      if (meanOf(first) > best * HOPELESS) break;
    }
    for (let turn = 1; turn < TURNS; turn++)
      for (const [threads, before] of spent) {
        const { milliseconds, runs } = await work.turn(threads);
        spent.set(threads, { milliseconds: before.milliseconds + milliseconds, runs: before.runs + runs });
      }
  } finally {
    work.free();
  }
  const times = new Map([...spent].map(([threads, all]) => [threads, meanOf(all)]));
  log.debug("threads timed", { milliseconds: Object.fromEntries(times) });
  return times;
}

/** The fewest threads whose time is within a margin of the best. */
export function chooseThreads(times: ThreadTimes): number {
  const best = Math.min(...times.values());
  const good = [...times].filter(([, milliseconds]) => milliseconds <= best * MARGIN).map(([threads]) => threads);
  return Math.min(...good);
}

/** Runs of the work, and what they took. */
interface Spent {
  readonly milliseconds: number;
  readonly runs: number;
}

const meanOf = ({ milliseconds, runs }: Spent): number => milliseconds / runs;

/** The products, on a backend. */
class Work {
  private readonly f: Functions;
  private readonly context: Pointer;
  private readonly graph: Pointer;
  private readonly buffer: Pointer;

  constructor(
    private readonly on: PooledDevice,
    kernels: Kernels | undefined,
  ) {
    const { functions: f, backend } = on;
    this.f = f;
    const tensors = PRODUCTS + 2;
    const columns = Math.max(LEAST_COLUMNS, COLUMNS_EACH * availableParallelism());
    this.context = f.ggml_init(f.ggml_tensor_overhead() * (tensors + 1) + f.ggml_graph_overhead_custom(tensors, false));
    const x = f.ggml_new_tensor_4d(this.context, DTYPE_ID.f32, TERMS, ROWS, 1, 1);
    const weight = f.ggml_new_tensor_4d(this.context, DTYPE_ID.f32, TERMS, columns, 1, 1);
    const sources = BigUint64Array.of(weight, x);
    this.graph = f.ggml_new_graph_custom(this.context, tensors, false);
    for (let i = 0; i < PRODUCTS; i++) {
      const product =
        kernels === undefined
          ? f.ggml_mul_mat(this.context, weight, x)
          : f.ggml_custom_4d(
              this.context,
              ...([DTYPE_ID.f32, columns, ROWS, 1, 1, sources, sources.length] as const),
              ...([kernels.address("matmul"), ALL_THREADS, PRODUCT] as const),
            );
      f.ggml_build_forward_expand(this.graph, product);
    }
    const buffer = f.ggml_backend_alloc_ctx_tensors(this.context, backend);
    if (buffer === null) {
      f.ggml_free(this.context);
      throw new CoppiceError("there is no memory for a few small matrices");
    }
    this.buffer = buffer;
    f.ggml_backend_buffer_clear(buffer, 0);
  }

  /** Computes the products again and again, with so many threads. */
  async turn(threads: number): Promise<Spent> {
    const pool = ThreadPool.start(this.on, threads);
    try {
      await this.repeat(WARM_UP_MS);
      return await this.repeat(TURN_MS);
    } finally {
      pool?.detach();
      pool?.free();
    }
  }

  private async repeat(atLeastMs: number): Promise<Spent> {
    const started = performance.now();
    let runs = 0;
    let milliseconds = 0;
    for (; milliseconds < atLeastMs; milliseconds = performance.now() - started, runs++) await this.run();
    return { milliseconds, runs };
  }

  private run(): Promise<void> {
    const { f, graph, on } = this;
    return new Promise((resolve, reject) => {
      f.ggml_backend_graph_compute.async(on.backend, graph, (error: Error | null) => {
        if (error === null) resolve();
        else reject(error);
      });
    });
  }

  free(): void {
    this.f.ggml_backend_buffer_free(this.buffer);
    this.f.ggml_free(this.context);
  }
}
