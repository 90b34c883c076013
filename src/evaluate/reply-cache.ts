import { appendFileSync, existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import path from "node:path";
import { hashBytes } from "../system/files.js";
import { logOf } from "../system/log.js";
import type { Reply, Request } from "./requests.js";

const log = logOf("evaluate");

/** How many replies are written at a time. */
const WRITTEN_TOGETHER = 64;

/**
 * Replies on disk, by request, so that a stopped evaluation can be continued and a repeated one asks nothing. Lines are only
 * appended to the file; a line that was cut off is ignored.
 */
export class ReplyCache {
  private readonly replies = new Map<string, Reply>();
  /** Those that are asked again; the others of the file stay, which may be of other tasks. */
  private readonly forgotten = new Set<string>();
  private pending: string[] = [];

  private constructor(private readonly file: string | undefined) {}

  /**
   * @param identity everything that replies depend on: the model, how it computes
   * @param restart asks anew: `own` for what this evaluation asks, of a model that cannot have changed, `all` forgets every reply
   */
  static open(directory: string, identity: unknown, restart?: "own" | "all"): ReplyCache {
    const file = path.join(directory, `${hashBytes(JSON.stringify(identity)).slice(0, 32)}.jsonl`);
    if (restart === "all") rmSync(file, { force: true });
    const cache = new ReplyCache(file);
    cache.read();
    if (restart === "own") for (const key of cache.replies.keys()) cache.forgotten.add(key);
    return cache;
  }

  /** A cache without a file. */
  static inMemory(): ReplyCache {
    return new ReplyCache(undefined);
  }

  private read(): void {
    if (this.file === undefined || !existsSync(this.file)) return;
    const text = readFileSync(this.file, "utf8");
    for (const line of text.split("\n")) {
      const reply = parseLine(line);
      if (reply !== undefined) this.replies.set(reply.key, reply.reply);
    }
    log.debug("answers cached", { file: this.file, answers: this.replies.size });
    if (text !== "" && !text.endsWith("\n")) appendFileSync(this.file, "\n"); // completes a line that was cut off
  }

  static key(request: Request): string {
    return hashBytes(JSON.stringify(request)).slice(0, 24);
  }

  get(key: string): Reply | undefined {
    return this.forgotten.has(key) ? undefined : this.replies.get(key);
  }

  set(key: string, reply: Reply): void {
    this.replies.set(key, reply);
    this.forgotten.delete(key);
    if (this.file === undefined) return;
    const stored =
      typeof reply === "string"
        ? reply
        : [reply.logLikelihood, reply.isGreedy === undefined ? null : Number(reply.isGreedy)];
    this.pending.push(`${JSON.stringify([key, stored])}\n`);
    if (this.pending.length >= WRITTEN_TOGETHER) this.flush();
  }

  /** Writes pending replies to the file. */
  flush(): void {
    if (this.file === undefined || this.pending.length === 0) return;
    mkdirSync(path.dirname(this.file), { recursive: true });
    appendFileSync(this.file, this.pending.join(""));
    this.pending = [];
  }
}

function parseLine(line: string): { readonly key: string; readonly reply: Reply } | undefined {
  try {
    const [key, stored] = JSON.parse(line) as [unknown, unknown];
    if (typeof key !== "string") return undefined;
    if (typeof stored === "string") return { key, reply: stored };
    if (!Array.isArray(stored) || typeof stored[0] !== "number") return undefined;
    return { key, reply: { logLikelihood: stored[0], isGreedy: stored[1] === null ? undefined : stored[1] === 1 } };
  } catch {
    return undefined;
  }
}
