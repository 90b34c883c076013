import type { HubOptions } from "../checkpoint/index.js";
import { runnableGguf } from "../jobs/index.js";
import { FairQueue } from "../serve/engine/fair-queue.js";
import { HostedModel, type HostOptions } from "../serve/engine/hosted-model.js";

export interface PlayRequest {
  readonly prompt: string;
  readonly maxTokens: number;
  readonly temperature: number;
  readonly seed: number | undefined;
}

interface Entry {
  readonly model: Promise<HostedModel>;
  readonly queue: FairQueue;
  users: number;
  lastUsed: number;
}

/** Models that are kept in memory, to be asked again. */
const MOST_MODELS = 3;
const [SLOTS, WAITING] = [2, 16];

/** Lets people try models: a few are kept in memory, the one that was not asked for longest makes room. */
export class Playground {
  private readonly entries = new Map<string, Entry>();
  private clock = 0;

  constructor(private readonly options: Pick<HostOptions, "device" | "threads">) {}

  /** @param id what it is kept under @param reference where the model is @throws ApiError 429 when too many wait */
  async *write(
    { id, reference, hub }: { id: string; reference: string; hub: HubOptions },
    { prompt, maxTokens, temperature, seed }: PlayRequest,
    client: string,
    signal: AbortSignal,
  ): AsyncGenerator<string> {
    const entry = await this.entry(id, reference, hub);
    entry.users++;
    try {
      const leave = await entry.queue.enter(client, signal);
      try {
        const model = await entry.model;
        const request = { prompt: model.promptOf(prompt), maxTokens, temperature, seed, stops: [], signal };
        for await (const { text } of model.write(request)) if (text !== "") yield text;
      } finally {
        leave();
      }
    } finally {
      entry.users--;
      entry.lastUsed = ++this.clock;
    }
  }

  private async entry(id: string, reference: string, hub: HubOptions): Promise<Entry> {
    const known = this.entries.get(id);
    if (known !== undefined) return known;
    const { device, threads } = this.options;
    const load = async () => {
      await this.makeRoom();
      const file = await runnableGguf(reference, { hub });
      return HostedModel.open(file, { device, threads, slots: SLOTS });
    };
    const entry: Entry = { model: load(), queue: new FairQueue(SLOTS, WAITING), users: 0, lastUsed: ++this.clock };
    this.entries.set(id, entry);
    entry.model.catch(() => this.entries.delete(id)); // is tried again when it is asked for again
    return entry;
  }

  private async makeRoom(): Promise<void> {
    while (this.entries.size > MOST_MODELS) {
      const idle = [...this.entries]
        .filter(([, { users }]) => users === 0)
        .sort(([, a], [, b]) => a.lastUsed - b.lastUsed);
      const [oldest] = idle;
      if (oldest === undefined) return;
      this.entries.delete(oldest[0]);
      await (await oldest[1].model.catch(() => undefined))?.dispose();
    }
  }

  async close(): Promise<void> {
    for (const { model } of this.entries.values()) await (await model.catch(() => undefined))?.dispose();
    this.entries.clear();
  }
}
