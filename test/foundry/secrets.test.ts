import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Secrets } from "../../src/foundry/secrets.js";

describe("a secret", () => {
  const secrets = new Secrets("one");

  it("is only read again by its owner, with the same key, unchanged", () => {
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

  it("looks different each time", () => {
    expect(secrets.seal("x", "a")).not.toBe(secrets.seal("x", "a"));
  });
});
