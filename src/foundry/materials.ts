import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { homedir } from "node:os";
import path from "node:path";
import type { HubOptions } from "../checkpoint/index.js";
import { HUB_PREFIX, resolveConfig } from "../checkpoint/index.js";
import { readJsonObject } from "../checkpoint/json.js";
import { countParameters, modelFromConfig, openCheckpoint } from "../models/index.js";
import { FormatError } from "../system/errors.js";
import { cacheDirectory } from "../system/files.js";
import { packageRoot } from "../system/package-root.js";
import type { Storage } from "./storage.js";
import type { Dataset, Library, ModelFacts, ModelRow } from "./store/library.js";
import { LOCAL_TENANT, type Tenants } from "./store/tenants.js";

/** Keys of the store. */
export const keys = {
  dataset: (tenant: string, id: string, extension: string) => `tenants/${tenant}/datasets/${id}${extension}`,
  model: (tenant: string, id: string) => `tenants/${tenant}/models/${id}`,
  results: (tenant: string, jobId: string) => `tenants/${tenant}/jobs/${jobId}`,
  /** The results of one attempt, which no other attempt writes to. */
  result: (tenant: string, jobId: string, lease: string) => `${keys.results(tenant, jobId)}/${keys.attempt(lease)}`,
  attempt: (lease: string) => lease.slice(0, 8),
  workspace: (jobId: string) => `workspaces/${jobId}`,
};

/** A model or data set that comes with the package. */
const embeddedPath = (name: string): string => path.join(packageRoot, "examples", name);

/** Finds models and data sets on this machine and on the hub. */
export class Materials {
  /** @param hubCache directory for downloads by tenants with keys */
  constructor(
    private readonly storage: Storage,
    private readonly tenants: Tenants,
    private readonly library: Library,
    private readonly hubCache: string,
  ) {}

  /** A model's reference for jobs: a directory, a .gguf file, or a hub id with a prefix that no path has. */
  async model(model: ModelRow): Promise<string> {
    switch (model.source.kind) {
      case "embedded":
        return embeddedPath(model.source.path);
      case "hub":
        return HUB_PREFIX + model.source.id;
      default: {
        const directory = await this.storage.local(modelKey(model));
        // of several kinds the largest is the best
        const files = readdirSync(directory).filter((file) => file.endsWith(".gguf"));
        const best = byBytes(directory, files).at(-1);
        return existsSync(path.join(directory, "config.json")) || best === undefined
          ? directory
          : path.join(directory, best);
      }
    }
  }

  /** A data set's file; the built-in stories without a data set. */
  async dataset(dataset: Dataset | undefined): Promise<string> {
    if (dataset === undefined || dataset.tenant === null) return embeddedPath("corpus/stories.txt.gz");
    return this.storage.local(dataset.storageKey);
  }

  /**
   * A tenant's token and cache for the hub. The local tenant uses the service's environment; others use their own token or none, and
   * what one tenant downloads with a token is out of reach for the others.
   */
  async hub(tenant: string): Promise<HubOptions> {
    const token = await this.tenants.hubToken(tenant);
    if (tenant === LOCAL_TENANT) return token === undefined ? {} : { token };
    return { token: token ?? "", cacheDir: path.join(this.hubCache, token === undefined ? "public" : `of-${tenant}`) };
  }

  /** A message without this machine's paths. */
  withoutPaths(text: string): string {
    const directories = [this.storage.root, this.hubCache, cacheDirectory(), homedir(), packageRoot];
    return directories.reduce((result, directory) => result.replaceAll(directory + path.sep, ""), text);
  }

  /**
   * A model's facts; those of a new hub model are read from the hub.
   * @throws CoppiceError when its configuration cannot be read or is not supported
   */
  async facts(tenant: string, model: ModelRow): Promise<ModelFacts> {
    if (model.facts !== null || model.source.kind !== "hub") return model.facts as ModelFacts;
    const directory = await resolveConfig(await this.model(model), await this.hub(tenant));
    const facts = factsOf(directory);
    await this.library.addFacts(model.id, { facts });
    return facts;
  }
}

/** Where a model's files are in the store: at its own key, or with the job that made it. */
function modelKey(model: ModelRow): string {
  if (model.tenant === null) throw new Error("an embedded model is not in the store");
  return model.source.kind === "job" ? model.source.key : keys.model(model.tenant, model.id);
}

/** Four times as many as the deepest model in use has. What is computed for a plan grows with them. */
const MOST_LAYERS = 512;

/** Facts of a model directory or file. @throws FormatError when it is not a supported model */
export function factsOf(location: string): ModelFacts {
  const config = existsSync(path.join(location, "config.json"))
    ? readJsonObject(path.join(location, "config.json"))
    : openCheckpoint(location).config;
  const model = modelFromConfig(config);
  if (model.layerCount > MOST_LAYERS)
    throw new FormatError(
      `${location} has ${model.layerCount} layers: a foundry takes models of at most ${MOST_LAYERS}`,
    );
  const parameters = countParameters(model.parameters, model.sizes);
  return { architecture: model.architecture, parameters, contextLength: model.maxPositions, config };
}

const MAX_CARD_BYTES = 1 << 20;

/** A model's licence, from its card's header or else the first line of its licence file; null where there is neither. */
export function licenceOf(directory: string): string | null {
  const read = (name: string) => {
    const file = path.join(directory, name);
    return existsSync(file) ? readFileSync(file).subarray(0, MAX_CARD_BYTES).toString("utf8") : "";
  };
  const named = headerOf(read("README.md"))
    .map((line) => /^license: *["']?([\w. -]{1,60})/.exec(line)?.[1]?.trim())
    .find((text) => text !== undefined && text !== "");
  if (named !== undefined) return named;
  const first = ["LICENSE", "LICENSE.md", "LICENSE.txt"].map(read).find((text) => text.trim() !== "");
  return first?.trim().split("\n")[0]?.trim().slice(0, 60) ?? null;
}

/** Files of a directory, smallest first. Parts of a split model come as their first. */
function byBytes(directory: string, files: readonly string[]): string[] {
  const bytesOf = (file: string) => statSync(path.join(directory, file)).size;
  return files
    .filter((file) => !/-\d{5}-of-\d{5}\.gguf$/.test(file) || file.includes("-00001-of-"))
    .sort((a, b) => bytesOf(a) - bytesOf(b));
}

/** The most lines of a card's header that are looked at. */
const MOST_HEADER_LINES = 1000;

/** The lines of a model card's header in YAML; none where it has none. */
function headerOf(card: string): string[] {
  const [first, ...lines] = card.split("\n", MOST_HEADER_LINES).map((line) => line.trimEnd());
  const end = lines.indexOf("---");
  return first === "---" && end >= 0 ? lines.slice(0, end) : [];
}
