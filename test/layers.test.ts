import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";

/** The folders of src/, lowest first. A file may import from its own rank and from lower ones. */
const RANKS = [
  ["system"],
  ["ggml"],
  ["tensor", "checkpoint"],
  ["models", "data"],
  ["evaluate"],
  ["prune", "distill", "quantize", "generate"],
  ["devices"],
  ["jobs"],
  ["serve"],
  ["foundry"],
  ["cli"],
];
const root = path.resolve(import.meta.dirname, "../src");

const rankOf = (file: string): number => {
  const [folder = ""] = path.relative(root, file).split(path.sep);
  const rank = RANKS.findIndex((folders) => folders.includes(folder));
  return rank < 0 ? RANKS.length : rank; // src/index.ts may see everything
};

describe("the layers", () => {
  const files = readdirSync(root, { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".ts"));

  it("are all known", () => {
    const folders = readdirSync(root, { withFileTypes: true }).filter((entry) => entry.isDirectory());
    expect(folders.map(({ name }) => name).sort()).toEqual(RANKS.flat().sort());
  });

  it.each(files)("hold for %s", (name) => {
    const file = path.join(root, name);
    for (const [, specifier = ""] of readFileSync(file, "utf8").matchAll(/from "(\.[^"]+)"/g)) {
      const target = path.resolve(path.dirname(file), specifier);
      expect(rankOf(target), `${name} imports ${specifier}`).toBeLessThanOrEqual(rankOf(file));
    }
  });
});
