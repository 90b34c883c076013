import { mkdirSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { didYouMean, didYouMeanPath, similar } from "../../src/system/suggest.js";
import { temporaryDirectory } from "../temporary.js";

describe("suggestions", () => {
  const kinds = ["q4_k_m", "q4_k_s", "q8_0", "f16"];

  it("are the names that differ least, in either case", () => {
    expect(similar("Q4_KM", kinds)).toEqual(["q4_k_m", "q4_k_s"]);
    expect(similar("q8_O", kinds)).toEqual(["q8_0"]);
    expect(didYouMean("helaswag", ["piqa", "hellaswag"])).toBe(" Did you mean hellaswag?");
  });

  it("are none where nothing is similar", () => {
    expect(didYouMean("something else", kinds)).toBe("");
    expect(didYouMean("", kinds)).toBe("");
  });

  it("are paths that nearly are what was typed", () => {
    const folder = temporaryDirectory();
    mkdirSync(path.join(folder, "mistral-nemo"));
    expect(didYouMeanPath(path.join(folder, "mistral-nmo"))).toBe(
      ` Did you mean ${path.join(folder, "mistral-nemo")}?`,
    );
    expect(didYouMeanPath("/nowhere/at/all")).toBe("");
  });
});
