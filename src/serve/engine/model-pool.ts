import { ApiError } from "../errors.js";
import { FairQueue } from "./fair-queue.js";
import type { HostedModel } from "./hosted-model.js";

/** A model that can be requested, in memory or not. */
export interface ModelSource {
  /** Its name in the API. */
  readonly name: string;
  /** Bytes that it will take, roughly; 0 where that is known only after it was loaded. */
  readonly expectedBytes: () => number;
  readonly open: () => Promise<HostedModel>;
}

/** A model in memory, with its queue. */
export interface LoadedModel {
  readonly name: string;
  readonly model: HostedModel;
  readonly queue: FairQueue;
}

export interface PoolOptions {
  /** Requests that a model computes together. */
  readonly slots: number;
  /** Requests that may wait for each model. */
  readonly queueLimit: number;
  /** Bytes that models may take together. */
  readonly memoryLimit: number;
  /** How long a model may wait for room before others get no new requests; 5 seconds by default. */
  readonly patienceMs?: number | undefined;
}

const PATIENCE_MS = 5000;

interface Entry {
  readonly source: ModelSource;
  loaded: LoadedModel | undefined;
  loading: Promise<LoadedModel> | undefined;
  users: number;
  lastUsed: number;
  /** Bytes that it took when it was last loaded. */
  bytes: number | undefined;
}

/** Loads models when they are requested. The one used least recently makes room for another. */
export class ModelPool {
  private readonly entries: ReadonlyMap<string, Entry>;
  private readonly first: Entry;
  private hasLoadedFirst = false;
  private clock = 0;
  private turn: Promise<unknown> = Promise.resolve();
  private waitingForModel = 0;
  private freed: (() => void)[] = [];
  /** The model that waits for room, which is not there as long as others are in use. */
  private blocked: { readonly entry: Entry; readonly since: number } | undefined;
  private closed = false;

  /** @param sources the first one serves requests that name no model */
  constructor(
    sources: readonly [ModelSource, ...ModelSource[]],
    private readonly options: PoolOptions,
  ) {
    const entries = sources.map((source): Entry => {
      return { source, loaded: undefined, loading: undefined, users: 0, lastUsed: 0, bytes: undefined };
    });
    this.entries = new Map(entries.map((entry) => [entry.source.name, entry]));
    this.first = entries[0] as Entry;
  }

  get names(): string[] {
    return [...this.entries.keys()];
  }

  /** The models in memory. */
  get loaded(): LoadedModel[] {
    return [...this.entries.values()].flatMap(({ loaded }) => loaded ?? []);
  }

  /** Requests for models that are not in memory yet. */
  get waiting(): number {
    return this.waitingForModel;
  }

  /** Requests that run or wait. */
  get busy(): number {
    return this.loaded.reduce((sum, { queue }) => sum + queue.running + queue.waiting, this.waitingForModel);
  }

  /** The name of a model. @throws ApiError 404 for a name that no model has */
  resolve(name: string | undefined): string {
    return this.entry(name).source.name;
  }

  /** Bytes that a model takes, roughly; 0 where that is known only after it was loaded. */
  expectedBytes(name: string): number {
    const entry = this.entry(name);
    return entry.bytes ?? entry.source.expectedBytes();
  }

  /** Whether the first model has been in memory: it may have made room for another since, and comes back when it is asked for. */
  get ready(): boolean {
    return this.hasLoadedFirst;
  }

  /**
   * Lets a request use a model, which is loaded if necessary and stays in memory until the request is done.
   * @throws ApiError 404 for a name that no model has, 429 when too many requests wait for models, 503 when it cannot be loaded; the
   *   signal's reason when it is aborted
   */
  async use<T>(name: string | undefined, signal: AbortSignal, work: (model: LoadedModel) => Promise<T>): Promise<T> {
    const { model, release } = await this.lease(name, signal);
    try {
      return await work(model);
    } finally {
      release();
    }
  }

  /** As {@link use}, for requests that say themselves when they are done. */
  async lease(
    name: string | undefined,
    signal: AbortSignal,
  ): Promise<{ readonly model: LoadedModel; readonly release: () => void }> {
    const entry = this.entry(name);
    if (entry.loaded !== undefined) await this.letBlockedLoad(entry, signal);
    entry.users++; // from now on it is not unloaded
    let released = false;
    const release = () => {
      if (released) return;
      released = true;
      entry.users--;
      entry.lastUsed = ++this.clock;
      if (entry.users === 0 && this.taken > this.options.memoryLimit) void this.inTurn(() => this.trim());
      for (const wake of this.freed.splice(0)) wake();
    };
    try {
      return { model: entry.loaded ?? (await this.load(entry, signal)), release };
    } catch (error) {
      release();
      throw error;
    }
  }

  /**
   * A model that is asked for again and again would keep another one out for ever: when that has waited for some time, new requests wait
   * until it is there, and then for room in their turn.
   */
  private async letBlockedLoad(entry: Entry, signal: AbortSignal): Promise<void> {
    const { blocked } = this;
    const { patienceMs = PATIENCE_MS } = this.options;
    if (blocked === undefined || blocked.entry === entry || performance.now() - blocked.since < patienceMs) return;
    const { loading } = blocked.entry;
    if (loading === undefined) return;
    await this.counted(() =>
      orAborted(
        loading.catch(() => {}),
        signal,
      ),
    );
  }

  private entry(name: string | undefined): Entry {
    // Ollama's clients name the tag that all models have
    const entry =
      name === undefined ? this.first : (this.entries.get(name) ?? this.entries.get(name.replace(/:latest$/, "")));
    if (entry !== undefined) return entry;
    throw new ApiError(404, `there is no model ${name} here, only ${this.names.join(", ")}`, {
      param: "model",
      code: "model_not_found",
    });
  }

  private async load(entry: Entry, signal: AbortSignal): Promise<LoadedModel> {
    return await this.counted(() => {
      entry.loading ??= this.inTurn(() => this.loadNow(entry));
      return orAborted(entry.loading, signal);
    });
  }

  /** Counts a request that waits for a model. @throws ApiError 429 where too many do */
  private async counted<T>(wait: () => Promise<T>): Promise<T> {
    if (this.waitingForModel >= this.options.queueLimit)
      throw new ApiError(429, `${this.waitingForModel} requests are waiting for models already: try again later`, {
        code: "queue_full",
        retryAfter: 10,
      });
    this.waitingForModel++;
    try {
      return await wait();
    } finally {
      this.waitingForModel--;
    }
  }

  /** Loads one model after the other: each must know how much memory the others take. */
  private inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.turn.then(work);
    this.turn = result.catch(() => {});
    return result;
  }

  private async loadNow(entry: Entry): Promise<LoadedModel> {
    try {
      await this.makeRoom(entry);
      if (this.closed) throw new ApiError(503, "the service is shutting down");
      const model = await entry.source.open();
      entry.bytes = model.memoryBytes;
      const { slots, queueLimit } = this.options;
      const loaded = { name: entry.source.name, model, queue: new FairQueue(slots, queueLimit) };
      entry.loaded = loaded;
      this.hasLoadedFirst ||= entry === this.first;
      await this.trim(); // it may take more than expected
      return loaded;
    } catch (error) {
      if (error instanceof ApiError) throw error;
      throw new ApiError(503, `the model ${entry.source.name} cannot be loaded`, {
        code: "model_not_loaded",
        cause: error,
      });
    } finally {
      entry.loading = undefined;
    }
  }

  private get inMemory(): Entry[] {
    return [...this.entries.values()].filter(({ loaded }) => loaded !== undefined);
  }

  /** Bytes that the models in memory take together. */
  private get taken(): number {
    return this.inMemory.reduce((sum, { bytes = 0 }) => sum + bytes, 0);
  }

  /** The model in memory that nobody uses and that was used least recently. */
  private get idle(): Entry | undefined {
    return this.inMemory.filter(({ users }) => users === 0).sort((a, b) => a.lastUsed - b.lastUsed)[0];
  }

  /** Unloads models that nobody uses until the rest fit, or one is left. */
  private async trim(): Promise<void> {
    while (this.inMemory.length > 1 && this.taken > this.options.memoryLimit) {
      const { idle } = this;
      if (idle === undefined) return;
      await unload(idle);
    }
  }

  private async makeRoom(entry: Entry): Promise<void> {
    const { memoryLimit } = this.options;
    const needed = entry.bytes ?? entry.source.expectedBytes();
    this.blocked = { entry, since: performance.now() };
    try {
      for (;;) {
        if (this.inMemory.length === 0 || this.taken + needed <= memoryLimit || this.closed) return;
        if (entry.users === 0) throw new ApiError(503, "nobody waits for the model any more");
        const { idle } = this;
        if (idle === undefined) await new Promise<void>((resolve) => this.freed.push(resolve));
        else await unload(idle);
      }
    } finally {
      this.blocked = undefined;
    }
  }

  /** Unloads all models. Requests that are still running fail. */
  async close(): Promise<void> {
    this.closed = true;
    for (const wake of this.freed.splice(0)) wake();
    await this.turn;
    for (const entry of this.entries.values()) await unload(entry);
  }
}

async function unload(entry: Entry): Promise<void> {
  const { loaded } = entry;
  entry.loaded = undefined;
  await loaded?.model.dispose();
}

/** The result of a promise, unless a signal is aborted first. @throws the signal's reason */
async function orAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted();
  let onAbort = () => {};
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true });
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener("abort", onAbort);
  }
}
