import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { isAdapter, withAdapters } from "../checkpoint/index.js";
import { type JobOptions, runnableGguf } from "../jobs/index.js";
import { UsageError } from "../system/errors.js";
import { memoryLimit } from "../system/memory.js";
import { packageRoot } from "../system/package-root.js";
import { defined } from "./engine/defined.js";
import { HostedModel, type HostOptions } from "./engine/hosted-model.js";
import type { ModelSource } from "./engine/model-pool.js";
import { ApiKeys } from "./keys.js";
import type { ProfileName } from "./profile-names.js";
import { findHardware, type Hardware, memoryOf, modelFacts, type Profile, profilesFor } from "./profiles.js";
import { type RunningServer, type ServerOptions, startServer } from "./server.js";

export interface ServeJob
  extends Omit<JobOptions, "signal">,
    Partial<Omit<ServerOptions, "sources" | "models" | "profile" | "profiles" | "keys" | "tls" | "version" | "device">>,
    Partial<Pick<HostOptions, "contextSize" | "batchSize">> {
  /** GGUF files, directories or hub ids. The first one answers requests that name no model. */
  readonly models: readonly string[];
  /** The models' names in the API; the names of their files or directories by default. */
  readonly names?: readonly string[] | undefined;
  readonly profile?: ProfileName | undefined;
  /** A smaller MODEL of the same tokenizer that guesses ahead, for the first model. */
  readonly draftModel?: string | undefined;
  /** LoRA adapters (GGUF files, or PEFT directories) for the first model, each `ADAPTER` or `ADAPTER=SCALE`. */
  readonly lora?: readonly string[] | undefined;
  /** A file of hashed keys, one of which every request must have. */
  readonly keysFile?: string | undefined;
  /** PEM file of the certificate; goes with `tlsKey`. */
  readonly tlsCert?: string | undefined;
  readonly tlsKey?: string | undefined;
}

const DEFAULTS = {
  host: "127.0.0.1",
  port: 8000,
  slots: 4,
  queueLimit: 64,
  timeoutSeconds: 600,
  drainSeconds: 30,
  maxBodyBytes: 8 << 20,
  corsOrigins: [] as readonly string[],
  allowedHosts: [] as readonly string[],
  logLevel: "info" as const,
  logPrompts: false,
  overflow: "refuse" as const,
};
/** The share of the machine's memory that models may take together. */
const MODEL_MEMORY = 0.75;
/** What the memory of a model is estimated with before it is loaded. */
const [DEFAULT_CONTEXT, DEFAULT_BATCH] = [8192, 512];

/**
 * Serves MODELs until it is closed. It listens at once; models that are not GGUF files are exported to the cache when they are loaded.
 * @throws UsageError for options that contradict each other, or files that do not exist
 */
export async function serve(job: ServeJob): Promise<RunningServer> {
  const { models, names, profile, draftModel, lora, keysFile, tlsCert, tlsKey, ...others } = job;
  const { hub: _, onProgress: __, device, threads, contextSize, batchSize, ...serverOptions } = others;
  const tls = readTls(tlsCert, tlsKey);
  const keys = keysFile === undefined ? undefined : ApiKeys.read(keysFile);
  const modelNames = namesOf(models, names);
  const served = new ServedModels(job);
  // a place in the queue is a slot: all models have the same number
  const slots = job.slots ?? (await served.profileOf(models[0])).slots ?? DEFAULTS.slots;
  const [first, ...rest] = models.map((reference, i) =>
    served.source(reference, {
      name: modelNames[i] ?? "",
      isFirst: i === 0,
      slots,
    }),
  );
  if (first === undefined) throw new UsageError("there is no model to serve");
  const { version } = JSON.parse(readFileSync(path.join(packageRoot, "package.json"), "utf8")) as { version: string };
  return startServer({
    ...DEFAULTS,
    memoryLimit: MODEL_MEMORY * memoryLimit(),
    ...defined(serverOptions),
    slots,
    keys,
    tls,
    version,
    sources: [first, ...rest],
    profile: profile ?? "default",
    profiles: () => served.profiles(),
    models: models.map((reference, i) => ({ name: modelNames[i] ?? "", reference: publicReference(reference) })),
  });
}

interface SourceOptions {
  readonly name: string;
  /** Whether it is the first model, which draft and adapters are for. */
  readonly isFirst: boolean;
  readonly slots: number;
}

/** The models of a job, their files and how they are loaded. */
class ServedModels {
  private readonly hardware: Hardware;
  /** Files that have been found or exported, by reference. */
  private readonly files = new Map<string, string>();
  /** Adapters that are merged into the first model before it is loaded. */
  private readonly mergedAdapters: readonly string[];
  private readonly adapters: readonly { readonly file: string; readonly scale: number }[];

  constructor(private readonly job: ServeJob) {
    this.hardware = findHardware(job.device);
    const { lora = [] } = job;
    const isDirectory = (adapter: string) => isAdapter(adapter.replace(/=[^=/]*$/, ""));
    this.mergedAdapters = lora.filter(isDirectory);
    this.adapters = lora.filter((adapter) => !isDirectory(adapter)).map(adapterOf);
  }

  /** What each profile would use for the first model, as far as that is known yet. */
  profiles(): Profile[] {
    const file = this.files.get(this.job.models[0] ?? "");
    return profilesFor(this.hardware, file === undefined ? undefined : modelFacts(file));
  }

  /** What the job's profile uses for a model; nothing where the job has no profile. */
  async profileOf(reference: string | undefined): Promise<Partial<Profile>> {
    const { profile } = this.job;
    if (profile === undefined || reference === undefined) return {};
    const all = profilesFor(this.hardware, modelFacts(await this.fileOf(reference)));
    return all.find(({ name }) => name === profile) ?? {};
  }

  source(reference: string, options: SourceOptions): ModelSource {
    return {
      name: options.name,
      expectedBytes: () => this.expectedBytes(reference, options.slots),
      open: async () => HostedModel.open(await this.fileOf(reference), await this.hostOptions(reference, options)),
    };
  }

  private async hostOptions(reference: string, { slots, isFirst }: SourceOptions): Promise<HostOptions> {
    const { device, threads, contextSize, batchSize, draftModel, onNote } = this.job;
    const profile = await this.profileOf(reference);
    const options = {
      device,
      threads,
      slots,
      contextSize: contextSize ?? profile.contextSize,
      batchSize: batchSize ?? profile.batchSize,
      onNote,
    };
    if (!isFirst) return options;
    const draft = draftModel === undefined ? undefined : await this.fileOf(draftModel);
    return { ...options, draft, lora: this.adapters };
  }

  private expectedBytes(reference: string, slots: number): number {
    const { contextSize, batchSize } = this.job;
    const file = this.files.get(reference) ?? reference;
    if (!file.endsWith(".gguf") || !existsSync(file)) return 0; // is known after it was loaded
    const facts = modelFacts(file);
    const context = contextSize ?? Math.min(DEFAULT_CONTEXT, facts.contextLength || DEFAULT_CONTEXT);
    return memoryOf(facts, { slots, contextSize: context, batchSize: batchSize ?? DEFAULT_BATCH });
  }

  private async fileOf(reference: string): Promise<string> {
    const known = this.files.get(reference);
    if (known !== undefined) return known;
    const isFirst = reference === this.job.models[0];
    const file = await runnableGguf(isFirst ? withAdapters(reference, this.mergedAdapters) : reference, this.job);
    this.files.set(reference, file);
    return file;
  }
}

/** What each profile would use here, for a MODEL if there is one. */
export async function listProfiles(model: string | undefined, job: JobOptions): Promise<Profile[]> {
  const facts = model === undefined ? undefined : modelFacts(await runnableGguf(model, job));
  return profilesFor(findHardware(job.device), facts);
}

/** @throws UsageError when two models have the same name */
function namesOf(models: readonly string[], names: readonly string[] | undefined): readonly string[] {
  if (names !== undefined && names.length !== models.length)
    throw new UsageError(`${models.length} models need as many names, not ${names.length} (--name)`);
  const all = names ?? models.map((model) => path.basename(model.replace(/[/\\]+$/, "")).replace(/\.gguf$/, ""));
  const repeated = all.find((name, i) => all.indexOf(name) !== i);
  if (repeated !== undefined) throw new UsageError(`two models are called ${repeated}: name them (--name a,b)`);
  return all;
}

/** A model's reference without the paths of this machine. */
const publicReference = (reference: string): string => (existsSync(reference) ? path.basename(reference) : reference);

function adapterOf(text: string): { readonly file: string; readonly scale: number } {
  const [, file = text, scale = "1"] = /^(.+)=(-?\d+(?:\.\d+)?)$/.exec(text) ?? [];
  if (!existsSync(file)) throw new UsageError(`there is no LoRA adapter ${file}`);
  return { file, scale: Number(scale) };
}

function readTls(cert: string | undefined, key: string | undefined): ServerOptions["tls"] {
  if (cert === undefined && key === undefined) return undefined;
  if (cert === undefined || key === undefined)
    throw new UsageError("TLS needs both a certificate and its key (--tls-cert, --tls-key)");
  return { cert: readPem(cert), key: readPem(key) };
}

function readPem(file: string): Buffer {
  if (!existsSync(file)) throw new UsageError(`there is no file ${file}`);
  return readFileSync(file);
}
