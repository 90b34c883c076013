import { createReadStream, statSync } from "node:fs";
import path from "node:path";
import { Readable } from "node:stream";
import type { JobOptions } from "../jobs/index.js";
import { keys } from "./materials.js";
import type { Storage, StoredFile } from "./storage.js";
import type { Artifact, Job } from "./store/jobs.js";

/** The files that a job leaves in the store, with their checksums. */
export class Results {
  readonly files: Omit<Artifact, "id">[] = [];
  /** Where they are, in the store. */
  readonly prefix: string;

  constructor(
    { tenant, id, lease }: Job,
    private readonly storage: Storage,
    private readonly onProgress: JobOptions["onProgress"],
  ) {
    this.prefix = keys.result(tenant, id, lease ?? "");
  }

  /** The size of a model of which a folder holds the files, or several GGUF files, of which the largest is the model. */
  modelBytes(folder: "gguf" | "model"): number {
    const sizes = new Map<string, number>();
    for (const { storageKey, bytes } of this.files) {
      if (!storageKey.startsWith(`${this.prefix}/${folder}/`)) continue;
      const whole = folder === "model" ? folder : storageKey.replace(/-\d{5}-of-\d{5}\.gguf$/, "");
      sizes.set(whole, (sizes.get(whole) ?? 0) + bytes);
    }
    return Math.max(0, ...sizes.values());
  }

  /** Stores a file. @param folder a folder below the prefix */
  async add(file: string, name: string, folder?: string): Promise<void> {
    const key = folder === undefined ? `${this.prefix}/${name}` : `${this.prefix}/${folder}/${name}`;
    this.record(name, key, await this.storage.put(key, createReadStream(file), statSync(file).size));
    this.onProgress?.({
      stage: "package",
      done: this.files.length,
      total: this.files.length + 1,
      unit: "files",
      detail: `${name}, ${statSync(file).size} bytes`,
    });
  }

  async addText(name: string, text: string): Promise<void> {
    const key = `${this.prefix}/${name}`;
    this.record(name, key, await this.storage.put(key, Readable.from([Buffer.from(text)])));
  }

  private record(name: string, storageKey: string, stored: StoredFile): void {
    this.files.push({ name, storageKey, mediaType: mediaTypeOf(name), ...stored });
  }
}

const MEDIA_TYPES: Readonly<Record<string, string>> = {
  ".html": "text/html; charset=utf-8",
  ".json": "application/json",
  ".jsonl": "application/x-ndjson",
  ".md": "text/markdown; charset=utf-8",
};
const mediaTypeOf = (name: string): string => MEDIA_TYPES[path.extname(name)] ?? "application/octet-stream";
