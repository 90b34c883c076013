import { existsSync, readFileSync } from "node:fs";
import { totalmem } from "node:os";
import path from "node:path";
import { isAdapter, withAdapters } from "../checkpoint/index.js";
import { type JobOptions, runnableGguf } from "../jobs/index.js";
import { UsageError } from "../system/errors.js";
import { packageRoot } from "../system/package-root.js";
import { HostedModel, type HostOptions } from "./engine/hosted-model.js";
import type { ModelSource } from "./engine/model-pool.js";
import { ApiKeys } from "./keys.js";
import type { ProfileName } from "./profile-names.js";
import { findHardware, memoryOf, modelFacts, type Profile, profilesFor } from "./profiles.js";
import { type RunningServer, type ServerOptions, startServer } from "./server.js";

export interface ServeJob
  extends Omit<JobOptions, "signal">,
    Partial<Omit<ServerOptions, "sources" | "models" | "profile" | "profiles" | "keys" | "tls" | "version" | "device">>,
    Partial<Pick<HostOptions, "contextSize" | "batchSize">> {
  /** GGUF files, directories or hub ids. The first is meant where a request names none. */
  readonly models: readonly string[];
  /** What the API calls the models; their files' or directories' names by default. */
  readonly names?: readonly string[] | undefined;
  readonly profile?: ProfileName | undefined;
  /** A smaller MODEL of the same tokenizer that guesses ahead, for the first model. */
  readonly draftModel?: string | undefined;
  /** LoRA adapters (GGUF files, or PEFT directories) for the first model, each `ADAPTER` or `ADAPTER=SCALE`. */
  readonly lora?: readonly string[] | undefined;
  /** A file of hashed keys, of which every request needs one. */
  readonly keysFile?: string | undefined;
  /** PEM files; both or none. */
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
/** Of the machine's memory, what models may take together. */
const MODEL_MEMORY = 0.75;
/** What a model is assumed to take beside its file, before it was loaded. */
const [DEFAULT_CONTEXT, DEFAULT_BATCH] = [8192, 512];

/** Serves MODELs until it is closed, exporting those to the cache first that are no GGUF files. It listens before they are loaded. */
export async function serve(job: ServeJob): Promise<RunningServer> {
  const { models, names: givenNames, profile, draftModel, lora = [], keysFile, tlsCert, tlsKey, ...rest } = job;
  const { hub: _, onProgress: __, device, threads, contextSize, batchSize, ...given } = rest;
  if ((tlsCert === undefined) !== (tlsKey === undefined))
    throw new UsageError("TLS needs both a certificate and its key (--tls-cert, --tls-key)");
  const keys = keysFile === undefined ? undefined : ApiKeys.read(keysFile);
  const tls =
    tlsCert === undefined || tlsKey === undefined ? undefined : { cert: readPem(tlsCert), key: readPem(tlsKey) };
  const names = namesOf(models, givenNames);
  const isDirectory = (adapter: string) => isAdapter(adapter.replace(/=[^=/]*$/, ""));
  const merged = lora.filter(isDirectory);
  const files = new Map<string, string>();
  const fileOf = async (reference: string) => {
    const file =
      files.get(reference) ??
      (await runnableGguf(reference === models[0] ? withAdapters(reference, merged) : reference, job));
    files.set(reference, file);
    return file;
  };
  const hardware = findHardware(device);
  const profiles = (): Profile[] => {
    const file = files.get(models[0] ?? "");
    return profilesFor(hardware, file === undefined ? undefined : modelFacts(file));
  };
  const chosen = async (reference: string): Promise<Partial<Profile>> => {
    if (profile === undefined) return {};
    const all = profilesFor(hardware, modelFacts(await fileOf(reference)));
    return all.find(({ name }) => name === profile) ?? {};
  };
  const adapters = lora.filter((adapter) => !isDirectory(adapter)).map(adapterOf);
  // a place in the queue is a slot: all models have as many
  const slots = job.slots ?? (models[0] === undefined ? undefined : (await chosen(models[0])).slots) ?? DEFAULTS.slots;
  const sources = models.map((reference, i): ModelSource => {
    const isFirst = i === 0;
    return {
      name: names[i] ?? "",
      expectedBytes: () => {
        const file = files.get(reference) ?? reference;
        if (!file.endsWith(".gguf") || !existsSync(file)) return 0; // is known when it was loaded
        const facts = modelFacts(file);
        const context = contextSize ?? Math.min(DEFAULT_CONTEXT, facts.contextLength || DEFAULT_CONTEXT);
        return memoryOf(facts, slots, context, batchSize ?? DEFAULT_BATCH);
      },
      open: async () => {
        const own = await chosen(reference);
        return HostedModel.open(await fileOf(reference), {
          device,
          threads,
          slots,
          contextSize: contextSize ?? own.contextSize,
          batchSize: batchSize ?? own.batchSize,
          ...(isFirst && draftModel !== undefined && { draft: await fileOf(draftModel) }),
          ...(isFirst && { lora: adapters }),
        });
      },
    };
  });
  const [first, ...others] = sources;
  if (first === undefined) throw new UsageError("there is no model to serve");
  const { version } = JSON.parse(readFileSync(path.join(packageRoot, "package.json"), "utf8")) as { version: string };
  const options = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
  return startServer({
    ...DEFAULTS,
    memoryLimit: MODEL_MEMORY * totalmem(),
    ...options,
    slots,
    keys,
    tls,
    version,
    sources: [first, ...others],
    profile: profile ?? "default",
    profiles,
    models: models.map((reference, i) => ({ name: names[i] ?? "", reference: publicReference(reference) })),
  });
}

/** What each profile would use here, for a MODEL where one is given. */
export async function listProfiles(model: string | undefined, job: JobOptions): Promise<Profile[]> {
  const facts = model === undefined ? undefined : modelFacts(await runnableGguf(model, job));
  return profilesFor(findHardware(job.device), facts);
}

/** @throws UsageError when two models have one name */
function namesOf(models: readonly string[], given: readonly string[] | undefined): string[] {
  if (given !== undefined && given.length !== models.length)
    throw new UsageError(`${models.length} models need as many names, not ${given.length} (--name)`);
  const names = given ?? models.map((model) => path.basename(model.replace(/[/\\]+$/, "")).replace(/\.gguf$/, ""));
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined) throw new UsageError(`two models are called ${twice}: name them (--name a,b)`);
  return [...names];
}

/** A path of this machine is nobody else's business. */
const publicReference = (reference: string): string => (existsSync(reference) ? path.basename(reference) : reference);

function adapterOf(text: string): { readonly file: string; readonly scale: number } {
  const [, file = text, scale = "1"] = /^(.+)=(-?\d+(?:\.\d+)?)$/.exec(text) ?? [];
  if (!existsSync(file)) throw new UsageError(`there is no LoRA adapter ${file}`);
  return { file, scale: Number(scale) };
}

function readPem(file: string): Buffer {
  if (!existsSync(file)) throw new UsageError(`there is no file ${file}`);
  return readFileSync(file);
}
