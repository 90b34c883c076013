import { createCipheriv, createDecipheriv, createHash, randomBytes } from "node:crypto";
import { existsSync, linkSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { CoppiceError } from "../system/errors.js";
import { temporaryBeside } from "../system/files.js";

/** Encrypts secrets at rest (AES-256-GCM); each can be read only for its own owner. */
export class Secrets {
  private readonly key: Buffer;

  /** @param secret any text, the same in all processes of a foundry */
  constructor(secret: string) {
    this.key = createHash("sha256").update(`coppice foundry\n${secret}`).digest();
  }

  /** Uses COPPICE_FOUNDRY_SECRET, or a random secret kept in a file of the directory that only its owner can read. */
  static open(directory: string): Secrets {
    const configured = process.env.COPPICE_FOUNDRY_SECRET;
    if (configured !== undefined && configured !== "") return new Secrets(configured);
    const file = path.join(directory, "secret");
    if (!existsSync(file)) {
      const temporary = temporaryBeside(file);
      writeFileSync(temporary, randomBytes(32).toString("hex"), { mode: 0o600, flush: true });
      try {
        linkSync(temporary, file); // fails where another process was faster
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

  /** @throws CoppiceError when it was sealed with another key or for another owner, or was changed */
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
