import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";

/** The folders of src/, lowest first. A file may import from its own rank and from lower ones. */
const RANKS = [
  ["system"],
  ["ggml", "ranks"],
  ["tensor", "checkpoint"],
  ["linear-algebra"],
  ["models", "data"],
  ["evaluate"],
  ["prune", "distill", "quantize", "generate"],
  ["refit", "check"],
  ["devices"],
  ["jobs"],
  ["serve"],
  ["foundry"],
  ["cli"],
];
const root = path.resolve(import.meta.dirname, "../src");

const rankOf = (file: string): number => {
  const rank = RANKS.findIndex((folders) => folders.includes(file.split(path.sep)[0] ?? ""));
  return rank < 0 ? RANKS.length : rank; // src/index.ts may see everything
};

/** Files that each file imports, types included. */
const imports = new Map(
  readdirSync(root, { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".ts"))
    .map((name) => {
      const text = readFileSync(path.join(root, name), "utf8");
      const targets = [...text.matchAll(/(?:from|import) "(\.[^"]+)"/g)].map(([, specifier = ""]) =>
        path.join(path.dirname(name), specifier).replace(/\.js$/, ".ts"),
      );
      return [name, targets] as const;
    }),
);

/** Files that import each other, directly or by others: a line for each way round. */
function cycles(): string[] {
  const found: string[] = [];
  const finished = new Set<string>();
  const walk = (file: string, way: readonly string[]): void => {
    const start = way.indexOf(file);
    if (start >= 0) found.push([...way.slice(start), file].join(" > "));
    if (start >= 0 || finished.has(file)) return;
    for (const target of imports.get(file) ?? []) walk(target, [...way, file]);
    finished.add(file);
  };
  for (const file of imports.keys()) walk(file, []);
  return found;
}

describe("the layers", () => {
  it("are all known", () => {
    const folders = readdirSync(root, { withFileTypes: true }).filter((entry) => entry.isDirectory());
    expect(folders.map(({ name }) => name).sort()).toEqual(RANKS.flat().sort());
  });

  it("import from below only", () => {
    const upwards = [...imports].flatMap(([name, targets]) =>
      targets.filter((target) => rankOf(target) > rankOf(name)).map((target) => `${name} imports ${target}`),
    );
    expect(upwards).toEqual([]);
    expect(imports.size).toBeGreaterThan(300);
  });

  it("import no file in a circle, not even its types", () => {
    expect(cycles()).toEqual([]);
  });
});
