import { availableParallelism, cpus, hostname } from "node:os";
import { bytesOf } from "../ggml/dtype.js";
import { CoppiceError, InterruptedError } from "../system/errors.js";
import { releaseAll } from "../system/lock.js";
import { logOf } from "../system/log.js";
import { freeMemory } from "../system/memory.js";
import { hideLaunch, launchOf } from "./launch.js";
import { loadMpi, type MpiFunction, type MpiLibrary } from "./library.js";

const log = logOf("ranks");

/** Numbers in memory that native code reads or writes: an array, or an address with a count of f32. */
export type Numbers = Float32Array | { readonly address: bigint; readonly count: number };

/** A message between ranks: JSON. */
export type Message = Readonly<Record<string, unknown>> & { readonly kind: string };

/** MPI counts elements in 32 bits. */
const MOST_AT_ONCE = 2 ** 30;
const byteCount = (numbers: Numbers): number => 4 * ("address" in numbers ? numbers.count : numbers.length);

/** Ranges of numbers that MPI can count. */
function partsOf(numbers: Numbers): { readonly start: unknown; readonly count: number }[] {
  const all = "address" in numbers ? numbers.count : numbers.length;
  return Array.from({ length: Math.ceil(all / MOST_AT_ONCE) }, (_, i) => {
    const from = i * MOST_AT_ONCE;
    const count = Math.min(MOST_AT_ONCE, all - from);
    const start = "address" in numbers ? numbers.address + 4n * BigInt(from) : numbers.subarray(from, from + count);
    return { start, count };
  });
}

/** A rank that waits for work looks for a message this often at first, and more and more rarely. */
const [FIRST_POLL_MILLISECONDS, LAST_POLL_MILLISECONDS] = [1, 16];
const TAGS = { length: 1, message: 2, data: 3 } as const;
const HOST_BYTES = 256;

/**
 * The processes of a job that MPI started (`mpirun`, `srun`), as this one sees them. Rank 0, the leader, does the job and owns its
 * files; the others, its followers, do parts of it on request. Calls of MPI never overlap: each waits for the one before.
 */
export class Ranks {
  private last: Promise<unknown> = Promise.resolve();
  private isBusy = false;
  /** What sums and copies between ranks have taken so far. */
  readonly traffic = { bytes: 0, calls: 0, seconds: 0 };

  private constructor(
    private readonly library: MpiLibrary,
    readonly rank: number,
    readonly size: number,
    /** This rank's number among those on the same machine, how many they are, and the memory that was free before any took much. */
    readonly local: { readonly rank: number; readonly size: number; readonly freeBytes: number },
  ) {}

  /**
   * Joins the other processes, if a launcher of MPI programs started this one with others.
   * @throws CoppiceError when there is no MPI library, or it cannot be used from several threads
   */
  static async join(): Promise<Ranks | undefined> {
    const launch = launchOf(process.env);
    if (launch === undefined) return undefined;
    // UCX, by which many an MPI communicates, watches memory by replacing functions of the C library while threads of Node use them: of
    // 30 starts of 8 processes 3 lost a part of the heap (UCX 1.13), of 75 without that none
    process.env.UCX_MEM_EVENTS ??= "n";
    const library = loadMpi(launch);
    const { functions: f, constants } = library;
    const [provided, rank, size] = [[0], [0], [1]];
    f.MPI_Init_thread(null, null, constants.serialized, provided);
    hideLaunch(process.env);
    if ((provided[0] ?? 0) < constants.serialized)
      throw new CoppiceError(`${library.file} was built without support for threads (MPI_THREAD_SERIALIZED)`);
    f.MPI_Comm_rank(constants.world, rank);
    f.MPI_Comm_size(constants.world, size);
    const freeBytes = freeMemory();
    const alone = new Ranks(library, rank[0] ?? 0, size[0] ?? 1, { rank: 0, size: 1, freeBytes });
    if (alone.size === 1) {
      f.MPI_Finalize();
      if ((launch.count ?? 1) > 1)
        throw new CoppiceError(
          `${launch.launcher} started ${launch.count} processes, but ${library.file} knows of one: it belongs to another MPI; name the right library in COPPICE_MPI`,
        );
      return undefined;
    }
    const local = { ...(await alone.neighbours()), freeBytes };
    const ranks = new Ranks(library, alone.rank, alone.size, local);
    ranks.shareProcessors();
    log.debug("joined", { rank: ranks.rank, size: ranks.size, local, library: library.file, abi: library.abi });
    return ranks;
  }

  /** Which of the ranks are on this machine. */
  private async neighbours(): Promise<Omit<Ranks["local"], "freeBytes">> {
    const own = Buffer.alloc(HOST_BYTES);
    own.write(hostname().slice(0, HOST_BYTES - 1));
    const all = Buffer.alloc(HOST_BYTES * this.size);
    const { world, byte } = this.library.constants;
    await this.call("MPI_Allgather", own, HOST_BYTES, byte, all, HOST_BYTES, byte, world);
    const same = Array.from({ length: this.size }, (_, i) =>
      all.subarray(i * HOST_BYTES, (i + 1) * HOST_BYTES).equals(own),
    );
    return { rank: same.slice(0, this.rank).filter(Boolean).length, size: same.filter(Boolean).length };
  }

  /** Ranks on one machine divide its processors, unless the launcher has done so or COPPICE_THREADS says otherwise. */
  private shareProcessors(): void {
    const available = availableParallelism();
    if (process.env.COPPICE_THREADS) return;
    if (available < cpus().length) return;
    process.env.COPPICE_THREADS = String(Math.max(1, Math.floor(available / this.local.size)));
  }

  /** Says where the launcher has bound this process to less than its share of the machine's processors. */
  get bindingNote(): string | undefined {
    const [available, all] = [availableParallelism(), cpus().length];
    if (available >= Math.floor(all / this.local.size)) return undefined;
    return `the launcher has bound each process to ${available} of ${all} processors; mpirun --bind-to none does not`;
  }

  /** Whether the others are in the middle of something that this rank has left by an error: only {@link abort} ends them then. */
  get busy(): boolean {
    return this.isBusy;
  }

  /**
   * Does something that all ranks must go through together.
   * @throws CoppiceError when they are in the middle of something else, InterruptedError when all have left it together
   */
  async together<T>(work: () => Promise<T>): Promise<T> {
    if (this.isBusy) throw new CoppiceError("the other processes are in the middle of something: start them all again");
    this.isBusy = true;
    try {
      const result = await work();
      this.isBusy = false;
      return result;
    } catch (error) {
      if (error instanceof InterruptedError) this.isBusy = false;
      throw error;
    }
  }

  get isLeader(): boolean {
    return this.rank === 0;
  }

  /** The MPI library in use, for people. */
  get description(): string {
    const { file, abi } = this.library;
    return `${file} (${abi})`;
  }

  /** Calls an MPI function on another thread, after those that were called before. */
  private call(name: MpiFunction, ...args: unknown[]): Promise<void> {
    const run = () => {
      const startedAt = performance.now();
      return new Promise<void>((resolve, reject) => {
        this.library.functions[name].async(...args, (error: Error | null, status: number) => {
          if (error !== null) reject(error);
          else if (status !== 0) reject(new CoppiceError(`${name} failed with status ${status}`));
          else resolve();
        });
      }).finally(() => {
        this.traffic.calls++;
        this.traffic.seconds += (performance.now() - startedAt) / 1000;
      });
    };
    const result = this.last.then(run);
    this.last = result.catch(() => {});
    return result;
  }

  /** Copies numbers from one rank to all others. */
  async broadcast(numbers: Numbers, root: number): Promise<void> {
    const { float, world } = this.library.constants;
    this.traffic.bytes += byteCount(numbers);
    const parts = partsOf(numbers);
    await Promise.all(parts.map(({ start, count }) => this.call("MPI_Bcast", start, count, float, root, world)));
  }

  /**
   * Adds up the numbers of all ranks. The same ranks give the same bits. (MPI_IN_PLACE is not used: MPICH 4.0.2 crashes on it.)
   * @param sum receives them at the root, where it is needed
   */
  async reduce(numbers: Numbers, root: number, sum?: Numbers): Promise<void> {
    const { float, sum: add, world } = this.library.constants;
    this.traffic.bytes += byteCount(numbers);
    const sums = sum === undefined ? [] : partsOf(sum);
    // all are queued at once: between them another rank could come to other calls
    const reduced = partsOf(numbers).map(({ start, count }, i) =>
      this.call("MPI_Reduce", start, sums[i]?.start ?? null, count, float, add, root, world),
    );
    await Promise.all(reduced);
  }

  /** The numbers of every rank, in their order. All ranks give as many. */
  async gather(own: Float64Array): Promise<Float64Array[]> {
    const { double, world } = this.library.constants;
    const all = new Float64Array(own.length * this.size);
    await this.call("MPI_Allgather", own, own.length, double, all, own.length, double, world);
    return Array.from({ length: this.size }, (_, i) => all.subarray(i * own.length, (i + 1) * own.length));
  }

  /** Sends data to a rank, which must {@link receiveData} it. Blocks until it is on its way. */
  sendData(data: NodeJS.ArrayBufferView, to: number): void {
    const { byte, world } = this.library.constants;
    const bytes = bytesOf(data);
    for (let from = 0; from < bytes.byteLength; from += MOST_AT_ONCE) {
      const part = bytes.subarray(from, from + MOST_AT_ONCE);
      this.library.functions.MPI_Send(part, part.byteLength, byte, to, TAGS.data, world);
    }
  }

  /** Receives as many bytes as `into` holds. Blocks until they are there. */
  receiveData(into: NodeJS.ArrayBufferView, from: number): void {
    const { byte, world, ignoreStatus } = this.library.constants;
    const bytes = bytesOf(into);
    for (let at = 0; at < bytes.byteLength; at += MOST_AT_ONCE) {
      const part = bytes.subarray(at, at + MOST_AT_ONCE);
      this.library.functions.MPI_Recv(part, part.byteLength, byte, from, TAGS.data, world, ignoreStatus);
    }
  }

  /** Receives token ids of the leader. */
  receiveIds(count: number): Int32Array {
    const ids = new Int32Array(count);
    this.receiveData(ids, 0);
    return ids;
  }

  /** Sends a message to a rank, which must {@link receive} it. */
  post(message: Message, to: number): void {
    const { byte, world } = this.library.constants;
    const { MPI_Send } = this.library.functions;
    const bytes = Buffer.from(JSON.stringify(message));
    const length = new Int32Array([bytes.byteLength]);
    MPI_Send(length, length.byteLength, byte, to, TAGS.length, world);
    MPI_Send(bytes, bytes.byteLength, byte, to, TAGS.message, world);
  }

  /** Sends a message to all followers. */
  postAll(message: Message): void {
    for (let to = 1; to < this.size; to++) this.post(message, to);
  }

  /** Waits for a message of a rank, by default the leader, without using the processor. */
  async receive<Body = Message>(from = 0): Promise<Body> {
    const { byte, world, ignoreStatus } = this.library.constants;
    const { MPI_Iprobe, MPI_Recv } = this.library.functions;
    const found = [0];
    let pause = FIRST_POLL_MILLISECONDS;
    for (;;) {
      MPI_Iprobe(from, TAGS.length, world, found, ignoreStatus);
      if (found[0] !== 0) break;
      await new Promise((resolve) => setTimeout(resolve, pause));
      pause = Math.min(LAST_POLL_MILLISECONDS, 1.02 * pause);
    }
    const length = new Int32Array(1);
    MPI_Recv(length, length.byteLength, byte, from, TAGS.length, world, ignoreStatus);
    const bytes = Buffer.alloc(length[0] ?? 0);
    MPI_Recv(bytes, bytes.byteLength, byte, from, TAGS.message, world, ignoreStatus);
    return JSON.parse(bytes.toString()) as Body;
  }

  /** A rank's share [from, to) of so many things. */
  share(count: number, rank = this.rank): readonly [from: number, to: number] {
    return [Math.floor((count * rank) / this.size), Math.floor((count * (rank + 1)) / this.size)];
  }

  /** Ends the processes of all ranks at once. Does not return. */
  abort(exitCode: number): void {
    releaseAll();
    this.library.functions.MPI_Abort(this.library.constants.world, exitCode);
  }

  /** Leaves the other ranks; all must. */
  leave(): void {
    this.library.functions.MPI_Finalize();
  }
}
