import { createHash, timingSafeEqual } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { FormatError, UsageError } from "../system/errors.js";

/** The form in which a key is kept: its SHA-256, in hexadecimal. */
export const hashKey = (key: string): string => createHash("sha256").update(key).digest("hex");

/** The keys that may ask. A file holds a hash in each line (and a name, after a space); lines that begin with # do not count. */
export class ApiKeys {
  private constructor(private readonly hashes: readonly Buffer[]) {}

  /** @throws UsageError when there is no such file, FormatError for a line that is no hash */
  static read(file: string): ApiKeys {
    if (!existsSync(file)) throw new UsageError(`there is no file of keys ${file}`);
    const hashes: Buffer[] = [];
    for (const [i, line] of readFileSync(file, "utf8").split("\n").entries()) {
      const [hash = ""] = line.trim().split(/\s/, 1);
      if (hash === "" || hash.startsWith("#")) continue;
      if (!/^[0-9a-f]{64}$/.test(hash))
        throw new FormatError(`${file}:${i + 1} is no SHA-256; make one with: printf %s KEY | sha256sum`);
      hashes.push(Buffer.from(hash, "hex"));
    }
    if (hashes.length === 0) throw new FormatError(`${file} has no keys: nobody could ask`);
    return new ApiKeys(hashes);
  }

  /** Whether a key is one of them. Takes as long whichever it is. */
  allows(key: string): boolean {
    const given = createHash("sha256").update(key).digest();
    return this.hashes.reduce((found, hash) => timingSafeEqual(hash, given) || found, false);
  }
}
