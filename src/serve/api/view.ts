import type { z } from "zod";
import type { ModelPool } from "../engine/model-pool.js";
import type { Profile } from "../profiles.js";

/** What a service can say about itself. */
export interface ServiceInfo {
  readonly pool: ModelPool;
  /** When it was started, in seconds of Unix time. */
  readonly started: number;
  readonly version: string;
  /** The models' names, and the files, directories or hub ids that they were loaded from. */
  readonly models: readonly { readonly name: string; readonly reference: string }[];
  readonly profile: string;
  readonly profiles: () => readonly Profile[];
  /** Whether new requests are accepted. */
  readonly taking: () => boolean;
}

/** An endpoint that is called by GET. */
export interface View {
  readonly path: string;
  readonly summary: string;
  readonly reply: z.ZodType;
  /** Whether it needs no key, as for probes and collectors. */
  readonly open: boolean;
  answer(info: ServiceInfo): unknown;
  /** The answer in the form of Anthropic's API, where that has the endpoint. */
  readonly anthropicAnswer?: ((info: ServiceInfo, query: Readonly<Record<string, string>>) => unknown) | undefined;
}
