import { existsSync, readdirSync, readFileSync } from "node:fs";
import { homedir } from "node:os";
import path from "node:path";
import type { HubOptions } from "../checkpoint/index.js";
import { HUB_PREFIX, resolveConfig } from "../checkpoint/index.js";
import { readJsonObject } from "../checkpoint/json.js";
import { countParameters, modelFromConfig, openCheckpoint } from "../models/index.js";
import { cacheDirectory } from "../system/files.js";
import { packageRoot } from "../system/package-root.js";
import type { Storage } from "./storage.js";
import type { Dataset, Library, ModelFacts, ModelRow } from "./store/library.js";
import { LOCAL_TENANT, type Tenants } from "./store/tenants.js";

/** Where what a tenant has lies in the store. */
export const keys = {
  dataset: (tenant: string, id: string, ending: string) => `tenants/${tenant}/datasets/${id}${ending}`,
  model: (tenant: string, id: string) => `tenants/${tenant}/models/${id}`,
  results: (tenant: string, jobId: string) => `tenants/${tenant}/jobs/${jobId}`,
  /** Of one attempt: none writes into another's. */
  result: (tenant: string, jobId: string, lease: string) => `${keys.results(tenant, jobId)}/${lease.slice(0, 8)}`,
  workspace: (jobId: string) => `workspaces/${jobId}`,
};

/** Embedded models and data lie in the package. */
const EMBEDDED = (name: string): string => path.join(packageRoot, "examples", name);

/** What jobs work on, as this machine can open it. */
export class Materials {
  /** @param hubCache where what comes from the hub lies */
  constructor(
    private readonly storage: Storage,
    private readonly tenants: Tenants,
    private readonly library: Library,
    private readonly hubCache: string,
  ) {}

  /** What a job calls a model: a directory, a .gguf file or a hub id, which is never a path. */
  async model(model: ModelRow): Promise<string> {
    switch (model.source.kind) {
      case "embedded":
        return EMBEDDED(model.source.path);
      case "hub":
        return HUB_PREFIX + model.source.id;
      default: {
        const directory = await this.storage.local(modelKey(model));
        const [only] = readdirSync(directory).filter((file) => file.endsWith(".gguf"));
        return existsSync(path.join(directory, "config.json")) || only === undefined
          ? directory
          : path.join(directory, only);
      }
    }
  }

  dataset(dataset: Dataset | undefined): Promise<string> | string {
    if (dataset === undefined || dataset.tenant === null) return EMBEDDED("corpus/stories.txt.gz");
    return this.storage.local(dataset.storageKey);
  }

  /**
   * How a tenant reaches the hub. Whoever runs the service does so as its environment says; others with their own token or none, and
   * what came by a token is only for who has it.
   */
  async hub(tenant: string): Promise<HubOptions> {
    const token = await this.tenants.hubToken(tenant);
    if (tenant === LOCAL_TENANT) return token === undefined ? {} : { token };
    return { token: token ?? "", cacheDir: path.join(this.hubCache, token === undefined ? "public" : `of-${tenant}`) };
  }

  /** A text without where things lie on this machine. */
  withoutPlaces(text: string): string {
    const places = [this.storage.root, this.hubCache, cacheDirectory(), homedir(), packageRoot];
    return places.reduce((left, place) => left.replaceAll(place + path.sep, ""), text);
  }

  /**
   * What is known of a model, where its configuration is still to be had from the hub.
   * @throws CoppiceError when it cannot be had, or is none that is known
   */
  async facts(tenant: string, model: ModelRow): Promise<ModelFacts> {
    if (model.facts !== null || model.source.kind !== "hub") return model.facts as ModelFacts;
    const directory = await resolveConfig(await this.model(model), await this.hub(tenant));
    const facts = factsOf(directory);
    await this.library.learn(model.id, { facts });
    return facts;
  }
}

/** Where a model's files lie: an uploaded one's own place, or that of the job that made it. */
export function modelKey(model: ModelRow): string {
  if (model.tenant === null) throw new Error("an embedded model is not in the store");
  return model.source.kind === "job" ? model.source.key : keys.model(model.tenant, model.id);
}

/** What a directory or file says of a model. @throws FormatError when it is none that is known */
export function factsOf(at: string): ModelFacts {
  const config = existsSync(path.join(at, "config.json"))
    ? readJsonObject(path.join(at, "config.json"))
    : openCheckpoint(at).config;
  const model = modelFromConfig(config);
  const parameters = countParameters(model.parameters, model.sizes);
  return { architecture: model.architecture, parameters, contextLength: model.maxPositions, config };
}

const MOST_CARD_BYTES = 1 << 20;

/** A model's licence, as its card's header or its licence file says. */
export function licenceOf(directory: string): string | null {
  const read = (name: string) => {
    const file = path.join(directory, name);
    return existsSync(file) ? readFileSync(file).subarray(0, MOST_CARD_BYTES).toString("utf8") : "";
  };
  const named = /^---\n[\s\S]*?^license:\s*["']?([\w. -]{1,60})["']?\s*$[\s\S]*?^---$/m.exec(read("README.md"))?.[1];
  if (named !== undefined) return named.trim();
  const first = ["LICENSE", "LICENSE.md", "LICENSE.txt"].map(read).find((text) => text.trim() !== "");
  return first?.trim().split("\n")[0]?.trim().slice(0, 60) ?? null;
}
