import { readFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { addingPage, modelsPage } from "../../scripts/models.js";

const page = (name: string): string => readFileSync(path.resolve(import.meta.dirname, "../../docs", name), "utf8");

describe("what the documents say of models", () => {
  it("is what the registry and the contract are (npx tsx scripts/models.ts writes it)", () => {
    expect(page("models.md")).toBe(modelsPage());
    expect(page("adding-a-model.md")).toBe(addingPage());
  });
});
