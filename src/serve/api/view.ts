import type { z } from "zod";
import type { ModelPool } from "../engine/model-pool.js";
import type { Profile } from "../profiles.js";

/** What a service tells of itself. */
export interface ServiceInfo {
  readonly pool: ModelPool;
  /** When it was started, in seconds. */
  readonly started: number;
  readonly version: string;
  /** Each model's name and what it was given as. */
  readonly models: readonly { readonly name: string; readonly reference: string }[];
  readonly profile: string;
  readonly profiles: () => readonly Profile[];
  /** Whether requests are taken. */
  readonly taking: () => boolean;
}

/** Something that can be asked for by GET. */
export interface View {
  readonly path: string;
  readonly summary: string;
  readonly reply: z.ZodType;
  /** Whether it needs no key: probes and collectors have none. */
  readonly open: boolean;
  answer(info: ServiceInfo): unknown;
  /** The same in the form of Anthropic's API, where that has it. */
  readonly anthropicAnswer?: ((info: ServiceInfo, query: Readonly<Record<string, string>>) => unknown) | undefined;
}
