import { readdirSync, statSync } from "node:fs";
import path from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Secrets } from "../../src/foundry/secrets.js";
import { temporaryDirectory } from "../temporary.js";

describe("a secret", () => {
  const secrets = new Secrets("one");

  it("can be read only for its owner, with the same key and unchanged", () => {
    fc.assert(
      fc.property(fc.string(), fc.string(), fc.nat(), (text, owner, at) => {
        const sealed = secrets.seal(text, owner);
        expect(secrets.unseal(sealed, owner)).toBe(text);
        expect(() => secrets.unseal(sealed, `${owner}!`)).toThrow("cannot be read");
        expect(() => new Secrets("two").unseal(sealed, owner)).toThrow("cannot be read");
        const bytes = Buffer.from(sealed, "base64");
        bytes[at % bytes.length]! ^= 1;
        expect(() => secrets.unseal(bytes.toString("base64"), owner)).toThrow("cannot be read");
      }),
    );
  });

  it("is generated once where none is configured, in a file that only its owner can read", () => {
    const directory = temporaryDirectory();
    const sealed = Secrets.open(directory).seal("x", "a");
    expect(Secrets.open(directory).unseal(sealed, "a")).toBe("x");
    expect(readdirSync(directory)).toEqual(["secret"]);
    expect(statSync(path.join(directory, "secret")).mode & 0o777).toBe(0o600);
  });

  it("is encrypted differently each time", () => {
    expect(secrets.seal("x", "a")).not.toBe(secrets.seal("x", "a"));
  });
});
