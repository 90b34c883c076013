import { freemem } from "node:os";
import type { HubOptions } from "../checkpoint/index.js";
import { runnableGguf } from "../jobs/index.js";
import { FairQueue } from "../serve/engine/fair-queue.js";
import { HostedModel, type HostOptions } from "../serve/engine/hosted-model.js";
import { ApiError } from "../serve/errors.js";
import { formatBytes } from "../system/format.js";

export interface PlayRequest {
  readonly prompt: string;
  readonly maxTokens: number;
  readonly temperature: number;
  readonly seed: number | undefined;
}

/** A model to be tried. */
export interface TriedModel {
  /** What it is kept under. */
  readonly id: string;
  /** Where it is. */
  readonly reference: string;
  readonly hub: HubOptions;
  /** About so many its weights take. */
  readonly bytes: number;
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
/** Of the memory that is free, what a model may take: the service goes on beside it. */
const MEMORY_SHARE = 0.5;

/** Lets people try models: a few are kept in memory, the one that was not asked for longest makes room. */
export class Playground {
  private readonly entries = new Map<string, Entry>();
  private clock = 0;

  constructor(private readonly options: Pick<HostOptions, "device" | "threads">) {}

  /** @throws ApiError 409 for a model that is too large, 429 when too many wait; CoppiceError for one that cannot be had or run */
  async *write(
    tried: TriedModel,
    { prompt, maxTokens, temperature, seed }: PlayRequest,
    client: string,
    signal: AbortSignal,
  ): AsyncGenerator<string> {
    const entry = this.entry(tried);
    entry.users++;
    try {
      const leave = await entry.queue.enter(client, signal);
      try {
        const model = await entry.model;
        const tokens =
          model.templateSource === undefined
            ? model.promptOf(prompt)
            : model.chatPrompt([{ role: "user", content: prompt }]);
        const request = { prompt: tokens, maxTokens, temperature, seed, stops: [], signal };
        for await (const { text } of model.write(request)) if (text !== "") yield text;
      } finally {
        leave();
      }
    } finally {
      entry.users--;
      entry.lastUsed = ++this.clock;
    }
  }

  private entry({ id, reference, hub, bytes }: TriedModel): Entry {
    const known = this.entries.get(id);
    if (known !== undefined) return known;
    const { device, threads } = this.options;
    const load = async () => {
      await this.makeRoom();
      const most = MEMORY_SHARE * freemem();
      if (bytes > most)
        throw new ApiError(
          409,
          `the model takes about ${formatBytes(bytes)}, and ${formatBytes(most)} are free here: download it, and run it elsewhere`,
        );
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
