import { createHash, timingSafeEqual } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { FormatError, UsageError } from "../system/errors.js";
import { ApiError } from "./errors.js";

/** The form in which a key is stored: its SHA-256 in hexadecimal. */
export const hashKey = (key: string): string => createHash("sha256").update(key).digest("hex");

/** The owner of a key. */
export interface Client {
  /** Its name in the log. */
  readonly name: string;
  /** Counts a request. @throws ApiError 429 where a limit is reached, saying when to try again */
  take(): void;
  /** Counts tokens; too many delay the next request. */
  spend(tokens: number): void;
}

interface Limits {
  /** Requests per minute. */
  readonly rpm?: number | undefined;
  /** Tokens per minute. */
  readonly tpm?: number | undefined;
}

/**
 * The keys that are accepted. Each line of the file has a hash and, optionally, a name and limits (`HASH laptop rpm=60 tpm=20000`); lines
 * that begin with # are comments.
 */
export class ApiKeys {
  private constructor(private readonly keys: readonly { readonly hash: Buffer; readonly client: Client }[]) {}

  /** @throws UsageError when there is no such file, FormatError for a line that is not a key's */
  static read(file: string): ApiKeys {
    if (!existsSync(file)) throw new UsageError(`there is no file of keys ${file}`);
    const keys = readFileSync(file, "utf8")
      .split("\n")
      .flatMap((line, i) => {
        const [hash = "", ...rest] = line.trim().split(/\s+/);
        if (hash === "" || hash.startsWith("#")) return [];
        const refusal = (what: string) => new FormatError(`${file}:${i + 1} ${what}`);
        if (!/^[0-9a-f]{64}$/.test(hash)) throw refusal("is not a SHA-256; make one with: printf %s KEY | sha256sum");
        const limits: { rpm?: number | undefined; tpm?: number | undefined } = {};
        let name = `key ${i + 1}`;
        for (const word of rest) {
          const [, kind, value] = /^(rpm|tpm)=([1-9]\d{0,8})$/.exec(word) ?? [];
          if (kind !== undefined) limits[kind as "rpm" | "tpm"] = Number(value);
          else if (word.includes("=")) throw refusal(`has ${word}: limits are rpm=REQUESTS and tpm=TOKENS, per minute`);
          else name = word;
        }
        return [{ hash: Buffer.from(hash, "hex"), client: new LimitedClient(name, limits) }];
      });
    if (keys.length === 0) throw new FormatError(`${file} has no keys: every request would be refused`);
    return new ApiKeys(keys);
  }

  /** The owner of a key; undefined for an unknown key. Takes the same time for every key. */
  clientOf(key: string): Client | undefined {
    const keyHash = createHash("sha256").update(key).digest();
    return this.keys.reduce<Client | undefined>(
      (found, { hash, client }) => (timingSafeEqual(hash, keyHash) ? client : found),
      undefined,
    );
  }
}

class LimitedClient implements Client {
  private readonly requests: Allowance;
  private readonly tokens: Allowance;

  constructor(
    readonly name: string,
    { rpm, tpm }: Limits,
  ) {
    this.requests = new Allowance(rpm);
    this.tokens = new Allowance(tpm);
  }

  take(): void {
    const seconds = Math.max(this.requests.secondsUntil(1), this.tokens.secondsUntil(1));
    if (seconds > 0)
      throw new ApiError(429, `this key's limit is reached: try again in ${Math.ceil(seconds)} seconds`, {
        code: "rate_limit_exceeded",
        retryAfter: Math.ceil(seconds),
      });
    this.requests.spend(1);
  }

  spend(tokens: number): void {
    this.tokens.spend(tokens);
  }
}

/** An amount per minute: a token bucket that holds a minute's worth. */
class Allowance {
  private left: number;
  private since = performance.now();

  constructor(private readonly perMinute = Number.POSITIVE_INFINITY) {
    this.left = perMinute;
  }

  secondsUntil(amount: number): number {
    this.refill();
    return this.left >= amount ? 0 : (60 * (amount - this.left)) / this.perMinute;
  }

  spend(amount: number): void {
    this.refill();
    this.left -= amount;
  }

  private refill(): void {
    const now = performance.now();
    if (this.perMinute !== Number.POSITIVE_INFINITY)
      this.left = Math.min(this.perMinute, this.left + ((now - this.since) / 60_000) * this.perMinute);
    this.since = now;
  }
}
