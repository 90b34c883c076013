import { createCipheriv, createDecipheriv, createHash, randomBytes } from "node:crypto";
import { existsSync, linkSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { CoppiceError } from "../system/errors.js";
import { temporaryBeside } from "../system/files.js";

/** Keeps secrets at rest: AES-256-GCM, bound to whose they are. */
export class Secrets {
  private readonly key: Buffer;

  /** @param secret any text; all processes of a foundry need the same */
  constructor(secret: string) {
    this.key = createHash("sha256").update(`coppice foundry\n${secret}`).digest();
  }

  /** The one of COPPICE_FOUNDRY_SECRET, or one that is made in a file that only its owner reads. */
  static open(directory: string): Secrets {
    const given = process.env.COPPICE_FOUNDRY_SECRET;
    if (given !== undefined && given !== "") return new Secrets(given);
    const file = path.join(directory, "secret");
    if (!existsSync(file)) {
      const temporary = temporaryBeside(file);
      writeFileSync(temporary, randomBytes(32).toString("hex"), { mode: 0o600, flush: true });
      try {
        linkSync(temporary, file); // unless another process was faster
      } catch (error) {
        if (!existsSync(file)) throw error;
      } finally {
        rmSync(temporary);
      }
    }
    return new Secrets(readFileSync(file, "utf8").trim());
  }

  seal(text: string, owner: string): string {
    const nonce = randomBytes(12);
    const cipher = createCipheriv("aes-256-gcm", this.key, nonce).setAAD(Buffer.from(owner));
    const sealed = Buffer.concat([cipher.update(text, "utf8"), cipher.final()]);
    return Buffer.concat([nonce, cipher.getAuthTag(), sealed]).toString("base64");
  }

  /** @throws CoppiceError when it was sealed with another key, for another owner, or changed */
  unseal(sealed: string, owner: string): string {
    try {
      const bytes = Buffer.from(sealed, "base64");
      const decipher = createDecipheriv("aes-256-gcm", this.key, bytes.subarray(0, 12)).setAAD(Buffer.from(owner));
      decipher.setAuthTag(bytes.subarray(12, 28));
      return decipher.update(bytes.subarray(28), undefined, "utf8") + decipher.final("utf8");
    } catch {
      throw new CoppiceError("a stored token cannot be read with this COPPICE_FOUNDRY_SECRET: store it again");
    }
  }
}
