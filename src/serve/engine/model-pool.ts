import { ApiError } from "../errors.js";
import { FairQueue } from "./fair-queue.js";
import type { HostedModel } from "./hosted-model.js";

/** A model that can be asked for, in memory or not. */
export interface ModelSource {
  /** What the API calls it. */
  readonly name: string;
  /** Bytes that it will take, about. */
  readonly expectedBytes: () => number;
  readonly open: () => Promise<HostedModel>;
}

/** A model in memory, and who waits for it. */
export interface LoadedModel {
  readonly name: string;
  readonly model: HostedModel;
  readonly queue: FairQueue;
}

export interface PoolOptions {
  /** Requests that a model computes together. */
  readonly slots: number;
  /** Requests that may wait, for each model. */
  readonly queueLimit: number;
  /** Bytes that models may take together. */
  readonly memoryLimit: number;
}

interface Entry {
  readonly source: ModelSource;
  loaded: LoadedModel | undefined;
  loading: Promise<LoadedModel> | undefined;
  users: number;
  lastUsed: number;
  /** Bytes that it took when it was loaded last. */
  bytes: number | undefined;
}

/** Models that are loaded when they are asked for; the one that was not used for longest makes room for another. */
export class ModelPool {
  private readonly entries: ReadonlyMap<string, Entry>;
  private readonly first: Entry;
  private clock = 0;
  private turn: Promise<unknown> = Promise.resolve();
  private waitingForModel = 0;
  private freed: (() => void)[] = [];
  private closed = false;

  /** @param sources the first of them is meant where none is named */
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

  /** Those in memory. */
  get loaded(): LoadedModel[] {
    return [...this.entries.values()].flatMap(({ loaded }) => loaded ?? []);
  }

  /** Requests for models that are not in memory yet. */
  get waiting(): number {
    return this.waitingForModel;
  }

  /** Requests that are computed or wait. */
  get busy(): number {
    return this.loaded.reduce((sum, { queue }) => sum + queue.running + queue.waiting, this.waitingForModel);
  }

  /** @throws ApiError 404 for a name that no model has */
  resolve(name: string | undefined): string {
    return this.entry(name).source.name;
  }

  /** Bytes that a model takes, about: 0 where that is known only when it was loaded. */
  expectedBytes(name: string): number {
    const entry = this.entry(name);
    return entry.bytes ?? entry.source.expectedBytes();
  }

  /** Whether the model that is meant where none is named is in memory. */
  get ready(): boolean {
    return this.first.loaded !== undefined;
  }

  /**
   * Lets a request use a model, which is loaded where it is not and stays in memory until the request is done.
   * @throws ApiError 404 for a name that no model has, 429 when too many wait for models, 503 when it cannot be loaded; what the
   *   signal was aborted with
   */
  async use<T>(name: string | undefined, signal: AbortSignal, work: (model: LoadedModel) => Promise<T>): Promise<T> {
    const { model, release } = await this.lease(name, signal);
    try {
      return await work(model);
    } finally {
      release();
    }
  }

  async lease(
    name: string | undefined,
    signal: AbortSignal,
  ): Promise<{ readonly model: LoadedModel; readonly release: () => void }> {
    const entry = this.entry(name);
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
    if (this.waitingForModel >= this.options.queueLimit)
      throw new ApiError(429, `${this.waitingForModel} requests wait for models already: ask again later`, {
        code: "queue_full",
        retryAfter: 10,
      });
    this.waitingForModel++;
    try {
      entry.loading ??= this.inTurn(() => this.loadNow(entry));
      return await orAborted(entry.loading, signal);
    } finally {
      this.waitingForModel--;
    }
  }

  /** One is loaded after the other: each must know what memory the others take. */
  private inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.turn.then(work);
    this.turn = result.catch(() => {});
    return result;
  }

  private async loadNow(entry: Entry): Promise<LoadedModel> {
    try {
      await this.makeRoom(entry);
      if (this.closed) throw new ApiError(503, "the service is ending");
      const model = await entry.source.open();
      entry.bytes = model.memoryBytes;
      const { slots, queueLimit } = this.options;
      const loaded = { name: entry.source.name, model, queue: new FairQueue(slots, queueLimit) };
      entry.loaded = loaded;
      await this.trim(); // it may take more than was expected
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

  /** Bytes that models take together. */
  private get taken(): number {
    return this.inMemory.reduce((sum, { bytes = 0 }) => sum + bytes, 0);
  }

  /** The model in memory that nobody uses, and nobody used for longest. */
  private get idle(): Entry | undefined {
    return this.inMemory.filter(({ users }) => users === 0).sort((a, b) => a.lastUsed - b.lastUsed)[0];
  }

  /** Unloads what nobody uses until the rest may stay, or one is left. */
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
    for (;;) {
      if (this.inMemory.length === 0 || this.taken + needed <= memoryLimit || this.closed) return;
      const { idle } = this;
      if (idle === undefined) await new Promise<void>((resolve) => this.freed.push(resolve));
      else await unload(idle);
    }
  }

  /** Unloads all. What still computes fails. */
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

/** What a promise comes to, unless a signal is aborted before. */
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
