import type { HubOptions } from "../checkpoint/index.js";
import { runnableGguf } from "../jobs/index.js";
import { FairQueue } from "../serve/engine/fair-queue.js";
import { HostedModel, type HostOptions } from "../serve/engine/hosted-model.js";
import { ApiError } from "../serve/errors.js";
import { formatBytes } from "../system/format.js";
import { freeMemory } from "../system/memory.js";

export interface CompletionRequest {
  readonly prompt: string;
  readonly maxTokens: number;
  readonly temperature: number;
  readonly seed: number | undefined;
}

/** A model to run. */
export interface PlaygroundModel {
  readonly id: string;
  /** A directory, a .gguf file or a hub id. */
  readonly reference: string;
  readonly hub: HubOptions;
  /** Approximate bytes of its weights. */
  readonly bytes: number;
}

interface Entry {
  readonly model: Promise<HostedModel>;
  readonly queue: FairQueue;
  users: number;
  lastUsed: number;
}

/** How many models are kept in memory. */
const MAX_MODELS = 3;
/** Requests to a model that run at once. */
const SLOTS = 2;
/** Requests to a model that may wait. */
const MAX_WAITING = 16;
/** The share of the free memory that a model may take. */
const MEMORY_SHARE = 0.5;

/** Runs models for people to try. A few stay in memory; the least recently used makes room. */
export class Playground {
  private readonly entries = new Map<string, Entry>();
  private clock = 0;

  constructor(private readonly options: Pick<HostOptions, "device" | "threads">) {}

  /**
   * Completes a prompt, or answers it where the model has a chat template, part by part.
   * @throws ApiError 409 for a model that is too large, 429 when too many requests wait; CoppiceError when it cannot be loaded
   */
  async *write(
    model: PlaygroundModel,
    { prompt, maxTokens, temperature, seed }: CompletionRequest,
    client: string,
    signal: AbortSignal,
  ): AsyncGenerator<string> {
    const entry = this.entry(model);
    entry.users++;
    try {
      const leave = await entry.queue.enter(client, signal);
      try {
        const hosted = await entry.model;
        const tokens =
          hosted.templateSource === undefined
            ? hosted.promptOf(prompt)
            : hosted.chatPrompt([{ role: "user", content: prompt }]);
        const request = { prompt: tokens, maxTokens, temperature, seed, stops: [], signal };
        for await (const { text } of hosted.write(request)) if (text !== "") yield text;
      } finally {
        leave();
      }
    } finally {
      entry.users--;
      entry.lastUsed = ++this.clock;
    }
  }

  private entry({ id, reference, hub, bytes }: PlaygroundModel): Entry {
    const known = this.entries.get(id);
    if (known !== undefined) return known;
    const { device, threads } = this.options;
    const load = async () => {
      await this.makeRoom();
      const maxBytes = MEMORY_SHARE * freeMemory();
      if (bytes > maxBytes)
        throw new ApiError(
          409,
          `the model needs about ${formatBytes(bytes)}, and ${formatBytes(maxBytes)} are free here: download it to run it elsewhere`,
        );
      const file = await runnableGguf(reference, { hub });
      return HostedModel.open(file, { device, threads, slots: SLOTS });
    };
    const entry: Entry = { model: load(), queue: new FairQueue(SLOTS, MAX_WAITING), users: 0, lastUsed: ++this.clock };
    this.entries.set(id, entry);
    entry.model.catch(() => this.entries.delete(id)); // the next request tries again
    return entry;
  }

  /** Unloads the least recently used models that nobody uses now. */
  private async makeRoom(): Promise<void> {
    while (this.entries.size >= MAX_MODELS) {
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
