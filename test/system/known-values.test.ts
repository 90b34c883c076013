import { writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { KnownValues } from "../../src/system/known-values.js";
import { temporaryDirectory } from "../temporary.js";

describe("values that were found before", () => {
  const file = path.join(temporaryDirectory(), "known.json");
  const never = () => Promise.reject(new Error("found before"));

  it("are not found again, also by another process, to the last bit", async () => {
    const first = new KnownValues(file, "a");
    expect(await first.once(["loss", [1, 2]], async () => Math.PI)).toBe(Math.PI);
    expect(await first.once(["loss", [1, 2]], never)).toBe(Math.PI);
    expect(await new KnownValues(file, "a").once(["loss", [1, 2]], never)).toBe(Math.PI);
    expect(new KnownValues(file, "a").get(["loss", [2, 1]])).toBeUndefined();
  });

  it("are found anew where finding them failed, they are of something else, or their file is damaged", async () => {
    await expect(new KnownValues(file, "a").once(["other"], never)).rejects.toThrow("found before");
    expect(new KnownValues(file, "a").get(["other"])).toBeUndefined();
    expect(new KnownValues(file, "b").get(["loss", [1, 2]])).toBeUndefined();
    writeFileSync(file, "{");
    expect(await new KnownValues(file, "a").once(["loss", [1, 2]], async () => 1)).toBe(1);
  });

  it("that are no numbers are not kept as such", async () => {
    new KnownValues(file, "a").set(["nothing"], Number.NaN);
    expect(await new KnownValues(file, "a").once(["nothing"], async () => 2)).toBe(2);
  });
});
