import { availableParallelism } from "node:os";
import { describeRunnable } from "../generate/index.js";
import { type DeviceKind, listDevices, loadLibrary } from "../ggml/index.js";
import { freeMemory } from "../system/memory.js";
import { PROFILE_NAMES, type ProfileName } from "./profile-names.js";

/** What a model's memory depends on. */
export interface ModelFacts {
  readonly weightBytes: number;
  /** Bytes of the keys, values and states of a sequence. */
  readonly cacheBytes: (tokens: number) => number;
  /** Tokens that the model was trained for; 0 where its file does not say. */
  readonly contextLength: number;
  readonly vocab: number;
  readonly hidden: number;
}

export interface Hardware {
  readonly kind: DeviceKind;
  readonly name: string;
  readonly freeBytes: number;
  readonly cores: number;
}

/** A way to serve a model: to many clients, with short waits to few, or in little memory. */
export interface Profile {
  readonly name: ProfileName;
  readonly device: DeviceKind;
  readonly slots: number;
  readonly contextSize: number;
  readonly batchSize: number;
  /** Bytes that it would take; undefined where no model is known. */
  readonly memoryBytes: number | undefined;
  /** Whether so much memory is free. */
  readonly fits: boolean;
  /** Whether it is the best one for this hardware. */
  readonly suits: boolean;
}

/** The share of free memory that a service may take. */
const USABLE = 0.8;
const MAX_SLOTS = 16;
const CONTEXTS: Readonly<Record<ProfileName, number>> = { throughput: 4096, latency: 8192, "low-memory": 2048 };
const BATCHES: Readonly<Record<ProfileName, number>> = { throughput: 2048, latency: 512, "low-memory": 128 };

/** The device that llama.cpp would compute on here. */
export function findHardware(wanted: DeviceKind | "auto" = "auto"): Hardware {
  const devices = listDevices(loadLibrary(wanted));
  const gpu = devices.find(({ kind }) => kind !== "cpu" && (wanted === "auto" || kind === wanted));
  const cores = availableParallelism();
  if (gpu === undefined || wanted === "cpu") return { kind: "cpu", name: "CPU", freeBytes: freeMemory(), cores };
  return { kind: gpu.kind, name: gpu.description, freeBytes: gpu.memoryFreeBytes, cores };
}

/** What the memory of a GGUF file depends on. */
export function modelFacts(file: string): ModelFacts {
  const { fileBytes, cacheBytes, contextLength, vocabSize, hidden } = describeRunnable(file);
  return { weightBytes: fileBytes, cacheBytes, contextLength, vocab: vocabSize, hidden };
}

/** Bytes of a model with its cache, and of the results that a batch passes from one operation to the next. */
export const memoryOf = (
  facts: ModelFacts,
  { slots, contextSize, batchSize }: Pick<Profile, "slots" | "contextSize" | "batchSize">,
): number =>
  facts.weightBytes +
  facts.cacheBytes(contextSize) * slots +
  4 * batchSize * (facts.vocab + ACTIVATIONS * facts.hidden);

/** Results of the model's width that are in memory at once. */
const ACTIVATIONS = 8;

/** What each profile would use of this hardware. */
export function profilesFor(hardware: Hardware, facts?: ModelFacts): Profile[] {
  const { kind, cores } = hardware;
  const usable = USABLE * hardware.freeBytes;
  // a slot for each core, and more on a GPU, whose time for a batch hardly grows with the batch
  const preferred: Readonly<Record<ProfileName, number>> = {
    throughput: kind === "cpu" ? Math.min(MAX_SLOTS, Math.max(4, cores)) : MAX_SLOTS,
    latency: kind === "cpu" ? 1 : 2,
    "low-memory": 1,
  };
  const profiles = PROFILE_NAMES.map((name) => {
    const contextSize = Math.min(CONTEXTS[name], facts?.contextLength || CONTEXTS[name]);
    const batchSize = Math.min(BATCHES[name], contextSize);
    const memoryOfSlots = (slots: number) => facts && memoryOf(facts, { slots, contextSize, batchSize });
    let slots = preferred[name];
    const least = name === "throughput" ? 2 : 1;
    while (slots > least && (memoryOfSlots(slots) ?? 0) > usable) slots--;
    const memoryBytes = memoryOfSlots(slots);
    return { name, device: kind, slots, contextSize, batchSize, memoryBytes, fits: (memoryBytes ?? 0) <= usable };
  });
  // with few cores, several answers at once slow each other down: who runs a laptop waits for one
  const order: readonly ProfileName[] =
    kind === "cpu" && cores < 8 ? ["latency", "throughput", "low-memory"] : ["throughput", "latency", "low-memory"];
  const best = order.find((name) => profiles.some((profile) => profile.name === name && profile.fits)) ?? "low-memory";
  return profiles.map((profile) => ({ ...profile, suits: profile.name === best }));
}
